//! Changes on the agent's side, as the audit log tells them: pools, modes, leases, policy,
//! posture, and the agent itself. Pure.

use guard_common::Mode;
use serde::{Deserialize, Serialize};

use super::place::Place;
use crate::model::events::Name;
use crate::model::posture;
use crate::model::time::Time;

/// A change of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolChange {
    Appeared,
    Ended,
}

/// A pool appeared or ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolBody {
    pub change: PoolChange,
    #[serde(flatten)]
    pub place: Place,
    pub device: String,
    pub filesystem: String,
    pub source: String,
    pub mode: Option<Name<Mode>>,
}

/// The cause of a change of mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModeCause {
    Policy,
    Operator,
    Expiry,
    /// The state of the node on its way into a cluster.
    Join,
}

/// A pool's mode changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModeBody {
    #[serde(flatten)]
    pub place: Place,
    pub from: Option<Name<Mode>>,
    pub to: Name<Mode>,
    pub cause: ModeCause,
    /// The requester, if there was one.
    pub uid: Option<u32>,
    pub login_uid: Option<u32>,
}

/// A change of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseChange {
    Granted,
    Revoked,
    /// Its time is over.
    Expired,
    /// Its superblock is gone.
    Ended,
}

/// The permission that a lease gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseKind {
    /// Everyone may delete in the pool.
    Release,
    /// One command tree may.
    Command,
}

/// A lease was granted or is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeaseBody {
    pub change: LeaseChange,
    pub id: String,
    pub lease_kind: LeaseKind,
    #[serde(flatten)]
    pub place: Place,
    pub ttl_seconds: u64,
    pub ends: Time,
    /// The reason, as the requester gave it.
    pub reason: String,
    pub uid: u32,
    pub login_uid: Option<u32>,
}

/// A change of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyChange {
    Loaded,
    /// The policy of `generation` and `hash` stays in force.
    Rejected,
}

/// A policy was loaded or rejected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyBody {
    pub change: PolicyChange,
    pub path: String,
    /// Of the policy in force after this.
    pub generation: u64,
    /// SHA-256 of the text in force after this.
    pub hash: String,
    pub errors: Vec<String>,
}

/// The posture changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PostureBody {
    pub from: Option<posture::PostureState>,
    #[serde(flatten)]
    pub posture: posture::Posture,
}

/// A change of the agent itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentChange {
    Started,
    Stopped,
    /// It took over the pins of an agent of the same build.
    Adopted,
    /// It replaced the programs of an agent of another build.
    Upgraded,
}

/// The agent itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentBody {
    pub change: AgentChange,
    pub version: String,
    pub build: String,
    pub pid: u32,
    /// The build that was there before, for adopted and upgraded.
    pub previous_build: Option<String>,
}

/// A node went from one state of its join to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeBody {
    /// The node's guarded root.
    pub root: String,
    /// Names of states, see `docs/JOIN.md`.
    pub from: String,
    pub to: String,
    /// The mode that the state gives the node's pools.
    pub mode: Name<Mode>,
    /// The evidence that drove it.
    pub because: String,
}
