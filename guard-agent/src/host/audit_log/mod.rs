//! The audit log on disk: whole lines in order (`queue`, `file`), and reading them back (`rotated`,
//! `tail`, `history`).

pub mod file;
pub mod history;
pub mod origin;
pub mod queue;
pub mod rotated;
pub mod tail;

pub use file::{Appended, AuditError, AuditFile, AuditOptions};
