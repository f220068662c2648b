//! The states of a node, and the mode of its pools in each.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Incarnation;

/// Where a node stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "name")]
pub enum State {
    /// Evidence is missing or contradictory. What was proven before, and nothing has spoken against, is kept.
    Unknown { kept: Kept },
    /// No cluster is configured.
    Standalone,
    /// A join runs, or is about to.
    Joining { seen: JoinSeen },
    /// A member of its cluster, as this life of the daemon has confirmed.
    Joined { confirmed_by: Incarnation },
    /// A join ended without membership, or one was begun and nothing runs any more.
    JoinFailed,
    /// Raft nodes are set, and the node is no member, or its database does not answer.
    JoinPartial,
    /// Pools are being unmounted.
    RollingBack,
    /// Rolled back, and no superblock of a pool is left.
    Released,
}

/// What an unknown node was last proven to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "was")]
pub enum Kept {
    /// Nothing: its pools are sealed.
    Nothing,
    /// A member, confirmed by this life of the daemon: guests may be running, policy's mode stays.
    Joined { confirmed_by: Incarnation },
    /// Standalone: policy's mode stays.
    Standalone,
}

/// How a join is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JoinSeen {
    /// `guardctl join` said that it will start one. Evidence cannot show it yet.
    Prepared,
    /// Incus runs it.
    Running,
}

/// What a state makes of the node's pools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeMode {
    /// What policy says: guarded, if it says nothing else.
    Policy,
    /// Everyone is denied, the storage daemon included.
    #[default]
    Sealed,
}

/// The modes of a node's pools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolModes {
    /// Of those that a look has spoken for.
    pub mode: NodeMode,
    /// Their generations. Every other pool is sealed: it may come from a join whose beginning nobody has heard of.
    pub confirmed: BTreeSet<u64>,
}

impl PoolModes {
    /// The mode of one pool.
    pub fn of(&self, generation: u64) -> NodeMode {
        if self.confirmed.contains(&generation) { self.mode } else { NodeMode::Sealed }
    }
}

impl State {
    /// The mode of the node's pools that a look has spoken for.
    pub fn mode(&self) -> NodeMode {
        match self {
            Self::Standalone
            | Self::Joined { .. }
            | Self::Unknown { kept: Kept::Joined { .. } | Kept::Standalone } => NodeMode::Policy,
            Self::Unknown { kept: Kept::Nothing }
            | Self::Joining { .. }
            | Self::JoinFailed
            | Self::JoinPartial
            | Self::RollingBack
            // No pool is left; one that appears all the same is sealed.
            | Self::Released => NodeMode::Sealed,
        }
    }

    /// Stable name, as in the journal, on the socket and in the audit log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "unknown",
            Self::Standalone => "standalone",
            Self::Joining { .. } => "joining",
            Self::Joined { .. } => "joined",
            Self::JoinFailed => "join-failed",
            Self::JoinPartial => "join-partial",
            Self::RollingBack => "rolling-back",
            Self::Released => "released",
        }
    }

    /// What an agent that starts may still believe of what the one before has written down.
    #[must_use]
    pub fn after_restart(self) -> Self {
        match self {
            Self::Joined { confirmed_by } => Self::Unknown { kept: Kept::Joined { confirmed_by } },
            Self::Standalone => Self::Unknown { kept: Kept::Standalone },
            // Whoever prepared it may be gone, and would have to say so again: sealed until evidence decides.
            Self::Joining { .. } => Self::Joining { seen: JoinSeen::Running },
            // A rollback died with its agent, and the next one begins it anew (`Owner::drive_nodes`).
            Self::Unknown { .. }
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

    /// A join runs or has left something: what is mounted now may be its remains.
    pub(super) fn is_between(&self) -> bool {
        matches!(self, Self::Joining { .. } | Self::JoinFailed | Self::JoinPartial | Self::RollingBack)
    }
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
