//! `guardctl`: see [`guard_agent::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    guard_agent::cli::main(std::env::args_os()).into()
}
