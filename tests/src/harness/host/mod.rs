//! Real hosts: Debian 13 with systemd, Ceph and Incus as they are packaged, each in a virtual
//! machine of its own, on a network that consists of QEMU's sockets alone. Runs outside of the
//! machines, beside them.
//!
//! `settings`: the paths that xtask has prepared. `qmp` and `runner`: QEMU's and the guest's ends
//! of the wire. `machine`: one virtual machine. `lab`: all of them, started from a saved state.
//! `states`: how the states are made, each from the one before. `cluster`: Incus on the hosts;
//! `container`: a guest of theirs. `guard`: the package under test on them. `standin`: one host
//! with a tmpfs pool. `shell`: hosts for a person.
//!
//! Booting takes an emulated machine minutes, so a state is made once and kept: disks as qcow2
//! layers, memory as QEMU's migration stream. Each start of a state is a copy: nothing of a test is
//! seen by the next.

pub mod cluster;
pub mod container;
pub mod guard;
pub mod lab;
pub mod machine;
mod qmp;
pub mod runner;
pub mod settings;
pub mod shell;
pub mod standin;
mod states;

pub use lab::{Lab, Name};
pub use machine::Machine;
pub use states::State;
