//! Empties a guarded root without ever crossing a mount.
//!
//! `mounts` finds the mounts below the root and their owners (pure); `walk` goes through the tree
//! by directory descriptors, with openat2(2) refusing every mount and every link; `census` counts
//! on such a walk, `delete` deletes on one; `instances` finds the processes that still use it,
//! `local_pools` the pools that would be lost without a mount to show it. `guardctl wipe`
//! sets the order; `service` ends the daemon before.
//!
//! Nothing needs to be repaired after a kill at any point: deleted files are gone, and the same
//! command goes on.

mod census;
mod delete;
pub mod instances;
pub mod local_pools;
mod mounts;
mod walk;

pub use census::{Census, Part, census};
pub use delete::{Deleted, Failure, delete};
pub use mounts::{InTheWay, MountsBelow, OwnMount, below};
pub use walk::{Root, WipeError};
