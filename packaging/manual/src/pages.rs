//! Man pages of a program and of each of its subcommands, section 8, by clap_mangen.

use anyhow::{Context as _, Result};
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

const SECTION: &str = "8";
pub(crate) const MANUAL: &str = "guard-agent manual";
/// Pages that every page refers to.
const SEE_ALSO: [&str; 3] = ["guard-agent(8)", "guardctl(8)", "guard-agent-policy(5)"];

/// Text of the header and the footer of each page.
#[derive(Debug)]
pub(crate) struct Edition {
    pub date: String,
    pub source: String,
}

/// File name and content of each page.
pub(crate) fn of_program(program: &Command, edition: &Edition) -> Result<Vec<(String, Vec<u8>)>> {
    let mut program = program.clone().disable_help_subcommand(true);
    // Gives subcommands their full names and the options that they inherit.
    program.build();
    let mut pages = Vec::new();
    collect(&program, edition, &mut pages)?;
    Ok(pages)
}

fn collect(command: &Command, edition: &Edition, pages: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let man = Man::new(command.clone())
        .section(SECTION)
        .date(&edition.date)
        .source(&edition.source)
        .manual(MANUAL);
    let name = man.get_filename();
    let mut text = Vec::new();
    man.render(&mut text).with_context(|| format!("render {name}"))?;
    text.extend(see_also(&name).to_roff().into_bytes());
    pages.push((name, text));
    let shown = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set());
    shown.into_iter().try_for_each(|subcommand| collect(subcommand, edition, pages))
}

/// The section that names the other pages.
fn see_also(name: &str) -> Roff {
    let own = name.strip_suffix(".8").map(|stem| format!("{stem}(8)"));
    let others: Vec<&str> =
        SEE_ALSO.into_iter().filter(|page| Some(*page) != own.as_deref()).collect();
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]).text([roman(others.join(", "))]);
    roff
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn each_subcommand_that_is_shown_has_a_page_and_hidden_ones_have_none() {
        let edition = Edition { date: "2026-01-02".into(), source: "guard-agent 1".into() };
        let pages = of_program(&guard_agent::cli::Cli::command(), &edition).unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for name in ["guardctl.8", "guardctl-status.8", "guardctl-lease-revoke.8"] {
            assert!(names.contains(&name), "{names:?}");
        }
        assert!(names.iter().all(|name| !name.contains("helper") && !name.contains("help")));
        let text = String::from_utf8(pages[0].1.clone()).unwrap();
        assert!(text.contains(".TH guardctl 8 2026-01-02 \"guard-agent 1\""), "{text}");
        assert!(text.ends_with("\nguard\\-agent(8), guard\\-agent\\-policy(5)\n"), "{text}");
    }
}
