//! The tests that need root, a kernel of their own and a mounted filesystem: `cargo xtask test`
//! boots a VM and runs this in it. Never run it on a host that matters: it mounts, seals and
//! deletes.
//!
//! `harness` holds the tools of tests, `peers` the programs that they set on the barrier, `suites`
//! the tests, `catalogue` the ways around that they show, `demo` the demonstration, `native` the
//! one without a VM, `bench` the benchmarks, `lab` the fault lab.

pub mod bench;
pub mod catalogue;
pub mod demo;
pub mod harness;
pub mod lab;
pub mod native;
pub mod peers;
pub mod suites;
