//! `guardctl policy`: check a file, show the policy in force, compare the two.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::CliError;
use super::global::{Global, expect_reply, write_json};
use super::text::{self, safe};
use crate::host::mount_table;
use crate::host::paths;
use crate::host::policy_file;
use crate::host::roots;
use crate::model::control::report::PolicyText;
use crate::model::control::{Reply, Request};
use crate::model::exit::Exit;
use crate::model::hints;
use crate::model::hints::Hint;
use crate::model::mounts::Snapshot;
use crate::model::policy;
use crate::model::policy::{Policy, PolicyErrors, Problem};

#[derive(Debug, clap::Subcommand)]
pub enum PolicyCommand {
    /// Check a policy file. Needs no agent.
    Check {
        #[arg(default_value = paths::POLICY)]
        file: PathBuf,
    },
    /// The policy that is in force.
    Show,
    /// Show how a file differs from the policy in force.
    Diff {
        #[arg(default_value = paths::POLICY)]
        file: PathBuf,
    },
    /// Make the agent read its policy file now.
    Reload,
}

/// Checks, shows or compares.
pub fn run(
    global: &Global,
    command: &PolicyCommand,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    match command {
        PolicyCommand::Check { file } => match policy_file::load(file) {
            Ok(policy) => good(global, file, &policy, out),
            Err(errors) => wrong(global, file, &errors, out),
        },
        PolicyCommand::Show => show(global, out),
        PolicyCommand::Diff { file } => diff(global, file, out),
        PolicyCommand::Reload => reload(global, out),
    }
}

#[derive(Serialize)]
struct CheckReport<'a> {
    file: &'a Path,
    good: bool,
    errors: &'a [Problem],
    /// Valid settings that are hardly meant.
    hints: &'a [Hint],
}

fn good(
    global: &Global,
    file: &Path,
    policy: &Policy,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let mut hints = hints::lint(policy);
    if let Ok(snapshot) = mount_table() {
        hints.extend(hints::unresolved(policy, &roots::resolve(policy, &snapshot).resolved));
    }
    if global.json {
        write_json(out, &CheckReport { file, good: true, errors: &[], hints: &hints })?;
        return Ok(Exit::Ok);
    }
    writeln!(out, "{} is good", safe(&file.display().to_string()))?;
    out.write_all(render_hints(&hints).as_bytes())?;
    Ok(Exit::Ok)
}

/// That of this process, which is in the host's mount namespace or sees no roots.
pub(super) fn mount_table() -> io::Result<Snapshot> {
    mount_table::open(mount_table::OWN)
}

/// Hints as text, each with a fix.
pub(super) fn render_hints(hints: &[Hint]) -> String {
    let mut text = String::new();
    for hint in hints {
        text += &text::wrap(&format!("  hint ({}): ", safe(&hint.code)), 4, &safe(&hint.what));
        text += &text::wrap("    fix: ", 9, &safe(&hint.fix));
    }
    text
}

/// Shows the problems of a policy file.
fn wrong(
    global: &Global,
    file: &Path,
    errors: &PolicyErrors,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    if global.json {
        write_json(out, &CheckReport { file, good: false, errors: errors.problems(), hints: &[] })?;
    } else {
        writeln!(out, "{}", errors.to_string().lines().map(safe).collect::<Vec<_>>().join("\n"))?;
    }
    Ok(Exit::Policy)
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
    let wanted = match policy_file::load(file) {
        Ok(policy) => policy,
        Err(errors) => return wrong(global, file, &errors, out),
    };
    let text = in_force(global)?;
    let current: Policy =
        policy::parse(&text.text, Path::new(&text.path)).map_err(CliError::ForeignPolicy)?;
    let diff = policy::diff::diff(&current, &wanted);
    if global.json {
        write_json(out, &diff)?;
    } else if diff.is_empty() {
        writeln!(out, "nothing changes")?;
    } else {
        for line in diff.to_string().lines() {
            writeln!(out, "{}", safe(line))?;
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
