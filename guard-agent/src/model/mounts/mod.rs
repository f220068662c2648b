//! The mount table: text → entries → snapshot → changes; and a watch on it.
//!
//! Pure but for `watch` and `foreign`. Nothing here ever touches a mountpoint: with its servers
//! gone, a network filesystem blocks even a stat.

mod mountinfo;
mod snapshot;

pub use mountinfo::{MountEntry, ParseProblem, parse};
pub use snapshot::{Snapshot, SnapshotDiff};
