//! The join state machine: a node's state on its way into a cluster, and so the mode of its pools.
//! Pure: evidence, time and the journal's text are arguments.
//!
//! Evidence is about this node only. Loss of it never weakens, and never denies a member's guests;
//! weakening needs positive evidence that was asked for after the last sign of something stronger
//! ([`Epoch`]). One task, the daemon's owner, holds the machine; everything else sends it events.

mod assess;
#[cfg(test)]
mod checker;
pub mod diagram;
mod event;
mod evidence;
pub mod journal;
mod machine;
mod memory;
mod state;

pub use assess::HOLD_SECONDS;
pub use event::{Effect, Epoch, Event, NodeRefusal, Pools};
pub use evidence::{Config, Daemon, Evidence, Incarnation, JoinOperation, Membership};
pub use journal::{Journal, Transition};
pub use machine::Machine;
pub use memory::Memory;
pub use state::{JoinSeen, Kept, NodeMode, NodeState, PoolModes};
