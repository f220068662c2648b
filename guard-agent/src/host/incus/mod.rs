//! View of an Incus node from outside: the adapters that gather
//! [`Evidence`](crate::model::join::Evidence).
//!
//! None of them touches a pool's filesystem, each has a time-out, and missing facts are reported,
//! never guessed. The daemon's socket is dialled only while the daemon runs and listens: connecting
//! to an idle one would start Incus through socket activation, which mounts pools.
//!
//! ```text
//! /proc, cgroup ─► process ─┐
//! local.db ─► local_db ─────┤
//! socket ─► api ─► answers ─┼─► look ─► observer ─► the node's owner
//! event stream ─► events ───┘             ▲ requests
//! ```
//!
//! The texts that Incus sends are understood by `model::incus`. `procfs` is pure too.

mod api;
mod events;
mod evidence;
pub mod local_db;
mod observer;
mod process;
mod procfs;

#[cfg(test)]
mod fake;

use std::path::{Path, PathBuf};

pub use evidence::observe_once;
pub use observer::{Observation, Observer};
pub use process::{Listener, Sighting, sight};

/// Location of a node on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `INCUS_DIR`: the guarded root.
    pub directory: PathBuf,
    /// The daemon's socket, if policy names one. Packages differ: it lies in the daemon's
    /// directory, or in `/run/incus` (Fedora, EPEL). Without a name it is the one that the daemon
    /// itself listens on.
    pub socket: Option<PathBuf>,
    /// The cgroup of the daemon's unit, as in `/proc/PID/cgroup`.
    pub cgroup: String,
    /// Executables that are the daemon's, beside every one called `incusd`.
    pub executables: Vec<PathBuf>,
    /// `/proc`.
    pub proc_root: PathBuf,
}

impl Options {
    /// The node of a guarded root, of a systemd unit.
    pub fn new(directory: &Path, unit: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            socket: None,
            cgroup: format!("/system.slice/{unit}"),
            executables: Vec::new(),
            proc_root: PathBuf::from("/proc"),
        }
    }

    /// Incus's own database.
    pub fn local_db(&self) -> PathBuf {
        self.directory.join("database/local.db")
    }
}
