//! The states of a node, and the mode of its pools in each.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Incarnation;

/// State of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "name")]
pub enum NodeState {
    /// Evidence is missing or contradictory. Earlier proof that nothing has contradicted is kept.
    Unknown { kept: Kept },
    /// No cluster is configured.
    Standalone,
    /// A join runs, or is about to.
    Joining { seen: JoinSeen },
    /// A member of its cluster, as this life of the daemon has confirmed.
    Joined { confirmed_by: Incarnation },
    /// A member, as far as is known, that cannot be asked: its daemon does not run, has started
    /// anew, or does not answer (it waits for the other members' upgrade, say). No news is no bad
    /// news, for however long.
    Unconfirmed {
        /// The life of the daemon that confirmed it; none if no agent has ever seen that.
        confirmed_by: Option<Incarnation>,
        /// It has not answered for so long that its daemon may not delete any more: it may have
        /// been removed.
        held: bool,
    },
    /// It was a member, and has left its cluster in order. Pools mounted from now on are its own.
    Left,
    /// A join ended without membership, or one was begun and nothing runs any more.
    JoinFailed,
    /// Raft nodes are set, and something speaks against a membership: the cluster does not list the
    /// node, has removed it, or a join broke off.
    JoinPartial,
    /// Pools are being unmounted.
    RollingBack,
    /// Rolled back, and no superblock of a pool is left.
    Released,
}

/// The last proven state of an unknown node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "was")]
pub enum Kept {
    /// Nothing: its pools are sealed.
    Nothing,
    /// Standalone: policy's mode stays.
    Standalone,
}

/// Source of the knowledge of a join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JoinSeen {
    /// `guardctl join` said that it will start one. Evidence cannot show it yet.
    Prepared,
    /// Incus runs it.
    Running,
}

/// The mode that a state gives the node's pools.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum NodeMode {
    /// The policy's mode: guarded, if it names none.
    Policy,
    /// Guests go on; everyone else is denied, the storage daemon included.
    Held,
    /// Everyone is denied, the storage daemon included.
    #[default]
    Sealed,
}

/// The modes of a node's pools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolModes {
    /// Of those that a look has spoken for.
    pub mode: NodeMode,
    /// Their generations.
    pub confirmed: BTreeSet<u64>,
    /// Of every other pool: it may come from a join whose beginning nobody has heard of.
    pub others: NodeMode,
}

impl PoolModes {
    /// The mode of one pool.
    pub fn of(&self, generation: u64) -> NodeMode {
        if self.confirmed.contains(&generation) { self.mode } else { self.others }
    }
}

impl NodeState {
    /// The mode of the node's pools that a look has spoken for.
    pub fn mode(&self) -> NodeMode {
        match self {
            Self::Standalone
            | Self::Joined { .. }
            | Self::Left
            | Self::Unconfirmed { held: false, .. }
            | Self::Unknown { kept: Kept::Standalone } => NodeMode::Policy,
            Self::Unconfirmed { held: true, .. } => NodeMode::Held,
            Self::Unknown { kept: Kept::Nothing }
            | Self::Joining { .. }
            | Self::JoinFailed
            | Self::JoinPartial
            | Self::RollingBack
            // No pool is left; one that appears all the same is sealed.
            | Self::Released => NodeMode::Sealed,
        }
    }

    /// The mode of pools that no look has spoken for: they may come from a join. A member has none
    /// to fear, and guests that must go on.
    pub(super) fn mode_of_others(&self) -> NodeMode {
        if self.is_member() { NodeMode::Held } else { NodeMode::Sealed }
    }

    /// Stable name, as in the journal, on the socket and in the audit log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "unknown",
            Self::Standalone => "standalone",
            Self::Joining { .. } => "joining",
            Self::Joined { .. } => "joined",
            Self::Unconfirmed { .. } => "unconfirmed",
            Self::Left => "left",
            Self::JoinFailed => "join-failed",
            Self::JoinPartial => "join-partial",
            Self::RollingBack => "rolling-back",
            Self::Released => "released",
        }
    }

    /// The part of the written state that an agent may still believe when it starts.
    #[must_use]
    pub fn after_restart(self) -> Self {
        match self {
            Self::Joined { confirmed_by } => {
                Self::Unconfirmed { confirmed_by: Some(confirmed_by), held: false }
            }
            Self::Standalone => Self::Unknown { kept: Kept::Standalone },
            // The preparing command may be gone, and has to ask again: sealed until evidence
            // decides.
            Self::Joining { .. } => Self::Joining { seen: JoinSeen::Running },
            // A rollback died with its agent, and the next one begins it anew
            // (`Agent::drive_nodes`).
            Self::Unknown { .. }
            | Self::Unconfirmed { .. }
            | Self::Left
            | Self::JoinFailed
            | Self::JoinPartial
            | Self::RollingBack
            | Self::Released => self,
        }
    }

    /// A join has ended without membership, and somebody has to do something about it.
    pub fn has_failed(&self) -> bool {
        matches!(self, Self::JoinFailed | Self::JoinPartial)
    }

    /// A join runs or has left something: mounted pools may be its remains.
    pub(super) fn is_between(&self) -> bool {
        matches!(
            self,
            Self::Joining { .. } | Self::JoinFailed | Self::JoinPartial | Self::RollingBack
        )
    }

    /// A member of a cluster, as far as is known: its pools are the cluster's.
    pub(super) fn is_member(&self) -> bool {
        matches!(self, Self::Joined { .. } | Self::Unconfirmed { .. })
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
