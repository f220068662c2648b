//! The audit log: its records (`record`, `decisions`, `changes`: pure), their way to the file,
//! whole and in order (`queue`, `file`), and the way back (`rotated`, `tail`, `history`, `filter`).

pub mod changes;
pub mod decisions;
pub mod filter;
pub mod place;
pub mod record;

pub use filter::Filter;
pub use record::{Body, Kind, Origin, Place, Record, SCHEMA};
