//! The system calls: permission marks on mounts, marks for deletions on superblocks, and the
//! read-only attribute of mounts.
//!
//! Each is made on a mount that was opened (by `O_PATH`, which asks no server) and found to be the
//! one that is meant. Marking may ask the pool's servers all the same, since the kernel checks that
//! the directory may be read: it is done where nothing else waits for it.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};

use super::deletion::Handle;
use super::identity::described;
use super::statmount;

/// A group for permission events. Its queue has no limit: no question is lost, and none is answered
/// by the kernel.
pub(super) fn group() -> nix::Result<Fanotify> {
    let flags = InitFlags::FAN_CLASS_CONTENT
        | InitFlags::FAN_CLOEXEC
        | InitFlags::FAN_UNLIMITED_QUEUE
        | InitFlags::FAN_UNLIMITED_MARKS;
    Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_LARGEFILE | EventFFlags::O_CLOEXEC)
}

/// Opens a mount at the place where it is reached; `None` if another one, or none, is there.
pub(super) fn open_mount(path: &Path, mount_id: u32) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC | libc::O_DIRECTORY);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    Ok((described(&file)?.0 == mount_id).then_some(file))
}

/// From now on opening and listing a directory through this mount is asked about; files are not.
pub(super) fn mark(group: &Fanotify, mount: &File) -> nix::Result<()> {
    let asked = MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_ACCESS_PERM;
    // Files first: an event that nobody decides about must not wait for an answer.
    let ignore = MarkFlags::FAN_MARK_ADD
        | MarkFlags::FAN_MARK_MOUNT
        | MarkFlags::FAN_MARK_IGNORE
        | MarkFlags::FAN_MARK_IGNORED_SURV_MODIFY;
    change(group, mount, ignore, asked)?;
    change(
        group,
        mount,
        MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_MOUNT,
        asked | MaskFlags::FAN_ONDIR,
    )
}

/// Takes the mark back.
pub(super) fn unmark(group: &Fanotify, mount: &File) -> nix::Result<()> {
    let asked = MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_ACCESS_PERM;
    let remove = MarkFlags::FAN_MARK_REMOVE | MarkFlags::FAN_MARK_MOUNT;
    change(group, mount, remove, asked | MaskFlags::FAN_ONDIR)?;
    change(group, mount, remove | MarkFlags::FAN_MARK_IGNORE, asked)
}

fn change(group: &Fanotify, mount: &File, flags: MarkFlags, mask: MaskFlags) -> nix::Result<()> {
    // By this name, since the call takes no O_PATH descriptor.
    let path = format!("/proc/thread-self/fd/{}", mount.as_raw_fd());
    group.mark(flags, mask, nix::fcntl::AT_FDCWD, Some(path.as_str()))
}

/// A group for deletions: told after the fact, by directory and name. Its queue is limited, since
/// nobody waits for its reader; an event that finds no room is told as such.
pub(super) fn deletions_group() -> nix::Result<Fanotify> {
    let named = InitFlags::from_bits_retain(libc::FAN_REPORT_DFID_NAME);
    let flags =
        InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK | named;
    Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC)
}

/// From now on deletions in this mount's superblock are told, through any of its mounts. The
/// superblock may end all the same: the mark holds nothing.
pub(super) fn mark_deletions(group: &Fanotify, mount: &File) -> nix::Result<()> {
    let how = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
    change(group, mount, how, MaskFlags::FAN_DELETE | MaskFlags::FAN_ONDIR)
}

/// A group that tells which mounts are attached in a mount namespace. `EINVAL` before Linux 6.15.
pub(super) fn mount_events(namespace: &File) -> nix::Result<Fanotify> {
    let mounts = InitFlags::from_bits_retain(statmount::REPORT_MOUNTS);
    let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | mounts;
    let group = Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC)?;
    let how = MarkFlags::FAN_MARK_ADD | MarkFlags::from_bits_retain(statmount::MARK_NAMESPACE);
    group.mark(how, MaskFlags::from_bits_retain(statmount::ATTACHED), namespace, None::<&str>)?;
    Ok(group)
}

/// Opens (by `O_PATH`) a directory of the superblock that is mounted at a place. Asks its servers
/// if need be, and keeps the mount busy for that moment.
pub(super) fn open_by_handle(path: &Path, mount_id: u32, handle: &Handle) -> io::Result<OwnedFd> {
    // The call takes no O_PATH descriptor. Opening one asks this process's own group, which allows
    // it.
    let mount = File::open(path)?;
    if described(&mount)?.0 != mount_id {
        return Err(Errno::ESTALE.into());
    }
    let mut raw = handle.to_raw();
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: an open descriptor, and a `struct file_handle` that begins with its length.
    let opened =
        unsafe { libc::open_by_handle_at(mount.as_raw_fd(), raw.as_mut_ptr().cast(), flags) };
    // SAFETY: a new descriptor that nobody else owns.
    Errno::result(opened).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).map_err(io::Error::from)
}

/// Sets or clears the read-only attribute of this one mount; the superblock and its other mounts
/// stay as they are. Setting it fails with `EBUSY` while a file is open for writing through it.
pub(super) fn set_read_only(mount: &File, read_only: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 },
        attr_clr: if read_only { 0 } else { libc::MOUNT_ATTR_RDONLY },
        propagation: 0,
        userns_fd: 0,
    };
    let empty = CString::default();
    // SAFETY: an open descriptor, a NUL-closed empty path, and a structure of the size that is
    // told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
