//! Everything that the desired content of the maps follows from, and the overrides of the policy.

use std::collections::{BTreeMap, BTreeSet};

use guard_common::Mode;
use guard_common::policy::POOL_OPERATOR;

use super::content::{Observed, Resolved};
use super::entries::is_pool;
use crate::model::classify::Classification;
use crate::model::join::{NodeMode, PoolModes};
use crate::model::policy::{DefaultMode, Policy};

/// Decisions beside the policy: operators' on single pools, and those that follow from the states
/// of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Pool ids that an operator has sealed, also after a remount.
    pub sealed: BTreeSet<u64>,
    /// Pool ids that a starting agent found sealed without a reason that it knows: sealed until an
    /// operator says otherwise, or the next boot.
    pub found_sealed: BTreeSet<u64>,
    /// Releases: generation → end on the boot clock in nanoseconds. A release dies with its
    /// superblock, and goes before a seal while it lasts.
    pub released: BTreeMap<u64, u64>,
    /// By the actor set of the node's root. A root without an entry is no node.
    pub nodes: BTreeMap<u32, PoolModes>,
}

/// The mode of a node's pools by policy and state. A root that is only observed denies nothing: its
/// operator is trying the barrier.
pub fn node_mode(policy: DefaultMode, state: NodeMode) -> Mode {
    match (policy, state) {
        (DefaultMode::Observed, _) | (_, NodeMode::Policy) => policy.mode(),
        (DefaultMode::Sealed, NodeMode::Held) | (_, NodeMode::Sealed) => Mode::Sealed,
        (DefaultMode::Guarded, NodeMode::Held) => Mode::Held,
    }
}

impl Overrides {
    /// Whether a pool is sealed beside policy and its node's state.
    pub fn is_sealed(&self, pool_id: u64) -> bool {
        self.sealed.contains(&pool_id) || self.found_sealed.contains(&pool_id)
    }

    /// Whether some pool may be sealed or held: else its other mounts need not be known.
    pub fn may_seal(&self, policy: &Policy) -> bool {
        !self.sealed.is_empty()
            || !self.found_sealed.is_empty()
            || self
                .nodes
                .values()
                .any(|modes| modes.mode != NodeMode::Policy || modes.others != NodeMode::Policy)
            || policy.roots().iter().any(|root| root.default_mode() == DefaultMode::Sealed)
            || !self.released.is_empty()
    }

    /// The overrides that a starting agent finds in force. Releases go on until they end, an
    /// operator's seal holds even without the state file, and a pool that is sealed although policy
    /// says otherwise stays sealed: weakening needs an operator, not a restart. (If an Incus is
    /// followed, its state says whether it stays sealed.)
    pub fn adopt(observed: &Observed, policy: &Policy, now_boot_ns: u64) -> Self {
        let mut overrides = Self::default();
        for entry in observed.pools.values().filter(|entry| is_pool(entry)) {
            let root = policy.root_of_actor_set(entry.actor_set);
            let by_operator = entry.flags & POOL_OPERATOR != 0;
            if by_operator {
                overrides.sealed.insert(entry.pool_id);
            }
            match Mode::from_u32(entry.mode) {
                Some(Mode::Released) if entry.expires_boot_ns > now_boot_ns => {
                    overrides.released.insert(entry.generation, entry.expires_boot_ns);
                }
                Some(Mode::Sealed)
                    if !by_operator
                        && root.is_some_and(|root| {
                            root.default_mode() != DefaultMode::Sealed && root.incus().is_none()
                        }) =>
                {
                    overrides.found_sealed.insert(entry.pool_id);
                }
                _ => {}
            }
        }
        overrides
    }
}

/// Everything that the desired content follows from.
#[derive(Clone, Copy, Debug)]
pub struct Desired<'a> {
    pub policy: &'a Policy,
    pub classification: &'a Classification,
    pub resolved: &'a Resolved,
    pub overrides: &'a Overrides,
    /// Inode of the mount namespace of PID 1.
    pub host_mnt_ns: u32,
    pub now_boot_ns: u64,
    /// `Meta::next_generation`, at least 1.
    pub next_generation: u64,
}
