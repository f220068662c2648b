//! The acting half of a rollback: mount tables of all namespaces, holders of a superblock, and
//! unmounting in a child process.
//!
//! Nothing here touches a pool: with its servers gone even a stat blocks for ever. Mount tables and
//! links below `/proc` are read, and umount2(2) is called, in a child that is given up when it
//! takes too long. `model::rollback` decides.

pub mod helper;
mod holders;
mod host;
mod namespaces;

pub use host::LiveHost;
pub use namespaces::{NamespaceError, all as all_namespaces, container_of, name_of};
