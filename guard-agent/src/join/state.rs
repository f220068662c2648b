//! The states of a node.

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
    Joining,
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
    /// A member, confirmed by this life of the daemon: guests may be running, its pools stay guarded.
    Joined { confirmed_by: Incarnation },
    /// Standalone: its pools stay guarded.
    Standalone,
}
