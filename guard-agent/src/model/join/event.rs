//! Events of a node, and the effects that its state machine asks for.

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

/// An event of a node.
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
    /// The event stream broke: events that came meanwhile are lost.
    EventsLost,
    /// `guardctl join` is about to start a join.
    JoinPrepared,
    /// The join that `guardctl join` started is over, or it did not come in time: evidence alone
    /// decides from here on.
    PreparationEnded,
    /// An operator or the policy asked for a rollback.
    RollbackAsked { by: String },
    /// A rollback is over. `alive` as in `Pools`.
    RollbackEnded { alive: Pools },
    /// An operator says that the pools that live are this server's own.
    Adopted { by: String },
    /// An operator says that the state, and the record of the node's own pools, are void.
    Forgotten { by: String },
}

/// An action that the state machine asks for. Their order matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A transition, and its cause: for the journal and for people. Comes before the rest that it
    /// causes.
    Transition { from: NodeState, to: NodeState, because: String },
    /// Write the state down. Later effects wait until that is done.
    Persist,
    /// Give the node's pools their modes, which are this one for those that a look has spoken for.
    SetMode(NodeMode),
    /// Observe the node again, and answer with this epoch.
    Observe { asked: Epoch },
    /// Unmount the join's remains.
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
