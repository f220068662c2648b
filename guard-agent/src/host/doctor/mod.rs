//! Is this host fit to be protected? Every precondition, its state, and the exact fix.
//!
//! `facts` reads `/proc`, `/sys` and `/boot` below a root directory; `trial` has the kernel judge
//! the needs of a tier; the checks here are pure.

mod check;
mod facts;
mod fix;
mod host;
#[cfg(test)]
mod tests;
mod tiers;
mod trial;

use std::fmt;

use guard_common::Tier;

pub use check::{Check, CheckState};
pub use facts::{HostFacts, KernelOption, Trial, Trials};
pub use tiers::known_obstacle;

use host::{
    active_lsm, bpffs, btf, capabilities, cgroup2, config_bpf_lsm, kernel_version, lockdown,
    mount_namespace, pid_namespace, security_path,
};

use crate::model::hints::Hint;
use crate::model::policy::{Policy, PolicyErrors};

/// All checks of the host itself.
pub fn checks(facts: &HostFacts) -> Vec<Check> {
    let mut checks = vec![
        kernel_version(facts),
        btf(facts),
        of_bpf_lsm_alone(facts, config_bpf_lsm(facts)),
        of_bpf_lsm_alone(facts, active_lsm(facts)),
        security_path(facts),
        lockdown(facts),
        capabilities(facts),
        bpffs(facts),
        cgroup2(facts),
        pid_namespace(facts),
        mount_namespace(facts),
    ];
    checks.extend(tiers::tiers(facts));
    checks
}

/// A lack that only the strongest tier has is no failure where the next tier is available.
fn of_bpf_lsm_alone(facts: &HostFacts, check: Check) -> Check {
    match check.state {
        CheckState::Fail if tiers::is_available(facts, Tier::FmodRet) => {
            Check { state: CheckState::Warn, ..check }
        }
        _ => check,
    }
}

/// Checks of the agent's own directories against a policy.
pub fn directory_checks(policy: &Policy, directories: &[&std::path::Path]) -> Vec<Check> {
    let name = "directories";
    let inside = directories.iter().filter_map(|directory| {
        let root = policy.roots().iter().find(|root| directory.starts_with(root.path()))?;
        let found =
            format!("{} is below the guarded root {}", directory.display(), root.path().display());
        let fix = "choose a directory outside every guarded root (--state-dir, --run-dir, \
                   --audit): whoever wipes the root would wipe the agent's state";
        Some(Check::fail("state-below-root", name, found, fix))
    });
    let inside: Vec<Check> = inside.collect();
    if inside.is_empty() {
        return vec![Check::ok("state-below-root", name, "outside every guarded root")];
    }
    inside
}

/// A line for each hint about the policy file, or one that says that there is none.
pub fn policy_checks(hints: &Result<Vec<Hint>, PolicyErrors>) -> Vec<Check> {
    const NAME: &str = "policy";
    match hints {
        Err(errors) => {
            let found = errors.to_string().lines().next().unwrap_or_default().to_owned();
            vec![Check::warn(
                "policy-wrong",
                NAME,
                found,
                "correct the file: guardctl policy check",
            )]
        }
        Ok(hints) if hints.is_empty() => {
            vec![Check::ok("policy", NAME, "nothing to look at again")]
        }
        Ok(hints) => hints
            .iter()
            .map(|hint| Check::warn(&hint.code, NAME, hint.what.clone(), hint.fix.clone()))
            .collect(),
    }
}

/// The worst state among checks.
pub fn worst(checks: &[Check]) -> CheckState {
    checks.iter().map(|check| check.state).max().unwrap_or(CheckState::Ok)
}

/// The result of all checks, in a line.
pub fn summary(checks: &[Check]) -> String {
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    let (failed, warned) = (count(CheckState::Fail), count(CheckState::Warn));
    let plural = if warned == 1 { "" } else { "s" };
    format!("{} checks, {failed} failed, {warned} warning{plural}", checks.len())
}

/// Checks as aligned lines, for people.
#[derive(Debug)]
pub struct Report<'c>(pub &'c [Check]);

impl fmt::Display for Report<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|check| check.name.len()).max().unwrap_or(0);
        for check in self.0 {
            let state = match check.state {
                CheckState::Ok => "ok  ",
                CheckState::Warn => "WARN",
                CheckState::Fail => "FAIL",
            };
            writeln!(out, "{state}  {:width$}  {}", check.name, check.found)?;
            for line in check.fix.iter().flat_map(|fix| fix.lines()) {
                writeln!(out, "      {:width$}  > {line}", "")?;
            }
            for line in check.log.iter().flat_map(|log| log.lines()) {
                writeln!(out, "      {:width$}  | {line}", "")?;
            }
        }
        Ok(())
    }
}
