//! Preview of a deletion: counts and sizes, by a walk that changes nothing. Mounts below are not
//! looked into, not even by a stat.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat2};
use serde::{Deserialize, Serialize};

use super::walk::{Found, Root, Visitor, WipeError, below, walk};

/// Content of a root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    #[serde(flatten)]
    pub all: Part,
    /// The same for each name in the root.
    pub parts: BTreeMap<String, Part>,
    /// Files and directories that could not be looked at.
    pub failures: Vec<String>,
    /// The mountpoint that ended the walk: the counts are those of the names before it.
    pub stopped_at: Option<PathBuf>,
}

/// Counts and sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub files: u64,
    pub directories: u64,
    /// On the disk.
    pub bytes: u64,
}

/// Failures that are named.
const FAILURES: usize = 20;

/// Counts everything below a root.
pub fn census(root: &Root, path: &Path) -> Result<Census, WipeError> {
    let mut counter = Counter { root: path, census: Census::default() };
    match walk(root, &mut counter) {
        Err(WipeError::Mountpoint { path } | WipeError::OtherMount { path }) => {
            counter.census.stopped_at = Some(path);
        }
        other => other?,
    }
    Ok(counter.census)
}

struct Counter<'a> {
    root: &'a Path,
    census: Census,
}

impl Counter<'_> {
    fn add(&mut self, path: &Path, part: Part) {
        let relative = path.strip_prefix(self.root).unwrap_or(path);
        let first = relative
            .components()
            .next()
            .map_or_else(String::new, |first| first.as_os_str().to_string_lossy().into_owned());
        let of_name = self.census.parts.entry(first).or_default();
        for sum in [&mut self.census.all, of_name] {
            sum.files += part.files;
            sum.directories += part.directories;
            sum.bytes += part.bytes;
        }
    }
}

impl Visitor for Counter<'_> {
    fn file(&mut self, directory: &OwnedFd, name: &CStr, path: &Path) -> Result<Found, WipeError> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = match openat2(directory, name, below(flags)) {
            Ok(file) => File::from(file),
            Err(Errno::EXDEV) => return Err(WipeError::Mountpoint { path: path.to_owned() }),
            Err(Errno::ENOENT) => return Ok(Found::File),
            Err(error) => {
                self.failed(path, error.into());
                return Ok(Found::File);
            }
        };
        match file.metadata() {
            Ok(metadata) if metadata.is_dir() => return Ok(Found::Directory),
            // A file of several names is counted with each: fewer bytes are freed.
            Ok(metadata) => {
                self.add(
                    path,
                    Part { files: 1, directories: 0, bytes: metadata.blocks().saturating_mul(512) },
                );
            }
            Err(error) => self.failed(path, error),
        }
        Ok(Found::File)
    }

    fn directory(&mut self, _parent: &OwnedFd, _name: &CStr, path: &Path) -> Result<(), WipeError> {
        self.add(path, Part { files: 0, directories: 1, bytes: 0 });
        Ok(())
    }

    fn failed(&mut self, path: &Path, error: io::Error) {
        if self.census.failures.len() < FAILURES {
            self.census.failures.push(format!("{}: {error}", path.display()));
        }
    }
}
