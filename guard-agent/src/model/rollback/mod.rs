//! Unmounts every mount of given superblocks, in every mount namespace, and proves that they are
//! gone.
//!
//! `plan` lists the unmounts in order, and the obstacles (pure); `engine` goes round: look, plan,
//! unmount, look again, and at the end reports the remains and their holders (pure but for its
//! [`Host`]); `guests` finds processes with a view of their own (pure); `report` is the text for
//! people (pure). `namespaces` reads the mount tables, `holders` finds the processes, `helper` is
//! the child process in which everything happens that may block, `host` puts them together.
//!
//! Nothing here touches a pool: with its servers gone even a stat blocks for ever. Mount tables and
//! links below `/proc` are read, and umount2(2) is called, in a child that is given up when it
//! takes too long.

pub mod engine;
pub mod guests;
pub mod holder;
pub mod plan;
pub mod report;
pub mod table;

pub use engine::{Allowed, Host, Limits, Progress, run};
pub use guests::Guest;
pub use holder::{Holder, Via, Wanted};
pub use plan::{Obstacle, Step, StepKind, Target, UnmountPlan, plan};
pub use report::{MountPlace, Remaining, RollbackOutcome, StepReport, UnmountOutcome};
pub use table::NamespaceTable;
