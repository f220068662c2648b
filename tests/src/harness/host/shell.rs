//! Real hosts for a person: `cargo xtask vm --host`.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Lab, Name, State};

/// The hosts to start, and the command to run on one of them.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[arg(long, value_enum, default_value = "booted")]
    pub state: State,
    /// The host that is shown, or runs the command
    #[arg(long, value_enum, default_value = "n1")]
    pub on: Name,
    /// End a command after so many seconds
    #[arg(long, default_value_t = 900)]
    pub limit: u64,
    /// A shell script for the host; without it, a shell on the terminal
    pub script: Option<String>,
}

/// Starts the hosts, and runs the script or shows a shell.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let alone = [arguments.on];
    let names: &[Name] = if arguments.state == State::Booted { &alone } else { &Name::ALL };
    let lab = Lab::start(arguments.state, names)?;
    let host = lab.host(arguments.on);
    if let Some(script) = &arguments.script {
        let ended = host.attempt_within(script, Duration::from_secs(arguments.limit))?;
        print!("{}", ended.output);
        return Ok(ExitCode::from(u8::try_from(ended.status).unwrap_or(u8::MAX)));
    }
    eprintln!("guard-tests: a shell on {}, Ctrl-] ends it and the machines", host.name);
    let socket = format!("UNIX-CONNECT:{}", host.shell_socket().display());
    let status = Command::new("socat").args(["STDIO,raw,echo=0,escape=0x1d", &socket]).status();
    status.context("start socat")?;
    Ok(ExitCode::SUCCESS)
}
