//! The audit log: what is written (`record`, `decisions`, `changes`: pure), how it reaches the file
//! whole and in order (`queue`, `file`), and how it is read back (`rotated`, `tail`, `history`,
//! `filter`).

pub mod changes;
pub mod decisions;
pub mod filter;
pub mod place;
pub mod record;

pub use filter::Filter;
pub use record::{Body, Kind, Origin, Place, Record, SCHEMA};
