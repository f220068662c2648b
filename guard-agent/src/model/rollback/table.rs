//! The mounts of one mount namespace.

use crate::model::mounts::Snapshot;

/// The mounts of one mount namespace.
#[derive(Clone, Debug)]
pub struct NamespaceTable {
    /// Inode of the namespace.
    pub namespace: u64,
    /// Whether it is that of PID 1.
    pub is_host: bool,
    /// A process that lives in it.
    pub pid: u32,
    pub mounts: Snapshot,
}
