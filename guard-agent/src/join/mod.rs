//! The join state machine: where a node stands on its way into a cluster, and so what its pools' mode is.
//! Pure: evidence, time and the journal's text are arguments.
//!
//! Loss of evidence never weakens; weakening needs positive evidence that was asked for after the last sign of
//! something stronger ([`Epoch`]). One task, the daemon's owner, holds the machine; everything else sends it events.

mod event;
mod evidence;
mod state;

pub use event::{Effect, Epoch, Event, Refusal};
pub use evidence::{Config, Daemon, Evidence, Incarnation, JoinOperation, Membership};
pub use state::{Kept, State};
