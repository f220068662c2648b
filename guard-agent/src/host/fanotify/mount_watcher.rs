//! Further mounts of known pools: a thread of the responder that marks them, also while no agent
//! runs.
//!
//! Since Linux 6.15 fanotify tells the id of an attached mount, and statmount(2) its properties.
//! Elsewhere the whole mount table is read after each change. The agent's next order says the same,
//! and the rest that is to be done with them.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use guard_common::policy::kernel_dev;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::fanotify::Fanotify;

use super::marks;
use super::order::{PathText, Wanted};
use super::shared::{Marked, Shared};
use super::statmount::{self, Attached};
use crate::host::bpf::Maps;
use crate::host::mount_table;
use crate::model::mounts::{MountEntry, Snapshot};
use crate::model::plan;

/// The mount namespace of this process, as everything here sees it.
pub(super) const TABLE: &str = mount_table::OWN;
const NAMESPACE: &str = "/proc/self/ns/mnt";
/// Between two tries to watch the mount table.
const AGAIN: Duration = Duration::from_secs(1);

/// Source of the changes.
enum Source {
    Events(Fanotify),
    Table(File),
}

/// A mount that may have been attached just now.
struct Found {
    wanted: Wanted,
    is_read_only: bool,
}

/// The thread: marks attached mounts, for ever. While the mount table cannot be watched, the agent
/// is told the reason; its orders go on.
pub(super) fn mark_all(shared: &Shared, maps: &Maps) {
    loop {
        let Err(error) = watch(shared, maps);
        shared.set_unwatched(Some(error.to_string()));
        thread::sleep(AGAIN);
    }
}

fn watch(shared: &Shared, maps: &Maps) -> io::Result<Infallible> {
    let source = Source::open()?;
    // Mounts that were attached while nobody watched. At the start they are the first order's,
    // which also knows the sealed ones.
    let mut found = if shared.set_unwatched(None) {
        every(&Snapshot::parse(&fs::read(TABLE)?))
    } else {
        Vec::new()
    };
    loop {
        for found in found {
            // No entry: no pool of ours, or one that only the agent can tell. Of a visitor's mounts
            // it alone can tell which lie below a root.
            if let Ok(Some(entry)) = maps.pools.get(&found.wanted.key())
                && plan::is_pool(&entry)
                && !plan::is_visitor(&entry)
            {
                mark(shared, found);
            }
        }
        found = source.next()?;
    }
}

/// Marks it as an order does, but does not seal it. Only the agent may seal: it first writes down
/// the earlier state of the mount.
fn mark(shared: &Shared, found: Found) {
    let Found { wanted, is_read_only } = found;
    let Ok(Some(mount)) = marks::open_mount(&wanted.path.0, wanted.mount_id) else { return };
    let id = wanted.mount_id;
    {
        let mut mounts = shared.mounts();
        let known = mounts.get(&id).filter(|marked| marked.wanted.is_same_place(&wanted));
        // Another mount with the same numbers is writable again.
        let read_only = is_read_only && known.is_some_and(|marked| marked.read_only);
        mounts.insert(id, Marked { wanted: Arc::new(wanted), read_only });
    }
    if let Err(error) = marks::mark(&shared.group, &mount) {
        tracing::error!(%error, mount = id, "a further mount of a pool is not marked");
    }
}

impl Source {
    fn open() -> io::Result<Self> {
        match marks::mount_events(&File::open(NAMESPACE)?) {
            Ok(group) => Ok(Self::Events(group)),
            // Before 6.15.
            Err(Errno::EINVAL) => Ok(Self::Table(File::open(TABLE)?)),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits for changes; returns the mounts that may be new.
    fn next(&self) -> io::Result<Vec<Found>> {
        match self {
            Self::Events(group) => {
                wait(group, PollFlags::POLLIN)?;
                let mut buffer = [0; 4096];
                let length = nix::unistd::read(group, &mut buffer)?;
                match statmount::parse(&buffer[..length]) {
                    Some(ids) => Ok(ids
                        .into_iter()
                        .filter_map(|id| found(&statmount::of(id).ok()?))
                        .collect()),
                    // There was no room for all of them.
                    None => Ok(every(&Snapshot::parse(&fs::read(TABLE)?))),
                }
            }
            Self::Table(table) => {
                wait(table, PollFlags::POLLPRI)?;
                Ok(every(&mount_table::read(table)?))
            }
        }
    }
}

fn wait(fd: &impl AsFd, what: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(fd.as_fd(), what)], PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn wanted(mount_id: u32, dev: u32, path: PathBuf, root: PathBuf) -> Wanted {
    Wanted {
        mount_id,
        dev,
        // A superblock with parts has no pool's entry of its own: its mounts are the agent's to
        // tell apart.
        head: 0,
        path: PathText(path),
        root: PathText(root),
        marked: true,
        is_pool: true,
        read_only: None,
    }
}

fn found(attached: &Attached) -> Option<Found> {
    let path = attached.path.clone()?;
    let dev = kernel_dev(attached.major, attached.minor);
    Some(Found {
        wanted: wanted(attached.mount_id, dev, path, attached.root.clone()),
        is_read_only: attached.is_read_only,
    })
}

fn every(table: &Snapshot) -> Vec<Found> {
    let found = |mount: &MountEntry| Found {
        wanted: wanted(mount.mount_id, mount.dev(), mount.mountpoint.clone(), mount.root.clone()),
        is_read_only: mount.is_read_only(),
    };
    table.entries().iter().map(found).collect()
}
