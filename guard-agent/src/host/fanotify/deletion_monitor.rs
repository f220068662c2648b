//! Reports deletions that this tier cannot stop: a thread of the responder that reads the events of
//! removed names.
//!
//! One fanotify group for each superblock with a pool: an event names no superblock, and CephFS
//! gives all that show the same data the same id. A deleting process never waits for this thread.
//! The thread itself may wait for a pool's servers, but only for the path of a directory in a
//! record. Deletions that were allowed on purpose are counted and recorded as in the other tiers;
//! those that the mode denies are `would-deny`. A guest's deletion in its volume is none of ours.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guard_common::{Hook, Mode, Operation, PoolEntry, Verdict};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::fanotify::Fanotify;

use super::decide::{self, Outcome};
use super::deletion::{self, Deletion, Event, Handle};
use super::identity::{Identities, Process, described, mount_namespace};
use super::marks;
use super::order::Wanted;
use super::recorder::{Answered, Recorder};
use crate::host::bpf::Maps;
use crate::host::clock;
use crate::model::mounts::Snapshot;
use crate::model::plan;

/// Bytes of a read.
const BUFFER: usize = 64 * 1024;
/// Longest time that an order waits for this thread.
const ORDER_TIMEOUT: Duration = Duration::from_millis(500);
/// Stands for a call by another thread, where a device number (32 bits) stands for a superblock.
const WAKE: u64 = u64::MAX;

/// The interface of this thread for the other threads.
#[derive(Debug)]
pub(super) struct DeletionMonitor {
    wake: EventFd,
    /// A mount of each superblock to be seen.
    wanted: Mutex<Vec<Wanted>>,
    told: Mutex<Told>,
    /// Notified when `told.looks` grows.
    looked: Condvar,
}

/// Failures so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// Number of times that the kernel had no more room for events.
    pub missed: u64,
    /// Superblocks that cannot be seen, with the reasons.
    pub unseen: Option<String>,
    /// Number of times that it has looked at `wanted`.
    looks: u64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Values are replaced whole: a panic leaves none half-written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DeletionMonitor {
    pub(super) fn new() -> nix::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            wake: EventFd::from_flags(flags)?,
            wanted: Mutex::default(),
            told: Mutex::default(),
            looked: Condvar::new(),
        })
    }

    /// From now on deletions in the superblocks of these mounts are seen, and no others. Waits a
    /// moment for it: a thread that waits for a pool's servers comes to it later.
    pub(super) fn want(&self, mounts: Vec<Wanted>) {
        *locked(&self.wanted) = mounts;
        let told = locked(&self.told);
        let before = told.looks;
        // Full means that the thread is about to look anyway.
        let _ = self.wake.write(1);
        let _ = self.looked.wait_timeout_while(told, ORDER_TIMEOUT, |told| told.looks == before);
    }

    pub(super) fn told(&self) -> Told {
        locked(&self.told).clone()
    }

    /// The thread: reads and writes down deletions, for ever.
    ///
    /// It has descriptors of its own (so `/proc/thread-self`, not `/proc/self`), without
    /// `questions`, the group of the processes that wait for an answer. A process that waits there
    /// also holds this thread's groups, if one has a mark on the same superblock. If it is killed
    /// with both in one table, it may wait for ever to close the one, before it closes the other
    /// that would let the waiting go on.
    pub(super) fn see_all(&self, maps: &mut Maps, recorder: &Recorder, questions: RawFd) {
        let ended = unshare(CloneFlags::CLONE_FILES)
            .and_then(|()| nix::unistd::close(questions))
            .and_then(|()| self.watch(maps, recorder));
        if let Err(errno) = ended {
            locked(&self.told).unseen =
                Some(format!("the thread that sees deletions has ended: {errno}"));
        }
    }

    fn watch(&self, maps: &mut Maps, recorder: &Recorder) -> nix::Result<()> {
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        ready.add(&self.wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let mut watches: HashMap<u32, Watch> = HashMap::new();
        let mut buffer = vec![0; BUFFER];
        let mut events = [EpollEvent::empty(); 16];
        loop {
            let count = match ready.wait(&mut events, EpollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                waited => waited?,
            };
            for event in &events[..count] {
                if event.data() == WAKE {
                    // Empty: it was read before.
                    let _ = self.wake.read();
                    let wanted = locked(&self.wanted).clone();
                    let unseen = set(&ready, &mut watches, wanted);
                    let mut told = locked(&self.told);
                    (told.unseen, told.looks) = (unseen, told.looks + 1);
                    self.looked.notify_all();
                    continue;
                }
                let watch = u32::try_from(event.data()).ok().and_then(|dev| watches.get(&dev));
                let Some(Watch { group, mount }) = watch else { continue };
                // Nothing to read is no error.
                let Ok(length) = nix::unistd::read(group, &mut buffer) else { continue };
                let deletions = deletion::parse(&buffer[..length]);
                if deletions.contains(&Event::Missed) {
                    locked(&self.told).missed += 1;
                }
                Sight::new(maps, recorder, mount).take(deletions);
            }
        }
    }
}

/// Brings the watches to the wanted mounts; returns the failures.
fn set(ready: &Epoll, watches: &mut HashMap<u32, Watch>, wanted: Vec<Wanted>) -> Option<String> {
    let devices: BTreeSet<u32> = wanted.iter().map(|mount| mount.dev).collect();
    watches.retain(|dev, _| devices.contains(dev));
    let mut problems = Vec::new();
    for mount in wanted {
        let path = mount.path.0.clone();
        if let Err(error) = add(ready, watches, mount) {
            problems.push(format!("{}: {error}", path.display()));
        }
    }
    match &problems[..] {
        [] => None,
        [one] => Some(one.clone()),
        [first, ..] => Some(format!("{} pools; the first: {first}", problems.len())),
    }
}

/// Marks the mount's superblock. Again if that was done before: its device number may be another
/// superblock's by now, which has no mark.
fn add(ready: &Epoll, watches: &mut HashMap<u32, Watch>, mount: Wanted) -> io::Result<()> {
    // One that is gone is another order's.
    let Some(place) = marks::open_mount(&mount.path.0, mount.mount_id)? else { return Ok(()) };
    if let Some(watch) = watches.get_mut(&mount.dev) {
        watch.mount = mount;
        return Ok(marks::mark_deletions(&watch.group, &place)?);
    }
    let group = marks::deletions_group()?;
    marks::mark_deletions(&group, &place)?;
    ready.add(&group, EpollEvent::new(EpollFlags::EPOLLIN, u64::from(mount.dev)))?;
    watches.insert(mount.dev, Watch { group, mount });
    Ok(())
}

/// A superblock whose deletions are seen.
#[derive(Debug)]
struct Watch {
    group: Fanotify,
    /// A mount of it, by which directories are reached.
    mount: Wanted,
}

/// One process, as far as its deletions in one pool are concerned.
#[derive(Clone, Default)]
struct Deleter {
    /// Nothing: there is nothing to write down.
    outcome: Option<Outcome>,
    process: Process,
    cgroup_id: u64,
}

/// The events of one read, of one pool.
struct Sight<'a> {
    maps: &'a mut Maps,
    recorder: &'a Recorder,
    mount: &'a Wanted,
    identities: Identities,
    deleters: HashMap<u32, Deleter>,
    directories: HashMap<Handle, Option<(PathBuf, u64)>>,
}

impl<'a> Sight<'a> {
    fn new(maps: &'a mut Maps, recorder: &'a Recorder, mount: &'a Wanted) -> Self {
        let mut identities = Identities::default();
        // Without the table no executable and no cgroup is known: then the deleting process cannot
        // be identified.
        let _ = identities.refresh();
        Self {
            maps,
            recorder,
            mount,
            identities,
            deleters: HashMap::new(),
            directories: HashMap::new(),
        }
    }

    fn take(mut self, events: Vec<Event>) {
        // No entry, no pool of ours: it has ended.
        let Ok(Some(entry)) = self.maps.pools.get(&self.mount.key()) else { return };
        if !plan::is_pool(&entry) {
            return;
        }
        let now = clock::now();
        for event in events {
            if let Event::Deleted(deletion) = event {
                self.deleted(&entry, now.boot_ns, &deletion);
            }
        }
    }

    fn deleted(&mut self, entry: &PoolEntry, now_boot_ns: u64, deletion: &Deletion) {
        let tgid = deletion.tgid;
        if !self.deleters.contains_key(&tgid) {
            let deleter = self.deleter(entry, now_boot_ns, tgid);
            self.deleters.insert(tgid, deleter);
        }
        let Some(Deleter { outcome: Some(outcome), process, cgroup_id }) =
            self.deleters.get(&tgid).cloned()
        else {
            return;
        };
        let directory = if outcome.counter().is_audited() {
            self.directory(&deletion.parent).cloned()
        } else {
            None
        };
        let path = deletion.path(directory.as_ref().map(|(path, _)| path.as_path()));
        let answered = Answered {
            outcome,
            hook: Hook::FanotifyDelete,
            operation: if deletion.is_directory { Operation::Rmdir } else { Operation::Unlink },
            entry,
            dev: self.mount.dev,
            mount_id: None,
            parent_ino: directory.map_or(0, |(_, ino)| ino),
            target_ino: 0,
            path: &path,
            process: &process,
            cgroup_id,
            now_boot_ns,
        };
        // A map that is full has counted it.
        let _ = self.recorder.enter(self.maps, &answered);
    }

    /// Looks at the process that has deleted something. It may have ended since: then it cannot be
    /// identified, and all such deletions in a pool are one incident, of process 0.
    fn deleter(&mut self, entry: &PoolEntry, now_boot_ns: u64, tgid: u32) -> Deleter {
        let process = Process::read(Path::new("/proc"), tgid).ok();
        let asked = process.and_then(|process| {
            let asked =
                self.identities.ask(self.maps, self.mount.dev, entry, now_boot_ns, tgid).ok();
            asked.map(|(asker, cgroup_id)| (process, asker, cgroup_id))
        });
        let namespace = mount_namespace(tgid);
        // The entries of a process that is ending lack its executable: that it is no actor proves
        // nothing.
        let asked = asked.filter(|(_, asker, _)| asker.actor || asker.lease || namespace != 0);
        let asker = asked.as_ref().map(|(_, asker, _)| *asker);
        let mode = Mode::from_u32(entry.mode);
        let is_guest = || self.recorder.is_elsewhere(namespace) && self.sees_only_parts(tgid);
        let outcome = match decide::decide(entry, false, now_boot_ns, asker) {
            Some(Outcome { verdict: Verdict::Denied | Verdict::WouldDeny, .. })
                if matches!(mode, Some(Mode::Guarded | Mode::Observed))
                    && asker.is_some()
                    && is_guest() =>
            {
                None
            }
            Some(Outcome { verdict: Verdict::Denied, reason }) => {
                Some(Outcome { verdict: Verdict::WouldDeny, reason })
            }
            other => other,
        };
        let (process, cgroup_id) = match asked {
            Some((process, _, cgroup_id)) => (process, cgroup_id),
            None => (Process::unknown(0), 0),
        };
        Deleter { outcome, process, cgroup_id }
    }

    /// Whether its mount namespace has parts of the superblock only, as a guest's has.
    fn sees_only_parts(&self, tgid: u32) -> bool {
        let Ok(table) = fs::read(format!("/proc/{tgid}/mountinfo")) else { return false };
        let table = Snapshot::parse(&table);
        let mut mounts =
            table.entries().iter().filter(|mount| mount.dev() == self.mount.dev).peekable();
        mounts.peek().is_some() && mounts.all(|mount| mount.root != Path::new("/"))
    }

    /// Path inside the superblock and inode of a directory. It may be gone.
    fn directory(&mut self, handle: &Handle) -> Option<&(PathBuf, u64)> {
        if !self.directories.contains_key(handle) {
            let found = self.look_up(handle).ok();
            self.directories.insert(handle.clone(), found);
        }
        self.directories.get(handle)?.as_ref()
    }

    fn look_up(&self, handle: &Handle) -> io::Result<(PathBuf, u64)> {
        let directory = marks::open_by_handle(&self.mount.path.0, self.mount.mount_id, handle)?;
        let path = fs::read_link(format!("/proc/thread-self/fd/{}", directory.as_raw_fd()))?;
        Ok((self.mount.inside(&path), described(&directory)?.1))
    }
}
