//! `guardctl doctor`: every precondition, its state, and the fix of what fails.

use std::io::Write;
use std::path::Path;

use super::{CliError, Global, write_json};
use crate::doctor::{CheckState, HostFacts, Report, checks};
use crate::exit::Exit;

/// Checks this host. A warning is no failure.
pub fn run(global: &Global, out: &mut impl Write) -> Result<Exit, CliError> {
    let checks = checks(&HostFacts::gather(Path::new("/")));
    if global.json {
        write_json(out, &checks)?;
    } else {
        let failed = checks.iter().filter(|check| check.state == CheckState::Fail).count();
        writeln!(out, "{}\n{} checks, {failed} failed", Report(&checks), checks.len())?;
    }
    Ok(if checks.iter().any(|check| check.state == CheckState::Fail) { Exit::Degraded } else { Exit::Ok })
}
