//! The agent's reports about itself, as JSON on the socket and with `--json`. Pure.

use std::collections::BTreeMap;

use guard_common::{Counter, Mode};
use serde::{Deserialize, Serialize};

use super::refusal::RefusalReport;
use crate::model::audit::record::{LeaseKind, ModeCause};
use crate::model::events::Name;
use crate::model::hints::Hint;
use crate::model::join::Evidence;
use crate::model::posture::Posture;
use crate::model::rollback::{RollbackOutcome, StepReport};
use crate::model::state::Lease;
use crate::model::time::Time;

const SECOND: u64 = 1_000_000_000;

/// The source of the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnsweredBy {
    #[default]
    Agent,
    /// No agent: pins and files, which nobody has proven anew.
    PinsAndFiles,
}

/// Everything that `guardctl status` shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    pub posture: PostureReport,
    pub agent: AgentReport,
    pub policy: PolicyReport,
    /// Valid entries of the policy that are probably not meant, and shared filesystems without one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<Hint>,
    pub pools: Vec<PoolReport>,
    pub roots: Vec<RootReport>,
    /// The nodes whose join is followed.
    #[serde(default)]
    pub nodes: Vec<NodeReport>,
    pub leases: Vec<LeaseReport>,
    /// By the names of `guard_common::Counter`.
    pub counters: BTreeMap<String, u64>,
    pub reconciled: Reconciled,
    pub audit: AuditReport,
    #[serde(default)]
    pub answered_by: AnsweredBy,
}

/// The posture, and when the canary last proved it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PostureReport {
    #[serde(flatten)]
    pub posture: Posture,
    pub proven_at: Option<Time>,
}

/// The running agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentReport {
    pub version: String,
    pub build: String,
    pub pid: u32,
    pub started: Time,
    /// Layout of its maps; 0: an agent of before there was more than one.
    #[serde(default)]
    pub layout: u32,
}

/// The policy in force, and the edit that was not taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyReport {
    pub path: String,
    pub generation: u64,
    /// SHA-256 of its text.
    pub hash: String,
    pub loaded: Time,
    pub rejected: Option<RejectedPolicy>,
}

/// A policy file that is wrong; the one before stays in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RejectedPolicy {
    pub at: Time,
    /// Each with file, line and hint.
    pub errors: Vec<String>,
}

/// The policy in force as text and as the agent understood it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyText {
    pub path: String,
    pub generation: u64,
    pub hash: String,
    /// The source, as it was loaded.
    pub text: String,
    /// With presets and defaults filled in.
    pub effective: serde_json::Value,
}

/// One pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolReport {
    pub name: String,
    /// Sixteen hexadecimal digits.
    pub pool_id: String,
    /// `major:minor`.
    pub device: String,
    pub filesystem: String,
    pub source: String,
    pub mountpoints: Vec<String>,
    /// The guarded root above it; only the agent knows it.
    pub root: Option<String>,
    pub mode: Name<Mode>,
    /// The cause of the mode; only the agent knows it.
    pub mode_cause: Option<ModeCause>,
    pub generation: u64,
    /// In mode `released`: when that ends.
    pub release_ends: Option<Time>,
    pub remaining_seconds: Option<u64>,
    pub counters: PoolCountersReport,
    #[serde(default)]
    pub answered_by: AnsweredBy,
}

/// Decisions on one pool since it got its entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCountersReport {
    pub denied: u64,
    pub allowed: u64,
    pub would_deny: u64,
}

impl From<guard_common::PoolCounters> for PoolCountersReport {
    fn from(counters: guard_common::PoolCounters) -> Self {
        let guard_common::PoolCounters { denied, allowed, would_deny, .. } = counters;
        Self { denied, allowed, would_deny }
    }
}

/// A guarded root of the policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RootReport {
    pub path: String,
    /// The directory exists, and the kernel program knows it.
    pub in_force: bool,
    /// Why not, if not.
    pub detail: Option<String>,
    pub filesystems: Vec<String>,
    pub mode: Name<Mode>,
}

/// A node: a root whose Incus is followed on its way into a cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its guarded root.
    pub root: String,
    /// Name of its state.
    pub state: String,
    /// For an unknown node: its last proven state.
    pub kept: Option<String>,
    /// The mode that the state gives its pools.
    pub mode: Name<Mode>,
    /// Names of pools that are sealed all the same, until a look has spoken for them.
    pub unconfirmed: Vec<String>,
    pub since: Time,
    /// The evidence that drove the last transition.
    pub because: Option<String>,
    /// The last look at it.
    pub evidence: Option<Evidence>,
    pub looked: Option<Time>,
}

/// History of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeHistory {
    pub root: String,
    pub state: String,
    pub since: Time,
    /// The newest last.
    pub transitions: Vec<TransitionReport>,
}

/// A node went from one state to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransitionReport {
    pub time: Time,
    pub from: String,
    pub to: String,
    pub because: String,
}

/// A running lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeaseReport {
    pub id: String,
    pub pool: String,
    pub kind: LeaseKind,
    pub reason: String,
    pub uid: u32,
    pub login_uid: Option<u32>,
    pub granted: Time,
    pub ends: Time,
    pub remaining_seconds: u64,
}

impl LeaseReport {
    /// Report of a lease at a moment of the boot clock.
    pub fn of(lease: &Lease, now_boot_ns: u64) -> Self {
        Self {
            id: lease.id.clone(),
            pool: lease.pool.clone(),
            kind: lease.kind,
            reason: lease.reason.clone(),
            uid: lease.uid,
            login_uid: lease.login_uid,
            granted: lease.granted,
            ends: lease.ends,
            remaining_seconds: lease.ends_boot_ns.saturating_sub(now_boot_ns) / SECOND,
        }
    }
}

/// A rollback of one node: progress or outcome. Polled while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackReport {
    /// The node's guarded root.
    pub root: String,
    /// State of the node now.
    pub state: String,
    /// Whether this agent is at it.
    pub running: bool,
    pub lazy: bool,
    /// Unmounts so far.
    pub steps: Vec<StepReport>,
    /// Superblocks that nobody has mounted any more, and whose end is waited for.
    pub waiting_for: usize,
    /// Outcome of the rollback.
    pub outcome: Option<RollbackOutcome>,
    /// Why the node's state would refuse one now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<RefusalReport>,
}

/// `decisions = emitted + aggregated + lost`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconciled {
    pub decisions: u64,
    pub emitted: u64,
    pub aggregated: u64,
    pub lost: u64,
}

impl Reconciled {
    /// From the kernel's counters.
    pub fn of(counters: &BTreeMap<Counter, u64>) -> Self {
        let count = |counter: Counter| counters.get(&counter).copied().unwrap_or(0);
        Self {
            decisions: counters
                .iter()
                .filter(|(counter, _)| counter.is_audited())
                .map(|(_, n)| n)
                .sum(),
            emitted: count(Counter::RecordsEmitted),
            aggregated: count(Counter::RecordsAggregated),
            lost: count(Counter::RecordsLost),
        }
    }
}

/// The audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditReport {
    pub path: String,
    pub sequence: u64,
    pub write_failures: u64,
    pub dropped: u64,
    pub pending: usize,
}
