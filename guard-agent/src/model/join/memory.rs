//! Memory of a node's machine: it outlives the superblocks of the pools, and the agent.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{NodeState, Pools};

/// Owners of the pools, by their lasting ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Pools that are this server's own: it had them as a standalone server, or an operator said
    /// so.
    pub own: BTreeSet<u64>,
    /// Pools that lived while a join ran or had failed, or while the node was a member. A
    /// configuration that says "standalone" is not believed of them: Incus mounts the pools of its
    /// database at every start, and would delete the cluster's data as its own.
    pub foreign: BTreeSet<u64>,
    /// A join has begun here and ended without a membership. The daemon's database may have pools
    /// of it that nobody has seen mounted yet.
    pub join_failed: bool,
}

impl Memory {
    /// Pools that live while the node is between the worlds, or rolled back, are not the node's own
    /// unless they were before. Pools that live while it is a member are always the cluster's.
    pub(super) fn note(&mut self, state: &NodeState, alive: Option<&Pools>) {
        let ids: Vec<u64> = alive.into_iter().flat_map(|alive| alive.values().copied()).collect();
        if state.is_member() {
            self.own.retain(|own| !ids.contains(own));
            self.foreign.extend(&ids);
            self.join_failed = false;
        } else if state.is_between() || *state == NodeState::Released {
            self.foreign.extend(ids.iter().filter(|id| !self.own.contains(id)));
            self.join_failed = true;
        }
    }

    /// An operator's word: these are the node's own, and nothing of a join is left.
    pub(super) fn adopt(&mut self, alive: Option<&Pools>) {
        let ids: Vec<u64> = alive.into_iter().flat_map(|alive| alive.values().copied()).collect();
        self.foreign.retain(|foreign| !ids.contains(foreign));
        self.own.extend(ids);
        self.join_failed = false;
    }
}
