//! Makes the man pages and shell completions that the packages ship, from the programs' own command
//! lines and from docs/POLICY.md. Run by `cargo xtask dist`; not shipped itself.
//!
//! Usage: `guard-manual POLICY.md DIRECTORY`, with `SOURCE_DATE_EPOCH` set. Writes `man8/*.8`,
//! `man5/*.5`, `bash/*`, `zsh/*` and `fish/*` below the directory. `guard-manual --reference`
//! prints docs/GUARDCTL.md.

#![forbid(unsafe_code)]

mod completions;
mod pages;
mod policy_page;
mod reference;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser};
use jiff::Timestamp;
use pages::Edition;

#[derive(Parser)]
struct Arguments {
    /// docs/POLICY.md
    #[arg(required_unless_present = "reference")]
    policy: Option<PathBuf>,
    /// Where the files go
    #[arg(required_unless_present = "reference")]
    directory: Option<PathBuf>,
    /// Print docs/GUARDCTL.md instead
    #[arg(long)]
    reference: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match (&arguments.policy, &arguments.directory) {
        (Some(policy), Some(directory)) if !arguments.reference => run(policy, directory),
        _ => {
            print!("{}", reference::of_program(&guard_agent::cli::Cli::command()));
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guard-manual: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(policy: &Path, directory: &Path) -> Result<()> {
    let edition = edition()?;
    let markdown =
        fs::read_to_string(policy).with_context(|| format!("read {}", policy.display()))?;
    let programs =
        [guard_agent::daemon::command_line::Cli::command(), guard_agent::cli::Cli::command()];
    for program in programs {
        for (name, text) in pages::of_program(&program, &edition)? {
            write(&directory.join("man8").join(name), &text)?;
        }
        for (name, text) in completions::of_program(&program) {
            write(&directory.join(name), &text)?;
        }
    }
    let page = policy_page::render(&markdown, &edition)
        .with_context(|| format!("make a man page of {}", policy.display()))?;
    write(&directory.join("man5/guard-agent-policy.5"), page.as_bytes())
}

/// The date is that of the sources, so that the same sources give the same bytes.
fn edition() -> Result<Edition> {
    let text = env::var("SOURCE_DATE_EPOCH").context("SOURCE_DATE_EPOCH is not set")?;
    let seconds = text.parse().context("SOURCE_DATE_EPOCH is no number of seconds")?;
    let time = Timestamp::from_second(seconds).context("SOURCE_DATE_EPOCH is out of range")?;
    Ok(Edition {
        date: time.strftime("%Y-%m-%d").to_string(),
        source: format!("guard-agent {}", env!("CARGO_PKG_VERSION")),
    })
}

fn write(path: &Path, text: &[u8]) -> Result<()> {
    let parent = path.parent().context("every file is below the given directory")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
