//! What happens to a node, and what its state machine wants done about it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Evidence, NodeMode, NodeState};

/// Orders questions and answers: an answer counts for weakening only if its question was asked
/// after the last event that spoke for something stronger.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

/// Live pools: the generation of each superblock, and the lasting id of its pool.
pub type Pools = BTreeMap<u64, u64>;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A look that was asked for in an epoch has an answer.
    Observed { asked: Epoch, evidence: Evidence },
    /// The pools of this node that are alive (mounted, or still held after a lazy unmount). One
    /// that is new stays sealed until a look has spoken for it.
    Pools { alive: Pools },
    /// Incus's event stream: the operation "Joining cluster" began.
    JoinBegan,
    /// Incus's event stream: it ended. A failure is ambiguous: a late step can fail after the node
    /// has joined.
    JoinEnded { succeeded: bool },
    /// Lifecycle event `cluster-member-added` on this server.
    MemberAdded,
    /// Lifecycle event `cluster-disabled` on this server: it leaves its cluster in order.
    ClusterDisabled,
    /// Lifecycle event `cluster-member-removed` that names this server.
    MemberRemoved,
    /// The event stream broke: what came meanwhile is lost.
    EventsLost,
    /// `guardctl join` is about to start a join.
    JoinPrepared,
    /// What `guardctl join` started is over, or it did not come in time: evidence alone decides
    /// from here on.
    PreparationEnded,
    /// An operator or the policy asked for a rollback.
    RollbackAsked { by: String },
    /// A rollback is over. `alive` as in `Pools`.
    RollbackEnded { alive: Pools },
    /// An operator says that the pools that live are this server's own.
    Adopted { by: String },
    /// An operator says that the state, and what was taken for the node's own, are void.
    Forgotten { by: String },
}

/// What the state machine wants done, in the order in which it says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A transition, and what drove it: for the journal and for people. Comes before the rest that
    /// it causes.
    Transition { from: NodeState, to: NodeState, because: String },
    /// Write the state down. What follows waits until that is done.
    Persist,
    /// Give the node's pools their modes, which are this one for those that a look has spoken for.
    SetMode(NodeMode),
    /// Look at the node again, and answer with this epoch.
    Observe { asked: Epoch },
    /// Unmount what the join left.
    RollBack,
}

/// A request that the state machine does not grant now. Not an error.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NodeRefusal {
    #[error("a rollback would unmount the pools of a node in state {state}")]
    NotFailed { state: &'static str },
    #[error("a join cannot be prepared in state {state}")]
    NotFitToJoin { state: &'static str },
    #[error("a rollback is already running")]
    RollingBack,
    #[error("its pools belong to a cluster in state {state}")]
    NotItsOwn { state: &'static str },
    #[error("pools that came with a cluster are still there, in state {state}")]
    HasRemains { state: &'static str },
}
