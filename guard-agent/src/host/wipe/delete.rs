//! Deletes everything below a root; the root itself stays.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};

use super::walk::{Found, Root, Visitor, WipeError, walk};

/// Result of a deletion.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    pub files: u64,
    pub directories: u64,
    /// Names that could not be deleted; only the first ones.
    pub failures: Vec<Failure>,
    /// All of them.
    pub failed: u64,
}

/// Something that stayed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub path: PathBuf,
    pub error: String,
    pub fix: String,
}

/// Failures that are named.
const FAILURES: usize = 50;
/// Deletions between two calls of `progress`.
const NAMES_A_REPORT: u64 = 1000;

/// Deletes until all is gone, a mountpoint is met, or `progress` says no. Names that cannot be
/// deleted stay and are reported.
pub fn delete(
    root: &Root,
    progress: &mut dyn FnMut(&Deleted) -> bool,
) -> (Deleted, Result<(), WipeError>) {
    let mut deleter = Deleter { deleted: Deleted::default(), progress };
    let result = walk(root, &mut deleter);
    (deleter.deleted, result)
}

struct Deleter<'a> {
    deleted: Deleted,
    progress: &'a mut dyn FnMut(&Deleted) -> bool,
}

impl Deleter<'_> {
    fn counted(&mut self) -> Result<(), WipeError> {
        let count = self.deleted.files + self.deleted.directories;
        if count.is_multiple_of(NAMES_A_REPORT) && !(self.progress)(&self.deleted) {
            return Err(WipeError::Stopped);
        }
        Ok(())
    }
}

impl Visitor for Deleter<'_> {
    fn file(&mut self, directory: &OwnedFd, name: &CStr, path: &Path) -> Result<Found, WipeError> {
        match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => {
                self.deleted.files += 1;
                self.counted()?;
            }
            Err(Errno::ENOENT) => {}
            Err(Errno::EISDIR) => return Ok(Found::Directory),
            Err(Errno::EBUSY) => return Err(WipeError::Mountpoint { path: path.to_owned() }),
            Err(error) => self.failed(path, error.into()),
        }
        Ok(Found::File)
    }

    fn directory(&mut self, parent: &OwnedFd, name: &CStr, path: &Path) -> Result<(), WipeError> {
        match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            Ok(()) => {
                self.deleted.directories += 1;
                self.counted()?;
            }
            Err(Errno::ENOENT) => {}
            Err(Errno::EBUSY) => return Err(WipeError::Mountpoint { path: path.to_owned() }),
            // Its remaining content has been named already.
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if self.deleted.failed > 0 => {}
            Err(error) => self.failed(path, error.into()),
        }
        Ok(())
    }

    fn failed(&mut self, path: &Path, error: io::Error) {
        self.deleted.failed += 1;
        if self.deleted.failures.len() < FAILURES {
            let (path, fix) = (path.to_owned(), fix(&error, path));
            self.deleted.failures.push(Failure { path, error: error.to_string(), fix });
        }
    }
}

fn fix(error: &io::Error, path: &Path) -> String {
    let path = path.display();
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => format!("is it immutable? lsattr -d {path}; chattr -i {path}"),
        Some(Errno::EROFS) => {
            format!("a read-only subvolume? btrfs property set -ts {path} ro false")
        }
        Some(Errno::ENOTEMPTY | Errno::EEXIST) => "somebody writes there: end that".to_owned(),
        Some(Errno::EACCES) => "run it as root".to_owned(),
        _ => "correct that, then guardctl wipe again".to_owned(),
    }
}

#[cfg(test)]
#[path = "delete_tests.rs"]
mod tests;
