//! `guardctl policy`: check a file, show what is in force, compare the two.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::text::safe;
use super::{CliError, Global, expect_reply, host, write_json};
use crate::control::report::PolicyText;
use crate::control::{Reply, Request};
use crate::exit::Exit;
use crate::paths;

#[derive(Debug, clap::Subcommand)]
pub enum PolicyCommand {
    /// Check a policy file. Needs no agent.
    Check {
        #[arg(default_value = paths::POLICY)]
        file: PathBuf,
    },
    /// The policy that is in force.
    Show,
    /// What a file would change of the policy in force.
    Diff {
        #[arg(default_value = paths::POLICY)]
        file: PathBuf,
    },
    /// Have the agent read its policy file now.
    Reload,
}

/// Checks, shows or compares.
pub fn run(global: &Global, command: &PolicyCommand, out: &mut impl Write) -> Result<Exit, CliError> {
    match command {
        PolicyCommand::Check { file } => {
            let exit = verdict(global, file, &read(file)?, out)?;
            if exit == Exit::Ok && !global.json {
                writeln!(out, "{} is good", safe(&file.display().to_string()))?;
            }
            Ok(exit)
        }
        PolicyCommand::Show => show(global, out),
        PolicyCommand::Diff { file } => diff(global, file, out),
        PolicyCommand::Reload => reload(global, out),
    }
}

#[derive(Serialize)]
struct CheckReport<'a> {
    file: &'a Path,
    good: bool,
    errors: &'a [String],
}

/// Shows what is wrong with a policy text.
fn verdict(global: &Global, file: &Path, text: &str, out: &mut impl Write) -> Result<Exit, CliError> {
    let errors = host::policy_problems(text, file)?;
    if global.json {
        write_json(out, &CheckReport { file, good: errors.is_empty(), errors: &errors })?;
    } else {
        for error in &errors {
            writeln!(out, "{}", error.lines().map(safe).collect::<Vec<_>>().join("\n"))?;
        }
    }
    Ok(if errors.is_empty() { Exit::Ok } else { Exit::Policy })
}

fn in_force(global: &Global) -> Result<PolicyText, CliError> {
    Ok(expect_reply!(global, Request::PolicyShow, Reply::PolicyText(policy) => policy))
}

fn show(global: &Global, out: &mut impl Write) -> Result<Exit, CliError> {
    let policy = in_force(global)?;
    if global.json {
        write_json(out, &policy)?;
    } else {
        let (path, hash) = (safe(&policy.path), safe(&policy.hash));
        writeln!(out, "# {path}, generation {}, sha256 {hash}", policy.generation)?;
        writeln!(out, "{}", policy.text.trim_end())?;
    }
    Ok(Exit::Ok)
}

fn diff(global: &Global, file: &Path, out: &mut impl Write) -> Result<Exit, CliError> {
    let text = read(file)?;
    if !host::policy_problems(&text, file)?.is_empty() {
        return verdict(global, file, &text, out);
    }
    let changes = host::policy_changes(&in_force(global)?.text, &text)?;
    if global.json {
        write_json(out, &changes)?;
    } else if changes.is_empty() {
        writeln!(out, "nothing changes")?;
    } else {
        for change in changes {
            writeln!(out, "{}", safe(&change))?;
        }
    }
    Ok(Exit::Ok)
}

fn reload(global: &Global, out: &mut impl Write) -> Result<Exit, CliError> {
    let reloaded = expect_reply!(
        global,
        Request::PolicyReload,
        reply @ Reply::PolicyReloaded { .. } => reply
    );
    if global.json {
        write_json(out, &reloaded)?;
    } else if let Reply::PolicyReloaded { generation, hash } = reloaded {
        writeln!(out, "policy generation {generation} is in force, sha256 {}", safe(&hash))?;
    }
    Ok(Exit::Ok)
}

fn read(file: &Path) -> Result<String, CliError> {
    fs::read_to_string(file).map_err(|source| CliError::ReadPolicy { path: file.to_owned(), source })
}
