//! `guardctl doctor`: every precondition, its state, and the fix of each failure; and the gaps of
//! the policy file.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::error::CliError;
use super::global::{Global, write_json};
use super::policy::mount_table;
use crate::host::doctor::{Check, CheckState, HostFacts, Report, checks, policy_checks, summary};
use crate::host::policy_file;
use crate::host::{paths, roots};
use crate::model::exit::Exit;
use crate::model::hints;

#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Print the kernel's message too if it refuses a program.
    #[arg(long, short)]
    pub verbose: bool,
    /// The policy file to check. Ignored if it does not exist.
    #[arg(long, value_name = "FILE", default_value = paths::POLICY)]
    pub policy: PathBuf,
}

/// Checks this host. A warning is no failure.
pub fn run(global: &Global, args: &DoctorArgs, out: &mut impl Write) -> Result<Exit, CliError> {
    let mut checks = checks(&HostFacts::gather(Path::new("/")).with_trials());
    checks.extend(of_policy(&args.policy));
    if !args.verbose {
        checks.iter_mut().for_each(|check| check.log = None);
    }
    if global.json {
        write_json(out, &checks)?;
    } else {
        writeln!(out, "{}\n{}", Report(&checks), summary(&checks))?;
    }
    Ok(if checks.iter().any(|check| check.state == CheckState::Fail) {
        Exit::Degraded
    } else {
        Exit::Ok
    })
}

fn of_policy(file: &Path) -> Vec<Check> {
    // A host is looked at before it has a policy too.
    if !file.exists() {
        return Vec::new();
    }
    let policy = match policy_file::load(file) {
        Ok(policy) => policy,
        Err(errors) => return policy_checks(&Err(errors)),
    };
    let mut found = hints::lint(&policy);
    if let Ok(snapshot) = mount_table() {
        let resolution = roots::resolve(&policy, &snapshot);
        found.extend(hints::unresolved(&policy, &resolution.resolved));
        found.extend(hints::unnamed_shares(
            &policy.with_root_paths(&resolution.root_paths),
            &snapshot,
        ));
    }
    policy_checks(&Ok(found))
}
