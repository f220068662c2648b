//! The result of a rollback: steps done and mounts left, as JSON on the socket and as text. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::guests::Guest;
use super::{Holder, Obstacle, Target};
use crate::model::audit::record::device_text;

/// The result of one unmount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum UnmountOutcome {
    /// The mount is gone (with a lazy unmount: from the namespace; the superblock lives until its
    /// last user ends).
    Unmounted,
    /// It was not there any more.
    Gone,
    /// Somebody uses it.
    Busy,
    /// Another mount is on it or hides it.
    Covered {
        by: String,
    },
    /// The namespace holds it as its maker set it up: it goes where it came from.
    Locked,
    /// The kernel has not answered: the filesystem's servers do not. The unmount goes on by itself.
    TimedOut,
    Failed {
        error: String,
    },
}

impl UnmountOutcome {
    /// Whether the mount is there no more.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Unmounted | Self::Gone)
    }
}

impl fmt::Display for UnmountOutcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unmounted => write!(out, "unmounted"),
            Self::Gone => write!(out, "was gone already"),
            Self::Busy => write!(out, "busy"),
            Self::Covered { by } => write!(out, "covered by the mount at {by}"),
            Self::Locked => write!(out, "locked in this mount namespace"),
            Self::TimedOut => {
                write!(out, "no answer from the filesystem's servers in time; it goes on")
            }
            Self::Failed { error } => write!(out, "failed: {error}"),
        }
    }
}

/// Place of a mount.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MountPlace {
    /// Inode of the mount namespace.
    pub namespace: u64,
    /// Whether that is PID 1's.
    pub in_host: bool,
    /// A process that lives in it.
    pub pid: u32,
    pub mountpoint: String,
}

impl fmt::Display for MountPlace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, in_host, pid, mountpoint } = self;
        if *in_host {
            return write!(out, "{mountpoint}");
        }
        write!(out, "{mountpoint} in mount namespace {namespace} (of process {pid})")
    }
}

/// One unmount that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepReport {
    pub place: MountPlace,
    /// The pool's name; `None` for a mount of the storage daemon's own.
    pub pool: Option<String>,
    pub lazy: bool,
    #[serde(flatten)]
    pub outcome: UnmountOutcome,
}

impl fmt::Display for StepReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.lazy { "lazily: " } else { "" };
        write!(out, "{}: {how}{}", self.place, self.outcome)
    }
}

/// A superblock that lives on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remaining {
    /// The pool's name.
    pub pool: String,
    pub generation: u64,
    /// `major:minor`.
    pub device: String,
    pub mounts: Vec<MountPlace>,
    /// Obstacles to its unmounts.
    pub obstacles: Vec<String>,
    /// Its users.
    pub holders: Vec<Holder>,
    /// The advice to the operator.
    pub fix: String,
}

/// Outcome of a rollback.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackOutcome {
    pub steps: Vec<StepReport>,
    /// Empty: nothing is left, as the kernel has said.
    pub remaining: Vec<Remaining>,
    /// Guests that have a pool mounted. If there are some, nothing was unmounted.
    #[serde(default)]
    pub guests: Vec<Guest>,
    /// Looks that failed.
    pub problems: Vec<String>,
}

impl RollbackOutcome {
    /// Whether every superblock is proven to be gone.
    pub fn is_complete(&self) -> bool {
        self.remaining.is_empty()
    }

    /// Nothing is known, so everything remains.
    pub fn unknown(targets: &[Target], problem: &str) -> Self {
        let remains = |target: &Target| Remaining {
            pool: target.name.clone(),
            generation: target.generation,
            device: device_text(target.dev),
            mounts: Vec::new(),
            obstacles: Vec::new(),
            holders: Vec::new(),
            fix: "see the agent's log (journalctl -u guard-agent), then guardctl rollback again"
                .to_owned(),
        };
        let (remaining, problems) =
            (targets.iter().map(remains).collect(), vec![problem.to_owned()]);
        Self { remaining, problems, ..Self::default() }
    }
}

/// An obstacle in words.
pub(super) fn describe(obstacle: &Obstacle) -> String {
    match obstacle {
        Obstacle::Foreign { mountpoint, on, fs_type, .. } => {
            let (mountpoint, on) = (mountpoint.display(), on.display());
            format!(
                "{fs_type} at {mountpoint} is mounted on {on} and is not Incus's: it was not \
                 touched"
            )
        }
        Obstacle::Hidden { mountpoint, by, fs_type, .. } => {
            let (mountpoint, by) = (mountpoint.display(), by.display());
            format!(
                "{mountpoint} is hidden by {fs_type} at {by}, which is not Incus's: it was not \
                 touched"
            )
        }
    }
}

/// The operator's next step for a guest.
pub(super) fn fix_guest(guest: &Guest) -> String {
    let (name, pid) = (&guest.name, guest.pid);
    format!(
        "end {name} (process {pid}), or start Incus again (guardctl rollback --release-hold) and \
         incus stop {name}; then the same command again. Or guardctl rollback --force: {name} runs \
         on, and what it writes there goes to its own disk, not to the pool"
    )
}

/// The operator's next step for a superblock that lives on.
pub(super) fn fix(
    obstacles: &[Obstacle],
    holders: &[Holder],
    mounts: &[MountPlace],
    timed_out: bool,
) -> String {
    if let Some(Obstacle::Foreign { mountpoint, .. } | Obstacle::Hidden { by: mountpoint, .. }) =
        obstacles.first()
    {
        return format!(
            "unmount {} if it may go, then guardctl rollback again",
            mountpoint.display()
        );
    }
    if timed_out {
        return "the filesystem's servers do not answer: bring them (Ceph: the MDS) or the network \
                back and run guardctl rollback again; or reboot, with the storage daemon disabled"
            .to_owned();
    }
    if holders.iter().any(|holder| holder.pid == 0) {
        return "end what the kernel does with it (losetup --detach, unmount the overlay), then \
                guardctl rollback again"
            .to_owned();
    }
    if !holders.is_empty() {
        let pids: Vec<String> = holders.iter().map(|holder| holder.pid.to_string()).collect();
        let detach = if mounts.is_empty() {
            ""
        } else {
            "; or detach it from the tree: guardctl rollback --lazy"
        };
        let list = pids.join(" ");
        return format!(
            "end the processes that hold it ({list}), then guardctl rollback again{detach}"
        );
    }
    if let Some(place) = mounts.iter().find(|place| !place.in_host) {
        let pid = place.pid;
        return format!(
            "it stays mounted in the mount namespace of process {pid}: end that service or \
             container"
        );
    }
    if !mounts.is_empty() {
        return "something in the kernel uses it (a loop device, an overlay, an NFS export, swap): \
                end that, then guardctl rollback again"
            .to_owned();
    }
    "nothing that can be seen holds it: a mount namespace without a process, a file in flight, a \
     loop device, an overlay or an NFS export may; end those, or reboot"
        .to_owned()
}
