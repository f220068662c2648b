//! The audit log: what is written (`record`, `decisions`, `changes`: pure), how it reaches the file
//! whole and in order (`queue`, `file`), and how it is read back (`rotated`, `tail`, `history`,
//! `filter`).

pub mod changes;
pub mod decisions;
pub mod file;
pub mod filter;
pub mod history;
pub mod origin;
pub mod place;
pub mod queue;
pub mod record;
pub mod rotated;
pub mod tail;

pub use file::{Appended, AuditError, AuditFile, AuditOptions, AuditStatus};
pub use filter::Filter;
pub use record::{Body, Kind, Origin, Place, Record, SCHEMA};
