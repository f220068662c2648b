//! Mount tables of the running system: PID 1's, with its changes, and those of other namespaces.
//!
//! Nothing here touches a mountpoint: with its servers gone, a network filesystem blocks even a
//! stat.

pub mod foreign;
mod watch;

use std::fs::File;
use std::io;
use std::path::Path;

use crate::model::mounts::Snapshot;

pub use watch::{MountWatch, read};

/// The table of this process's namespace.
pub const OWN: &str = "/proc/self/mountinfo";
/// The host's table: that of PID 1, in any namespace of this process.
pub const HOST: &str = "/proc/1/mountinfo";

/// Opens and reads a table, such as [`OWN`].
pub fn open(path: impl AsRef<Path>) -> io::Result<Snapshot> {
    read(&File::open(path)?)
}
