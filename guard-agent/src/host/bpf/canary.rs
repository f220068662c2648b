//! The canary: attached is not enforcing, so every hook has to deny something for real.
//!
//! On a private superblock of the agent's own (a detached ramfs, in no mount table), each operation
//! is tried where it must work and then where it must be denied. The entry of that superblock names
//! the load of the programs that has to answer, so that a new load cannot hide behind an old one.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use guard_common::policy::{POOL_CANARY, POOL_CANARY_BACKSTOP, RAMFS_MAGIC};
use guard_common::{Hook, Mode, PoolEntry, PoolKey};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::libc;
use nix::sys::stat::{Mode as FileMode, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, ftruncate, truncate, unlinkat};
use thiserror::Error;

use super::maps::{MapAccessError, Maps, Write};

/// The canary did not prove enforcement.
#[derive(Debug, Error)]
pub enum CanaryError {
    /// A hook let a deletion pass that it had to deny.
    #[error("hook {} did not answer: a deletion passed that it had to deny", hook.name())]
    Silent { hook: Hook },
    /// The superblock ended, and its entry stayed.
    #[error("hook sb_delete did not answer: the entry of an ended superblock stayed")]
    EntryStayed,
    /// The canary's own filesystem could not be set up or used.
    #[error("canary: {operation}")]
    Setup {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Map(#[from] MapAccessError),
}

fn setup(operation: &'static str) -> impl Fn(Errno) -> CanaryError {
    move |errno| CanaryError::Setup { operation, source: errno.into() }
}

/// Proves that each of the loads with these tokens answers on every hook, and that the superblock's
/// end clears its entry.
pub fn prove(maps: &mut Maps, mut tokens: impl Iterator<Item = u32>) -> Result<(), CanaryError> {
    tokens.try_for_each(|token| prove_load(maps, token))
}

fn prove_load(maps: &mut Maps, token: u32) -> Result<(), CanaryError> {
    let superblock = CanarySuperblock::new()?;
    let key = PoolKey::superblock(superblock.dev);
    maps.pools.remove(&PLACE)?;
    let outcome = superblock.try_all(maps, token);
    drop(superblock);
    let stayed = maps.pools.get(&key)?.is_some();
    if stayed {
        maps.pools.remove(&key)?;
    }
    keep_place(maps)?;
    outcome?;
    if stayed { Err(CanaryError::EntryStayed) } else { Ok(()) }
}

/// No superblock's device. An entry under this number keeps a place for the canary's, however many
/// pools there are.
const PLACE: PoolKey = PoolKey::superblock(u32::MAX);

fn keep_place(maps: &mut Maps) -> Result<(), MapAccessError> {
    let entry = PoolEntry { magic: RAMFS_MAGIC, flags: POOL_CANARY, ..PoolEntry::default() };
    maps.pools.write(PLACE, entry, Write::Put)
}

/// A detached ramfs.
struct CanarySuperblock {
    mount: OwnedFd,
    dev: u32,
}

const VICTIM: &CStr = c"victim";
const OTHER: &CStr = c"other";
const DIRECTORY: &CStr = c"directory";

impl CanarySuperblock {
    fn new() -> Result<Self, CanaryError> {
        let mount = detached_ramfs()
            .map_err(|source| CanaryError::Setup { operation: "mount a ramfs", source })?;
        let status = fstat(&mount).map_err(setup("stat the ramfs"))?;
        let dev = guard_common::policy::kernel_dev(
            nix::sys::stat::major(status.st_dev) as u32,
            nix::sys::stat::minor(status.st_dev) as u32,
        );
        Ok(Self { mount, dev })
    }

    fn try_all(&self, maps: &mut Maps, token: u32) -> Result<(), CanaryError> {
        // Here each operation must work: a later refusal then comes from the programs, not from the
        // filesystem.
        self.populate()?;
        self.unlink(VICTIM).map_err(setup("unlink without an entry"))?;
        self.rmdir().map_err(setup("rmdir without an entry"))?;
        self.populate()?;

        let entry = |flags| PoolEntry {
            magic: RAMFS_MAGIC,
            mode: Mode::Sealed as u32,
            flags: POOL_CANARY | flags,
            canary_token: token,
            ..PoolEntry::default()
        };
        maps.pools.write(PoolKey::superblock(self.dev), entry(0), Write::Put)?;
        must_deny(Hook::PathUnlink, self.unlink(VICTIM))?;
        must_deny(Hook::PathRmdir, self.rmdir())?;
        must_deny(Hook::PathRename, self.rename())?;
        must_deny(Hook::PathTruncate, self.truncate_path())?;
        must_deny(Hook::FileTruncate, self.truncate_file())?;

        maps.pools.write(PoolKey::superblock(self.dev), entry(POOL_CANARY_BACKSTOP), Write::Put)?;
        must_deny(Hook::InodeUnlink, self.unlink(VICTIM))?;
        must_deny(Hook::InodeRmdir, self.rmdir())?;
        must_deny(Hook::InodeRename, self.rename())?;
        must_deny(Hook::InodeSetattr, self.truncate_path())
    }

    fn populate(&self) -> Result<(), CanaryError> {
        for name in [VICTIM, OTHER] {
            let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            openat(&self.mount, name, flags, FileMode::S_IRUSR | FileMode::S_IWUSR)
                .map_err(setup("create a file"))?;
        }
        match mkdirat(&self.mount, DIRECTORY, FileMode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(setup("create a directory")(errno)),
        }
    }

    fn unlink(&self, name: &CStr) -> nix::Result<()> {
        unlinkat(&self.mount, name, UnlinkatFlags::NoRemoveDir)
    }

    fn rmdir(&self) -> nix::Result<()> {
        unlinkat(&self.mount, DIRECTORY, UnlinkatFlags::RemoveDir)
    }

    fn rename(&self) -> nix::Result<()> {
        renameat(&self.mount, VICTIM, &self.mount, OTHER)
    }

    /// By name: `path_truncate`.
    fn truncate_path(&self) -> nix::Result<()> {
        let path = format!("/proc/self/fd/{}/other", self.mount.as_raw_fd());
        truncate(CString::new(path).expect("no NUL in it").as_c_str(), 0)
    }

    /// By descriptor: `file_truncate` since 6.2, `path_truncate` before.
    fn truncate_file(&self) -> nix::Result<()> {
        let file =
            openat(&self.mount, OTHER, OFlag::O_WRONLY | OFlag::O_CLOEXEC, FileMode::empty())?;
        ftruncate(file, 0)
    }
}

fn must_deny(hook: Hook, result: nix::Result<()>) -> Result<(), CanaryError> {
    match result {
        Err(Errno::EPERM) => Ok(()),
        Ok(()) => Err(CanaryError::Silent { hook }),
        Err(errno) => Err(setup("an operation that must be denied failed otherwise")(errno)),
    }
}

/// fsopen(2), fsconfig(2), fsmount(2): a mount that is in no namespace and ends with its
/// descriptor.
pub(crate) fn detached_ramfs() -> io::Result<OwnedFd> {
    const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
    const CLOEXEC: libc::c_uint = 1;
    // SAFETY: a system call with a NUL-closed name; the result is checked.
    let context =
        descriptor(unsafe { libc::syscall(libc::SYS_fsopen, c"ramfs".as_ptr(), CLOEXEC) })?;
    // SAFETY: a system call on an open descriptor that takes no further arguments.
    let created = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            std::ptr::null::<libc::c_char>(),
            std::ptr::null::<libc::c_void>(),
            0,
        )
    };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a system call on an open descriptor.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOEXEC, 0) })
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}
