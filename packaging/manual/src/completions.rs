//! Completions for bash, zsh and fish, named as each shell looks for them.

use clap::{Command, ValueEnum as _};
use clap_complete::{Shell, generate};

/// Path below the output directory, and content, of each completion of `program`.
pub(crate) fn of_program(program: &Command) -> Vec<(String, Vec<u8>)> {
    let name = program.get_name().to_owned();
    let mut program = shown(program);
    Shell::value_variants()
        .iter()
        .filter_map(|&shell| {
            let path = match shell {
                Shell::Bash => format!("bash/{name}"),
                Shell::Zsh => format!("zsh/_{name}"),
                Shell::Fish => format!("fish/{name}.fish"),
                _ => return None,
            };
            let mut text = Vec::new();
            generate(shell, &mut program, &name, &mut text);
            Some((path, text))
        })
        .collect()
}

/// The command without the parts that `--help` hides: clap_complete would offer them.
fn shown(command: &Command) -> Command {
    let subcommands = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set());
    Command::new(command.get_name().to_owned())
        .about(command.get_about().cloned().unwrap_or_default())
        .version(command.get_version().unwrap_or_default().to_owned())
        .args(command.get_arguments().filter(|argument| !argument.is_hide_set()).cloned())
        .subcommands(subcommands.map(shown))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn what_help_hides_is_not_offered() {
        for (path, text) in of_program(&guard_agent::cli::Cli::command()) {
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains("preflight") && text.contains("run-dir"), "{path}");
            assert!(!text.contains("helper"), "{path}");
        }
    }
}
