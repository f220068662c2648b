//! The reference of `guardctl` in Markdown, docs/GUARDCTL.md, by clap-markdown.

use clap::Command;
use clap_markdown::{MarkdownOptions, help_markdown_command_custom};

/// Columns of a line, but for code that is longer.
const WIDTH: usize = 100;
const SOURCE: &str = "<!-- Generated from the command line of guardctl:\n\
                      cargo run --package guard-manual -- --reference > docs/GUARDCTL.md -->";

/// The page of a program and all its subcommands.
pub(crate) fn of_program(program: &Command) -> String {
    let options = MarkdownOptions::new().title("guardctl".to_owned()).show_footer(false);
    let text = help_markdown_command_custom(program, &options);
    let lines: Vec<String> = text.lines().map(wrap).collect();
    format!("{SOURCE}\n\n{}\n", lines.join("\n").trim_end())
}

fn wrap(line: &str) -> String {
    let hanging = if line.starts_with("* ") || line.starts_with("  ") { "  " } else { "" };
    let options = textwrap::Options::new(WIDTH)
        .subsequent_indent(hanging)
        .break_words(false)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    textwrap::fill(line.trim_end(), options)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_document_is_that_of_this_command_line() {
        let page = of_program(&guard_agent::cli::Cli::command());
        assert!(page.contains("## `guardctl lease revoke`"), "{page}");
        assert!(!page.contains("helper"), "hidden commands are left out");
        assert!(
            page == include_str!("../../../docs/GUARDCTL.md"),
            "docs/GUARDCTL.md is stale: its first line names the command that writes it"
        );
    }
}
