//! System calls that no library here wraps: detached mounts, mounts with mapped owners, files by
//! handle, and ways to write over a file.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

/// open_tree(2): a copy of a mount, from this directory on, that is in no namespace.
pub fn detached_copy(path: &Path) -> io::Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
    let name = name(path)?;
    // SAFETY: a system call with a NUL-closed path; the result is checked.
    descriptor(unsafe {
        let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
        libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, name.as_ptr(), flags)
    })
}

/// move_mount(2): gives a detached mount a place.
pub fn attach(mount: BorrowedFd<'_>, place: &Path) -> io::Result<()> {
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    let name = name(place)?;
    // SAFETY: a system call with NUL-closed paths; the result is checked.
    done(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            name.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
}

/// mount_setattr(2): maps the owners in a detached mount as a user namespace does.
pub fn map_owners(mount: BorrowedFd<'_>, user_namespace: &File) -> io::Result<()> {
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let attributes: [u64; 4] = [MOUNT_ATTR_IDMAP, 0, 0, user_namespace.as_raw_fd() as u64];
    // SAFETY: a system call on an open descriptor, with a `struct mount_attr` of the size that it
    // is told.
    done(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    })
}

/// name_to_handle_at(2), then open_by_handle_at(2) on a mount of the same filesystem: no path leads
/// to the result.
pub fn open_by_handle(path: &Path, mount: &File, flags: libc::c_int) -> io::Result<File> {
    const BYTES: usize = 128;
    /// `struct file_handle`, with room for the longest.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        opaque: [u8; BYTES],
    }
    let mut handle = Handle { bytes: BYTES as u32, kind: 0, opaque: [0; BYTES] };
    let mut mount_id: libc::c_int = 0;
    let name = name(path)?;
    // SAFETY: a system call with a NUL-closed path that writes to `handle` as much as that says it
    // holds.
    done(unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            name.as_ptr(),
            &raw mut handle,
            &raw mut mount_id,
            0,
        )
    })?;
    // SAFETY: a system call that reads the handle that the kernel has just written.
    descriptor(unsafe {
        let flags = flags | libc::O_CLOEXEC;
        libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw const handle, flags)
    })
    .map(File::from)
}

/// pidfd_getfd(2): another process's descriptor.
pub fn descriptor_of(pid: u32, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: a system call with numbers; the result is checked.
    let process = descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: a system call on an open descriptor; the result is checked.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })
}

/// setxattr(2).
pub fn set_attribute(path: &Path, attribute: &str, value: &str) -> io::Result<()> {
    let (path, attribute) = (name(path)?, CString::new(attribute)?);
    // SAFETY: NUL-closed names, and a value of the length that is told.
    let result = unsafe {
        libc::setxattr(path.as_ptr(), attribute.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    done(result.into())
}

/// copy_file_range(2), from the beginning of one file to that of another.
pub fn copy(from: &File, to: &File, length: usize) -> io::Result<usize> {
    let (nowhere, from, to) = (std::ptr::null_mut(), from.as_raw_fd(), to.as_raw_fd());
    // SAFETY: a system call on open descriptors.
    let copied = unsafe { libc::copy_file_range(from, nowhere, to, nowhere, length, 0) };
    Ok(Errno::result(copied)? as usize)
}

/// Writes to the beginning of a file by mmap(2), and has it written back.
pub fn write_through_memory(file: &File, bytes: &[u8]) -> io::Result<()> {
    let length = bytes.len();
    // SAFETY: a new mapping, of which nobody else knows. The file is long enough, and is not cut
    // short meanwhile.
    unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let memory =
            libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, file.as_raw_fd(), 0);
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        memory.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), length);
        let written = Errno::result(libc::msync(memory, length, libc::MS_SYNC));
        Errno::result(libc::munmap(memory, length))?;
        written?;
    }
    Ok(())
}

fn name(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn done(result: libc::c_long) -> io::Result<()> {
    Ok(Errno::result(result).map(drop)?)
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let number = Errno::result(result)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number as i32) })
}
