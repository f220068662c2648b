//! A walk through a tree that cannot leave it: not by a mount, not by a link, not by a directory
//! that is moved away meanwhile.
//!
//! Every directory is opened relative to the descriptor of its parent, by openat2(2) with
//! `RESOLVE_NO_XDEV`, and must then be on the very mount that the root is on. Only the current
//! directory is open, so the depth has no limit: the way back goes through `..`, which must be the
//! directory that the way there came from.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use thiserror::Error;

use crate::host::roots;

/// Why a walk stopped.
#[derive(Debug, Error)]
pub enum WipeError {
    #[error("{path} is a mountpoint: nothing below it was touched, and the walk has stopped there")]
    Mountpoint { path: PathBuf },
    #[error("{path} was moved while it was walked through: nothing more was touched")]
    Moved { path: PathBuf },
    #[error("{path} lies on another mount than the root: nothing in it was touched")]
    OtherMount { path: PathBuf },
    #[error("the walk was stopped")]
    Stopped,
    #[error("{operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl WipeError {
    /// The advice to the operator.
    pub fn fix(&self) -> String {
        match self {
            Self::Mountpoint { path } | Self::OtherMount { path } => {
                let path = path.display();
                format!(
                    "what is mounted there? findmnt {path}; unmount it if it may go, then guardctl \
                     wipe again"
                )
            }
            Self::Moved { .. } => {
                "end the process that moves directories in there, then run guardctl wipe again"
                    .to_owned()
            }
            Self::Stopped => "guardctl wipe again goes on where it stopped".to_owned(),
            Self::Io { .. } => {
                "correct that, then guardctl wipe again: it goes on where it stopped".to_owned()
            }
        }
    }
}

/// Mount and identity of an open directory. The device matters on btrfs, where each subvolume has
/// its own inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    mount_id: u32,
    dev: u64,
    ino: u64,
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
        let (mount_id, _) = roots::parse_fdinfo(&text)
            .ok_or_else(|| io::Error::other("no mnt_id and ino: the kernel is older than 5.14"))?;
        // It is on the root's mount, or will be refused: this asks no server.
        let metadata = file.metadata()?;
        Ok(Self { mount_id, dev: metadata.dev(), ino: metadata.ino() })
    }
}

/// The directory that a walk begins at.
#[derive(Debug)]
pub struct Root {
    directory: File,
    identity: Identity,
    path: PathBuf,
}

impl Root {
    /// Opens it. It must not be a link, and its filesystem must be a local one: that is the
    /// caller's to know.
    pub fn open(path: &Path) -> Result<Self, WipeError> {
        let failed = |operation| {
            let path = path.to_owned();
            move |source| WipeError::Io { operation, path, source }
        };
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits())
            .open(path)
            .map_err(failed("open"))?;
        let identity = Identity::of(&directory).map_err(failed("look at"))?;
        Ok(Self { directory, identity, path: path.to_owned() })
    }

    /// Id of the mount that it lies on.
    pub fn mount_id(&self) -> u32 {
        self.identity.mount_id
    }
}

/// Actions of a walk. Paths are for messages; names are relative to the open directory.
pub(super) trait Visitor {
    /// Something that is no directory.
    fn file(&mut self, directory: &OwnedFd, name: &CStr, path: &Path) -> Result<Found, WipeError>;
    /// A directory whose entries have all been visited.
    fn directory(&mut self, parent: &OwnedFd, name: &CStr, path: &Path) -> Result<(), WipeError>;
    /// Something that could not be looked at. The walk goes on without it.
    fn failed(&mut self, path: &Path, error: io::Error);
}

/// Kind of a name.
pub(super) enum Found {
    File,
    /// The filesystem does not tell kinds, and it is a directory after all.
    Directory,
}

struct Frame {
    /// In its parent.
    name: CString,
    identity: Identity,
    /// Directories in it that were not visited yet.
    directories: Vec<CString>,
}

/// Walks through everything below a root, files before directories, depth first.
pub(super) fn walk(root: &Root, visitor: &mut impl Visitor) -> Result<(), WipeError> {
    let current = open_below(root.directory.as_fd(), c".")
        .map_err(|error| failed("open", &root.path, error))?;
    let mut walk = Walk { root, current, path: root.path.clone(), frames: Vec::new() };
    walk.enter(CString::default(), root.identity, visitor)?;
    while let Some(frame) = walk.frames.last_mut() {
        match frame.directories.pop() {
            Some(name) => walk.descend(name, visitor)?,
            None => walk.ascend(visitor)?,
        }
    }
    Ok(())
}

struct Walk<'a> {
    root: &'a Root,
    current: OwnedFd,
    path: PathBuf,
    frames: Vec<Frame>,
}

impl Walk<'_> {
    /// Visits the files of the current directory, and notes its directories.
    fn enter(
        &mut self,
        name: CString,
        identity: Identity,
        visitor: &mut impl Visitor,
    ) -> Result<(), WipeError> {
        let mut directories = Vec::new();
        match names(&self.current) {
            Ok(names) => {
                for (name, kind) in names {
                    if kind == Some(Type::Directory) {
                        directories.push(name);
                        continue;
                    }
                    let path = self.path.join(OsStr::from_bytes(name.to_bytes()));
                    if let Found::Directory = visitor.file(&self.current, &name, &path)? {
                        directories.push(name);
                    }
                }
            }
            Err(error) => visitor.failed(&self.path, error.into()),
        }
        self.frames.push(Frame { name, identity, directories });
        Ok(())
    }

    fn descend(&mut self, name: CString, visitor: &mut impl Visitor) -> Result<(), WipeError> {
        let path = self.path.join(OsStr::from_bytes(name.to_bytes()));
        let directory = match open_below(self.current.as_fd(), &name) {
            Ok(directory) => directory,
            Err(Errno::EXDEV) => return Err(WipeError::Mountpoint { path }),
            // It went, or became something else, meanwhile.
            Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                return visitor.file(&self.current, &name, &path).map(|_| ());
            }
            Err(error) => {
                visitor.failed(&path, error.into());
                return Ok(());
            }
        };
        let directory = File::from(directory);
        let identity =
            Identity::of(&directory).map_err(|source| io_error("look at", &path, source))?;
        if identity.mount_id != self.root.identity.mount_id {
            return Err(WipeError::OtherMount { path });
        }
        (self.current, self.path) = (directory.into(), path);
        self.enter(name, identity, visitor)
    }

    fn ascend(&mut self, visitor: &mut impl Visitor) -> Result<(), WipeError> {
        let (Some(done), Some(parent)) = (self.frames.pop(), self.frames.last()) else {
            return Ok(());
        };
        let how = OpenHow::new().flags(directory_flags()).resolve(
            ResolveFlag::RESOLVE_NO_XDEV
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        );
        let above = openat2(self.current.as_fd(), c"..", how)
            .map_err(|error| failed("open", &self.path, error))?;
        let above = File::from(above);
        let identity =
            Identity::of(&above).map_err(|source| io_error("look at", &self.path, source))?;
        if identity != parent.identity {
            return Err(WipeError::Moved { path: self.path.clone() });
        }
        let path = self.path.clone();
        self.current = above.into();
        self.path.pop();
        visitor.directory(&self.current, &done.name, &path)
    }
}

fn directory_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK
}

/// Opens a directory below another one: on the same mount, and by no link.
fn open_below(directory: impl AsFd, name: &CStr) -> nix::Result<OwnedFd> {
    openat2(directory, name, below(directory_flags()))
}

/// Flags to open an entry of a directory, on its mount only.
pub(super) fn below(flags: OFlag) -> OpenHow {
    let resolve = ResolveFlag::RESOLVE_NO_XDEV
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_BENEATH;
    OpenHow::new().flags(flags).mode(Mode::empty()).resolve(resolve)
}

/// All names in a directory, before any of them is touched.
fn names(directory: &OwnedFd) -> nix::Result<Vec<(CString, Option<Type>)>> {
    let mut list = Dir::openat(directory, c".", directory_flags(), Mode::empty())?;
    let mut names = Vec::new();
    for entry in list.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push((name.to_owned(), entry.file_type()));
        }
    }
    Ok(names)
}

pub(super) fn failed(operation: &'static str, path: &Path, error: Errno) -> WipeError {
    io_error(operation, path, error.into())
}

fn io_error(operation: &'static str, path: &Path, source: io::Error) -> WipeError {
    WipeError::Io { operation, path: path.to_owned(), source }
}
