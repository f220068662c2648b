//! The state that survives a restart of the agent: seals of operators, and leases. Pure.

mod content;
pub mod text;

pub use content::{CommandTree, Lease, SavedState};
