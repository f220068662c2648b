//! `guardctl doctor`: every precondition, its state, and the fix of what fails.

use std::io::Write;
use std::path::Path;

use super::{CliError, Global, write_json};
use crate::doctor::{CheckState, HostFacts, Report, checks, summary};
use crate::exit::Exit;

#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// The kernel's own words too, where it refuses a program.
    #[arg(long, short)]
    pub verbose: bool,
}

/// Checks this host. A warning is no failure.
pub fn run(global: &Global, args: &DoctorArgs, out: &mut impl Write) -> Result<Exit, CliError> {
    let mut checks = checks(&HostFacts::gather(Path::new("/")).with_trials());
    if !args.verbose {
        checks.iter_mut().for_each(|check| check.log = None);
    }
    if global.json {
        write_json(out, &checks)?;
    } else {
        writeln!(out, "{}\n{}", Report(&checks), summary(&checks))?;
    }
    Ok(if checks.iter().any(|check| check.state == CheckState::Fail) { Exit::Degraded } else { Exit::Ok })
}
