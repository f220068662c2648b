//! Everything that touches the machine: the kernel, Incus, processes, mounts and files.
//!
//! These modules carry out the decisions of `model`, and gather the facts for them.

pub mod audit_log;
pub mod bpf;
pub mod clock;
pub mod doctor;
pub mod durable;
pub mod fanotify;
pub mod host_view;
pub mod incus;
mod journal;
pub mod logging;
pub mod mount_table;
pub mod paths;
pub mod policy_file;
pub mod process;
pub mod reactor;
pub mod rollback;
pub mod roots;
pub mod service;
pub mod state_file;
pub mod systemd;
pub mod wait;
pub mod watch;
pub mod wipe;
