//! A guest's work that must never be denied, in any state of the agent, beside a host that always
//! is.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::agent::{Agent, Installation};
use super::attempt::denied;
use super::command;

/// State of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Running,
    Killed,
    Upgraded,
}

/// The host, which is denied.
#[derive(Debug, Default)]
pub struct Beside {
    refused: Cell<u64>,
}

impl Beside {
    /// The host's own deletion of this very file is denied: once, and it counts.
    pub fn keeps(&self, file: &Path) -> Result<()> {
        let what = format!("the host's unlink of {}", file.display());
        denied(&what, fs::remove_file(file))?;
        self.refused.set(self.refused.get() + 1);
        Ok(())
    }
}

/// Has the work done three times: with the agent running, killed and upgraded. The kernel's
/// counters must end with exactly as many denials as the host has had, and the audit log must name
/// nobody else.
pub fn never_denied(
    installation: &Installation,
    agent: Agent,
    work: impl Fn(&Beside, When) -> Result<()>,
) -> Result<()> {
    let before = denials(installation)?;
    let beside = Beside::default();
    work(&beside, When::Running).context("with the agent running")?;
    agent.kill()?;
    work(&beside, When::Killed).context("with the agent killed")?;
    let agent = installation.start_upgraded()?;
    work(&beside, When::Upgraded).context("with the agent upgraded")?;
    let found = denials(installation)? - before;
    let refused = beside.refused.get();
    ensure!(refused > 0, "the host has tried nothing");
    let of_others = of_others(installation)?;
    ensure!(
        found == refused,
        "{found} denials, and {refused} of them the host's: {of_others:#?}\nthe agent's log:\n{}",
        agent.log()
    );
    ensure!(of_others.is_empty(), "denied to a guest, by the audit log: {of_others:#?}");
    Ok(())
}

/// All denials that the kernel has counted, for any reason.
fn denials(installation: &Installation) -> Result<u64> {
    let output = installation.guardctl(&["status", "--json"])?;
    let status: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("parse the status: {}", command::text(&output)))?;
    let counters = status["counters"].as_object().context("the status has no counters")?;
    let of_denials = counters.iter().filter(|(name, _)| name.starts_with("denied_"));
    let numbers: Vec<u64> = of_denials.filter_map(|(_, count)| count.as_u64()).collect();
    ensure!(numbers.len() > 1, "the status counts no denials: {status}");
    Ok(numbers.iter().sum())
}

/// Recorded denials of processes that are in another mount namespace than this one.
fn of_others(installation: &Installation) -> Result<Vec<Value>> {
    let own = fs::metadata("/proc/self/ns/mnt").context("look at the own mount namespace")?.ino();
    let mut decisions: Vec<Value> = installation.audit_records()?;
    decisions
        .retain(|record| record["kind"] == "decision" && record["decision"]["verdict"] == "denied");
    ensure!(!decisions.is_empty(), "the audit log has no denial");
    decisions.retain(|record| record["decision"]["mnt_ns"] != own);
    Ok(decisions)
}
