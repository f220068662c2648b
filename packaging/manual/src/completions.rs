//! Completions for bash, zsh and fish, named as each shell looks for them.

use clap::{Command, ValueEnum as _};
use clap_complete::{Shell, generate};

/// Path below the output directory, and content, of each completion of `program`.
pub fn of_program(program: &mut Command) -> Vec<(String, Vec<u8>)> {
    let name = program.get_name().to_owned();
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
            generate(shell, program, &name, &mut text);
            Some((path, text))
        })
        .collect()
}
