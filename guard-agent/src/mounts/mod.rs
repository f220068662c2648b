//! The mount table: text → entries → snapshot → what changed; and a watch on it.
//!
//! Pure but for `watch` and `foreign`. Nothing here ever touches a mountpoint: with its servers
//! gone, a network filesystem blocks even a stat.

pub mod foreign;
mod mountinfo;
mod snapshot;
mod watch;

pub use mountinfo::{MountEntry, ParseProblem, parse};
pub use snapshot::{Snapshot, SnapshotDiff};
pub use watch::{MountWatch, read};
