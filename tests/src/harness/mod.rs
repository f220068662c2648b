//! Common ground of the suites.
//!
//! `registry` and `run`: the tests' table, and running it. For tests: `command` runs programs,
//! `wait` waits for conditions, `scratch` makes directories that go away, `mount` and `ceph` mount
//! filesystems that go away, `agent` starts and ends a guard-agent, `guarded` adds a guarded root
//! and pools to it (`fanotify`: in the tier without programs), `standin_node` an Incus that is not
//! real, `incus` makes a real two-node cluster, `machine` describes the booted machine,
//! `preemption` makes its kernel preemptible, `attempt` makes attempts that must be denied or pass,
//! `beside` has a guest work beside a host that is denied, `tree` makes and counts files, `trap`
//! kills a process at a system call. Everything is undone when its value is dropped, also when a
//! test fails.

pub mod agent;
pub mod attempt;
pub mod beside;
pub mod ceph;
pub mod cephfs_host;
pub mod command;
pub mod fanotify;
pub mod guarded;
pub mod host;
pub mod incus;
pub mod machine;
pub mod mount;
pub mod preemption;
pub mod registry;
pub mod run;
pub mod scratch;
pub mod standin_node;
pub mod trap;
pub mod tree;
pub mod wait;
