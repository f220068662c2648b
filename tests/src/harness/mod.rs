//! What the suites stand on.
//!
//! `registry` and `run`: the tests' table, and running it. For tests: `command` runs programs, `wait`
//! waits for conditions, `scratch` makes directories that go away, `mount` and `ceph` mount
//! filesystems that go away, `agent` starts and ends a guard-agent, `tree` makes and counts files.
//! Everything is undone when its value is dropped, also when a test fails.

pub mod agent;
pub mod ceph;
pub mod command;
pub mod mount;
pub mod registry;
pub mod run;
pub mod scratch;
pub mod tree;
pub mod wait;
