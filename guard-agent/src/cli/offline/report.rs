//! Known facts about a host whose agent does not answer, as JSON and for `guardctl`'s text. Pure.

use std::collections::BTreeMap;

use guard_common::{Counter, Tier};
use serde::Serialize;

use super::places::Why;
use super::silence::Silence;
use crate::model::audit::record::{AgentBody, PolicyBody, Record};
use crate::model::control::report::{AnsweredBy, LeaseReport, PoolReport, Reconciled};
use crate::model::events::Name;
use crate::model::posture;
use crate::model::time::Time;

/// Everything that `guardctl status` shows then. A null value is not known: see `unknown`.
#[derive(Clone, Debug, Serialize)]
pub struct OfflineReport {
    pub posture: OfflinePosture,
    pub in_force: Option<InForce>,
    /// The last that the audit log says of the agent.
    pub agent: Option<Known<AgentBody>>,
    /// The last that the audit log says of a policy.
    pub policy: Option<Known<PolicyBody>>,
    pub pools: Option<Vec<PoolReport>>,
    pub leases: Option<Vec<LeaseReport>>,
    pub nodes: Option<Vec<NodeOnFile>>,
    pub counters: Option<Counters>,
    /// The last lines of the audit log.
    pub events: Vec<Record>,
    /// Facts that could not be read, and why.
    pub unknown: Vec<Unknown>,
    pub time: Time,
    pub answered_by: AnsweredBy,
}

/// Nothing is proven without an agent.
#[derive(Clone, Debug, Serialize)]
pub struct OfflinePosture {
    /// Always `unproven`.
    pub state: &'static str,
    pub agent: Silence,
    /// The last that the audit log says.
    pub last: Option<Known<LastPosture>>,
}

impl OfflinePosture {
    pub(super) fn unproven(agent: Silence, last: Option<Known<LastPosture>>) -> Self {
        Self { state: "unproven", agent, last }
    }
}

/// A posture that was written down.
#[derive(Clone, Debug, Serialize)]
pub struct LastPosture {
    pub state: posture::PostureState,
    pub tier: Option<Name<Tier>>,
    /// Codes of its reasons.
    pub reasons: Vec<String>,
}

/// A record's content, and its time.
#[derive(Clone, Debug, Serialize)]
pub struct Known<T> {
    pub time: Time,
    #[serde(flatten)]
    pub what: T,
}

/// Enforcement that holds without an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InForce {
    /// Loads of the kernel programs. Of several each decides.
    pub loads: Vec<Load>,
    /// Processes that answer in the tier `fanotify`.
    pub responders: Vec<Responder>,
    /// Mounts that were made read-only in the tier `fanotify`.
    pub read_only_mounts: usize,
}

impl InForce {
    /// Whether nothing denies anything, for certain.
    pub fn is_nothing(&self) -> bool {
        self.loads.iter().all(|load| load.linked.is_empty())
            && self.responders.is_empty()
            && self.read_only_mounts == 0
    }
}

/// One load of the programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Load {
    pub tier: Name<Tier>,
    /// Start of the hash of the loaded object.
    pub identity: String,
    /// Hooks whose programs are pinned and attached.
    pub linked: Vec<String>,
    /// Hooks whose programs are pinned, and their links are not.
    pub unlinked: Vec<String>,
}

/// A process that answers in the tier `fanotify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Responder {
    pub pid: u32,
    /// A signal has stopped it: processes that open a directory of a pool wait.
    pub is_stopped: bool,
}

/// A node's journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeOnFile {
    pub root: String,
    pub state: String,
    pub since: Time,
    pub because: Option<String>,
}

/// The kernel's counters.
#[derive(Clone, Debug, Serialize)]
pub struct Counters {
    pub reconciled: Reconciled,
    pub by_name: BTreeMap<String, u64>,
}

impl Counters {
    pub(super) fn of(counters: &BTreeMap<Counter, u64>) -> Self {
        let by_name =
            counters.iter().map(|(counter, value)| (counter.name().to_owned(), *value)).collect();
        Self { reconciled: Reconciled::of(counters), by_name }
    }
}

/// Something that is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unknown {
    pub what: String,
    pub why: String,
    /// Root would know it.
    pub needs_root: bool,
}

impl Unknown {
    pub(super) fn of(what: &str, why: &Why) -> Self {
        Self { what: what.to_owned(), why: why.to_string(), needs_root: why.needs_root() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_in_force_only_if_nothing_at_all_is() {
        let load = |linked: &[&str]| Load {
            tier: Name(Tier::BpfLsm),
            identity: "c0ffee".to_owned(),
            linked: linked.iter().map(|hook| (*hook).to_owned()).collect(),
            unlinked: vec!["path_rmdir".to_owned()],
        };
        assert!(InForce::default().is_nothing());
        assert!(InForce { loads: vec![load(&[])], ..InForce::default() }.is_nothing());
        assert!(
            !InForce { loads: vec![load(&["path_unlink"])], ..InForce::default() }.is_nothing()
        );
        let responders = vec![Responder { pid: 7, is_stopped: true }];
        assert!(!InForce { responders, ..InForce::default() }.is_nothing());
        assert!(!InForce { read_only_mounts: 1, ..InForce::default() }.is_nothing());
    }
}
