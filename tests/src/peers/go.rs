//! Go's `os.RemoveAll`, step for step as in `removeall_at.go`: unlink first whatever it is, and on
//! EISDIR, EPERM or EACCES look, descend by directory descriptors, go on after errors, rmdir at the
//! end. Incus, Docker and the kubelet delete like this.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

/// `os.RemoveAll(path)`: it returns the first error.
pub fn remove_all(path: &Path) -> Result<(), Errno> {
    let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Errno::EINVAL)?;
    remove_all_from(AT_FDCWD, &name)
}

/// Everything in a directory that is already open, with or without a path that leads to it.
/// Returns the first error.
pub fn remove_children(directory: BorrowedFd<'_>) -> Result<Option<Errno>> {
    let mut first = None;
    for name in names(directory).context("list the open directory")? {
        if let Err(error) = remove_all_from(directory, &name) {
            first.get_or_insert(error);
        }
    }
    Ok(first)
}

fn remove_all_from(parent: BorrowedFd<'_>, name: &CString) -> Result<(), Errno> {
    let unlinked = unlinkat(parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir);
    match unlinked {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR | Errno::EPERM | Errno::EACCES) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = match nix::fcntl::openat(parent, name.as_c_str(), flags, Mode::empty()) {
        Ok(directory) => directory,
        // No directory: the error of the unlink is the one to return.
        Err(Errno::ENOTDIR | Errno::ELOOP) => return unlinked,
        Err(error) => return Err(error),
    };
    let mut first = None;
    for child in names(directory.as_fd())? {
        if let Err(error) = remove_all_from(directory.as_fd(), &child) {
            first.get_or_insert(error);
        }
    }
    match unlinkat(parent, name.as_c_str(), UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(first.unwrap_or(error)),
    }
}

fn names(directory: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut listing =
        Dir::openat(directory, ".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}
