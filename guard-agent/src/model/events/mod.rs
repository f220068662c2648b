//! Reports of the kernel program: ring-buffer bytes become typed decisions, counts become
//! incidents.
//!
//! `decode`, `incidents` and `name` are pure. `clock` and `process` each have one function that
//! asks the running system.

pub mod decode;
pub mod incidents;
pub mod name;

pub use decode::{Decision, DecisionPath, DecodeError, decode};
pub use incidents::{IncidentScan, IncidentTracker, Summary};
pub use name::{Name, WireName};
