//! The agent's reports about itself.

use guard_common::Mode;

use std::path::Path;

use super::Agent;
use crate::daemon::node::Node;
use crate::daemon::pool_book::KnownPool;
use crate::host::bpf::object;
use crate::host::clock;
use crate::host::clock::now;
use crate::model::audit::record::{device_text, pool_id_text};
use crate::model::control::Refusal;
use crate::model::control::report::{
    AgentReport, AnsweredBy, LeaseReport, NodeHistory, NodeReport, PolicyReport, PolicyText,
    PoolCountersReport, PoolReport, PostureReport, Reconciled, RootReport, StatusReport,
    TransitionReport,
};
use crate::model::errors::chain;
use crate::model::events::Name;
use crate::model::hints;
use crate::model::hints::Hint;
use crate::model::join::{Kept, NodeState, Transition};
use crate::model::posture;
use crate::model::posture::Posture;
use crate::model::time::Time;

const SECOND: u64 = 1_000_000_000;

impl Agent {
    /// Everything that `guardctl status` shows.
    pub(super) fn status(&self) -> StatusReport {
        let counters = self.enforcement.maps.counters().unwrap_or_default();
        let unknown = Posture {
            state: posture::PostureState::Inactive,
            reasons: Vec::new(),
            tier: None,
            gaps: Vec::new(),
        };
        StatusReport {
            posture: PostureReport {
                posture: self.posture.posture().cloned().unwrap_or(unknown),
                proven_at: self.enforcement.proven_at(),
            },
            agent: AgentReport {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                build: object::BUILD.to_owned(),
                pid: std::process::id(),
                started: self.pulse.started,
                layout: guard_common::LAYOUT_VERSION,
            },
            policy: PolicyReport {
                path: self.policy.file().display().to_string(),
                generation: self.policy.generation,
                hash: self.policy.current.hash().to_owned(),
                loaded: self.policy.loaded,
                rejected: self.policy.rejected.clone(),
            },
            hints: self.hints(),
            pools: self.pool_reports(),
            roots: self.root_reports(),
            nodes: self.node_reports(),
            leases: self.lease_reports(),
            reconciled: Reconciled::of(&counters),
            counters: counters
                .iter()
                .map(|(counter, value)| (counter.name().to_owned(), *value))
                .collect(),
            audit: self.trail.status(),
            answered_by: AnsweredBy::Agent,
        }
    }

    fn hints(&self) -> Vec<Hint> {
        let effective = self.view.effective(&self.policy.current);
        let mut found = hints::lint(&self.policy.current);
        found.extend(hints::unresolved(&self.policy.current, &self.view.resolution.resolved));
        found.extend(hints::unnamed_shares(&effective, &self.view.snapshot));
        found
    }

    /// All pools, in the order of their names.
    pub(super) fn pool_reports(&self) -> Vec<PoolReport> {
        let mut pools: Vec<PoolReport> =
            self.book.pools().map(|known| self.pool_report(known)).collect();
        pools.sort_by(|a, b| (&a.name, a.generation).cmp(&(&b.name, b.generation)));
        pools
    }

    pub(super) fn pool_report(&self, known: &KnownPool) -> PoolReport {
        let moment = now().boot_ns;
        // The kernel's clock decides: an entry may say `released` when its time is over.
        let expired = known.mode == Mode::Released && known.entry.expires_boot_ns <= moment;
        let released = known.mode == Mode::Released && !expired;
        let counters =
            self.enforcement.maps.pool_totals(known.entry.generation).unwrap_or_default();
        PoolReport {
            name: known.pool.name.clone(),
            pool_id: pool_id_text(known.pool.pool_id),
            device: device_text(known.pool.dev),
            filesystem: known.pool.fs_type.clone(),
            source: known.pool.source.clone(),
            mountpoints: known
                .pool
                .mountpoints
                .iter()
                .map(|path| path.display().to_string())
                .collect(),
            root: Some(known.root.display().to_string()),
            mode: Name(if expired { Mode::Sealed } else { known.mode }),
            mode_cause: Some(known.cause),
            generation: known.entry.generation,
            release_ends: released.then(|| wall(known.entry.expires_boot_ns)),
            remaining_seconds: released.then(|| (known.entry.expires_boot_ns - moment) / SECOND),
            counters: PoolCountersReport::from(counters),
            answered_by: AnsweredBy::Agent,
        }
    }

    fn root_reports(&self) -> Vec<RootReport> {
        let roots = self.policy.current.roots().iter().enumerate();
        roots
            .map(|(index, root)| {
                let found = self.view.resolution.resolved.roots.get(index).copied().flatten();
                RootReport {
                    path: root.path().display().to_string(),
                    in_force: found.is_some(),
                    detail: found.is_none().then(|| {
                        let path = root.path().display().to_string();
                        let mut problems = self.view.resolution.problems.iter().map(|p| chain(p));
                        let problem = problems.find(|problem| problem.contains(&path));
                        problem.unwrap_or_else(|| {
                            format!("{path} is not there: it is guarded when it appears")
                        })
                    }),
                    filesystems: root.filesystems().to_vec(),
                    mode: Name(root.default_mode().mode()),
                }
            })
            .collect()
    }

    fn node_reports(&self) -> Vec<NodeReport> {
        let report = |(root, node): (&Path, &Node)| {
            let state = node.state();
            let kept = match state {
                NodeState::Unconfirmed { confirmed_by: Some(_), .. } => Some("joined"),
                NodeState::Unknown { kept: Kept::Standalone } => Some("standalone"),
                _ => None,
            };
            let unconfirmed = node.machine().unconfirmed();
            let waiting = unconfirmed.iter().filter_map(|generation| self.book.get(*generation));
            NodeReport {
                root: root.display().to_string(),
                state: state.name().to_owned(),
                kept: kept.map(str::to_owned),
                mode: self.node_mode_name(root, state.mode()),
                unconfirmed: waiting.map(|known| known.pool.name.clone()).collect(),
                since: node.journal.since,
                because: node.journal.because().map(str::to_owned),
                evidence: node.seen.as_ref().map(|(_, evidence)| evidence.clone()),
                looked: node.seen.as_ref().map(|(time, _)| *time),
            }
        };
        self.nodes.iter().map(report).collect()
    }

    /// History of one node, or of each.
    pub(super) fn histories(&self, root: Option<&str>) -> Result<Vec<NodeHistory>, Refusal> {
        let wanted = |path: &Path| root.is_none_or(|root| path == Path::new(root));
        let histories: Vec<NodeHistory> = self
            .nodes
            .iter()
            .filter(|(path, _)| wanted(path))
            .map(|(path, node)| history(path, node))
            .collect();
        match root {
            Some(root) if histories.is_empty() => {
                let nodes = self.nodes.iter().map(|(path, _)| path.display().to_string()).collect();
                Err(Refusal::NoSuchNode { root: Some(root.to_owned()), nodes })
            }
            _ => Ok(histories),
        }
    }

    /// All leases that run.
    pub(super) fn lease_reports(&self) -> Vec<LeaseReport> {
        let moment = now().boot_ns;
        self.grants.leases().iter().map(|lease| LeaseReport::of(lease, moment)).collect()
    }

    /// The policy in force.
    pub(super) fn policy_text(&self) -> PolicyText {
        PolicyText {
            path: self.policy.file().display().to_string(),
            generation: self.policy.generation,
            hash: self.policy.current.hash().to_owned(),
            text: self.policy.text.clone(),
            effective: serde_json::to_value(&self.policy.current)
                .unwrap_or(serde_json::Value::Null),
        }
    }
}

fn history(root: &Path, node: &Node) -> NodeHistory {
    let transition = |transition: &Transition| TransitionReport {
        time: transition.time,
        from: transition.from.name().to_owned(),
        to: transition.to.name().to_owned(),
        because: transition.because.clone(),
    };
    NodeHistory {
        root: root.display().to_string(),
        state: node.state().name().to_owned(),
        since: node.journal.since,
        transitions: node.journal.history.iter().map(transition).collect(),
    }
}

/// A moment of the boot clock, on the wall clock as it is set now.
fn wall(boot_ns: u64) -> Time {
    clock::read().0.stamp(boot_ns).time
}
