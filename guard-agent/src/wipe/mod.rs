//! Empties a guarded root without ever crossing a mount.
//!
//! `mounts` tells what is mounted below the root and whose it is (pure); `walk` goes through the tree by directory
//! descriptors, with openat2(2) refusing every mount and every link; `census` counts on such a walk, `delete` deletes
//! on one; `stop` ends the storage daemon before. The order is `guardctl wipe`'s.
//!
//! Nothing needs to be repaired after a kill at any point: what is deleted is deleted, and the same command goes on.

mod census;
mod delete;
mod mounts;
pub mod stop;
mod walk;

pub use census::{Census, Part, census};
pub use delete::{Deleted, Failure, delete};
pub use mounts::{InTheWay, MountsBelow, OwnMount, below};
pub use walk::{Root, WipeError};
