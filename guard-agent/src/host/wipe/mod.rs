//! Empties a guarded root without ever crossing a mount.
//!
//! `mounts` tells what is mounted below the root and whose it is (pure); `walk` goes through the
//! tree by directory descriptors, with openat2(2) refusing every mount and every link; `census`
//! counts on such a walk, `delete` deletes on one; `instances` finds what still uses it,
//! `local_pools` what would be lost without a mount to show it. The order is `guardctl wipe`'s;
//! `service` ends the daemon before.
//!
//! Nothing needs to be repaired after a kill at any point: what is deleted is deleted, and the same
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
