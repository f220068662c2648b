//! The tier for kernels that refuse our programs: permission events of fanotify, and mounts that
//! are made read-only.
//!
//! ```text
//!  pools' entries (maps), mount table ─► supervisor ─ orders ─► responder (a process that outlives the agent)
//!                                          │                     │ marks mounts, makes them read-only
//!                        seals.json ◄──────┘                     │ answers who opens or lists a directory
//!                                                                ▼
//!                                               counters, incidents, records (the same as the kernel program's)
//! ```
//!
//! The maps are those of the other tiers: the responder reads them instead of the kernel program,
//! so that modes, releases, leases, counters and incidents mean the same. A recursive deletion must
//! list directories, and is refused there; a sealed pool's mounts in the host's namespace refuse
//! every change. The gaps that this leaves: `posture::gaps`.
//!
//! `decide`, `order`, `event`, `deletion` and `tally` are pure; `identity` reads `/proc` (by `kept`
//! files) and `cgroups`; `marks` has the system calls. `responder` is the process that answers. In
//! it, `apply_order` marks and seals mounts, `mount_watcher` (by `statmount`) finds new ones,
//! `deletion_monitor` reports deletions that could not be stopped, and `recorder` writes counters
//! and records, at once or from a `tally`. `supervisor` is the agent's side, with `child` (the process
//! as it sees it), `seals` and `canary`.

mod apply_order;
mod canary;
mod cgroups;
mod child;
pub mod decide;
pub mod deletion;
mod deletion_monitor;
mod error;
mod event;
mod handover;
mod identity;
mod kept;
mod marks;
mod mount_watcher;
pub mod order;
mod recorder;
pub mod responder;
mod seals;
mod shared;
mod statmount;
mod supervisor;
mod tally;

pub use canary::try_marks;
pub use child::responders;
pub use error::FanotifyError;
pub use seals::recorded as recorded_seals;
pub use supervisor::{Problems, Supervisor, unload};
