//! Messages between nodes, observers and the agent's other parts.

use std::collections::BTreeMap;
use std::path::Path;

use guard_common::{Mode, PoolEntry};

use super::{Agent, ReconcileCause};
use crate::daemon::node::Node;
use crate::daemon::node_tracker::{NodeOutcome, root_at};
use crate::host::incus::Observation;
use crate::host::mount_table::MountWatch;
use crate::model::audit::Body;
use crate::model::audit::record::NodeBody;
use crate::model::events::Name;
use crate::model::join::{Event, NodeMode, NodeRefusal};
use crate::model::plan;
use crate::model::policy::{DefaultMode, Root};
use crate::model::posture::trouble;

impl Agent {
    /// Makes the nodes those of the policy.
    pub(super) fn take_up_nodes(&mut self) {
        // Maps that cannot be read are told of by the reconciliation that follows.
        let observed = self.enforcement.maps.observed().unwrap_or_default();
        let grants = &self.grants;
        let problem = self.nodes.follow(&self.policy.current, |root| {
            found_modes(&observed, root, |pool_id| grants.is_sealed(pool_id))
        });
        if let Some(problem) = problem {
            self.posture.troubles.set(trouble::STATE_LOST, problem);
        }
    }

    /// Observes some of the nodes, before they have observers. Returns whether the maps have to
    /// follow.
    pub(super) async fn observe_nodes_once(&mut self, which: impl Fn(&Node) -> bool) -> bool {
        let mut changed = false;
        for (root, observation) in self.nodes.observe_once(which).await {
            let told = self.nodes.observed(&root, observation);
            changed |= self.inform(&root, told);
        }
        changed
    }

    /// Takes an observer's observation.
    pub(super) fn observed(&mut self, root: &Path, observation: Observation, mounts: &MountWatch) {
        if let Observation::Evidence { evidence, .. } = &observation
            && self.nodes.of(root).is_some_and(|node| node.machine().wants_pools_before(evidence))
        {
            self.bring_up_to_date(ReconcileCause::Node, mounts);
        }
        let told = self.nodes.observed(root, observation);
        if self.inform(root, told) {
            self.bring_up_to_date(ReconcileCause::Node, mounts);
        }
    }

    /// Tells a node of an event that it cannot refuse. Returns whether the maps have to follow.
    pub(super) fn inform_node(&mut self, root: &Path, event: Event) -> bool {
        let told = self.nodes.tell(root, event);
        self.inform(root, told)
    }

    fn inform(&mut self, root: &Path, told: NodeOutcome) -> bool {
        let (changed, result) = self.take(root, told);
        if let Err(refusal) = result {
            tracing::warn!(root = %root.display(), %refusal, "the node has refused to be told what \
                                                              happened");
        }
        changed
    }

    /// Sends an event to a node and carries out its effects. Returns whether the maps have to
    /// follow.
    pub(super) fn tell_node(
        &mut self,
        root: &Path,
        event: Event,
    ) -> (bool, Result<(), NodeRefusal>) {
        let told = self.nodes.tell(root, event);
        self.take(root, told)
    }

    fn take(&mut self, root: &Path, told: NodeOutcome) -> (bool, Result<(), NodeRefusal>) {
        for change in told.changes {
            let body = NodeBody {
                root: root.display().to_string(),
                from: change.from.name().to_owned(),
                to: change.to.name().to_owned(),
                mode: self.node_mode_name(root, change.to.mode()),
                because: change.because,
            };
            self.write(Body::Node(body));
        }
        if told.rolls_back {
            self.begin_rollback(root);
        }
        self.assess_journals();
        (told.changed, told.result)
    }

    /// The mode that a node's pools have by its state.
    pub(super) fn node_mode_name(&self, root: &Path, mode: NodeMode) -> Name<Mode> {
        let policy = root_at(&self.policy.current, root).map(|root| root.default_mode());
        Name(plan::node_mode(policy.unwrap_or(DefaultMode::Guarded), mode))
    }

    /// Notes whether each node's journal on disk is current.
    pub(super) fn assess_journals(&mut self) {
        self.posture.troubles.set_if(trouble::JOURNAL, || self.nodes.unwritten());
    }
}

/// The modes that the kernel's maps give a root's pools, by generation. A seal from policy or an
/// operator says nothing of the node, and a release neither.
fn found_modes(
    observed: &plan::Observed,
    root: &Root,
    is_sealed: impl Fn(u64) -> bool,
) -> BTreeMap<u64, NodeMode> {
    let own = observed
        .pools
        .iter()
        .filter(|(key, entry)| entry.actor_set == root.actor_set() && plan::is_own(**key, entry));
    let found = |(_, entry): (_, &PoolEntry)| match Mode::from_u32(entry.mode)? {
        Mode::Guarded | Mode::Observed => Some((entry.generation, NodeMode::Policy)),
        Mode::Held => Some((entry.generation, NodeMode::Held)),
        Mode::Sealed => {
            let otherwise = root.default_mode() == DefaultMode::Sealed || is_sealed(entry.pool_id);
            (!otherwise).then_some((entry.generation, NodeMode::Sealed))
        }
        Mode::Released => None,
    };
    own.filter_map(found).collect()
}
