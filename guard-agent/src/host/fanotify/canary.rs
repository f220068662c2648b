//! The canary of this tier: opening a directory must be refused, and a sealed mount must refuse
//! changes, for real.
//!
//! On a private superblock of the agent's own (a detached ramfs, in no mount table) that bears the
//! same mark as the pools' mounts, so that the question goes the whole way through the kernel and
//! the responder.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use guard_common::policy::{POOL_CANARY, RAMFS_MAGIC, kernel_dev};
use guard_common::{Hook, Mode, PoolEntry, PoolKey};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode as FileMode, fstat, major, minor, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::identity::described;
use super::marks;
use super::order::{PathText, Wanted};
use crate::host::bpf::canary::{CanaryError, detached_ramfs};
use crate::host::bpf::maps::{Maps, Write};

const DIRECTORY: &str = "directory";
const FILE: &str = "file";

/// A detached ramfs with a directory in it.
#[derive(Debug)]
pub(super) struct CanaryMount {
    mount: OwnedFd,
    mount_id: u32,
    dev: u32,
}

fn setup<E: Into<io::Error>>(operation: &'static str) -> impl Fn(E) -> CanaryError {
    move |source| CanaryError::Setup { operation, source: source.into() }
}

impl CanaryMount {
    pub(super) fn new() -> Result<Self, CanaryError> {
        let mount = detached_ramfs().map_err(setup("mount a ramfs"))?;
        mkdirat(&mount, DIRECTORY, FileMode::S_IRWXU).map_err(setup("create a directory"))?;
        let status = fstat(&mount).map_err(setup("stat the ramfs"))?;
        let dev = kernel_dev(major(status.st_dev) as u32, minor(status.st_dev) as u32);
        let (mount_id, _) = described(&mount).map_err(setup("look at the ramfs"))?;
        Ok(Self { mount, mount_id, dev })
    }

    /// The state that the responder gives it, and the path by which it is reached.
    pub(super) fn wanted(&self) -> Wanted {
        Wanted {
            mount_id: self.mount_id,
            dev: self.dev,
            head: 0,
            path: PathText(
                format!("/proc/{}/fd/{}", std::process::id(), self.mount.as_raw_fd()).into(),
            ),
            root: PathText("/".into()),
            marked: true,
            is_pool: false,
            read_only: None,
        }
    }

    /// Proves that questions are answered, both ways, and that sealing works. An answer that takes
    /// longer than `bound` is none: then `give_up` must end the process that should have answered.
    pub(super) fn prove(
        &self,
        maps: &mut Maps,
        bound: Duration,
        give_up: impl FnOnce(),
    ) -> Result<(), CanaryError> {
        let entry = PoolEntry {
            magic: RAMFS_MAGIC,
            mode: Mode::Sealed as u32,
            flags: POOL_CANARY,
            ..PoolEntry::default()
        };
        maps.pools.write(PoolKey::superblock(self.dev), entry, Write::Put)?;
        let refused = self.open(bound);
        maps.pools.remove(&PoolKey::superblock(self.dev))?;
        match refused {
            Some(Err(Errno::EPERM)) => {}
            Some(Ok(())) => return Err(CanaryError::Silent { hook: Hook::FanotifyOpen }),
            Some(Err(errno)) => return Err(setup("open a directory that must be refused")(errno)),
            None => {
                give_up();
                let late =
                    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {bound:?}"));
                return Err(setup("open a directory that must be refused")(late));
            }
        }
        match self.open(bound) {
            Some(opened) => opened.map_err(setup("open a directory without an entry"))?,
            None => {
                give_up();
                let late =
                    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {bound:?}"));
                return Err(setup("open a directory without an entry")(late));
            }
        }
        self.prove_seal()
    }

    /// Opens the directory in a thread of its own: this one must not wait for an answer that may
    /// not come.
    fn open(&self, bound: Duration) -> Option<nix::Result<()>> {
        let mount = self.mount.try_clone().ok()?;
        let (tell, told) = mpsc::channel();
        let open = move || {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            // Nobody may be left to be told.
            let _ = tell.send(openat(&mount, DIRECTORY, flags, FileMode::empty()).map(drop));
        };
        thread::Builder::new().name("guard-canary".to_owned()).spawn(open).ok()?;
        told.recv_timeout(bound).ok()
    }

    fn prove_seal(&self) -> Result<(), CanaryError> {
        let mount = File::from(
            self.mount.as_fd().try_clone_to_owned().map_err(setup("copy the descriptor"))?,
        );
        marks::set_read_only(&mount, true).map_err(setup("make a mount read-only"))?;
        let created = self.create();
        marks::set_read_only(&mount, false).map_err(setup("make a mount writable"))?;
        match created {
            Err(Errno::EROFS) => {}
            Ok(()) => {
                let passed = io::Error::other("a file could be created in a read-only mount");
                return Err(setup("make a mount read-only")(passed));
            }
            Err(errno) => return Err(setup("create a file in a read-only mount")(errno)),
        }
        self.create().map_err(setup("create a file in a mount that was read-only"))?;
        unlinkat(&self.mount, FILE, UnlinkatFlags::NoRemoveDir).map_err(setup("remove a file"))
    }

    fn create(&self) -> nix::Result<()> {
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        openat(&self.mount, FILE, flags, FileMode::S_IRUSR | FileMode::S_IWUSR).map(drop)
    }
}

/// Makes the marks and the read-only mount that this tier needs, on a filesystem of its own that
/// nobody else can reach, and lets go of all of it. Nobody is asked anything.
pub fn try_marks() -> Result<(), CanaryError> {
    let canary = CanaryMount::new()?;
    canary.prove_seal()?;
    let mount = File::from(
        canary.mount.as_fd().try_clone_to_owned().map_err(setup("copy the descriptor"))?,
    );
    let group = marks::group().map_err(setup("make a fanotify group for permission events"))?;
    marks::mark(&group, &mount).map_err(setup("mark a mount for permission events"))
}
