//! Paths of the policy → numbers that the kernel program compares: device and inode of guarded
//! roots and executables, ids of cgroups.
//!
//! Never blocks on a network filesystem whose servers are gone. Every step of a path is checked
//! against the mount table before it is looked at; paths on a network filesystem are not touched.
//! Files are opened with `O_PATH`, which asks no server, and described by their `fdinfo`: mount id
//! and inode as the kernel keeps them (`i_ino`). `stat` would not do: on btrfs and overlay its
//! device is not the superblock's `s_dev`, and on some overlays its inode is not `i_ino`.
//!
//! The agent must run in the host's mount namespace.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use guard_common::RootKey;
use nix::libc::{O_CLOEXEC, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK, O_PATH};
use thiserror::Error;

use crate::model::classify::Classification;
use crate::model::mounts::{MountEntry, Snapshot};
use crate::model::plan::Resolved;
use crate::model::policy::{Filesystem, Policy};

/// Magic of the filesystem that has the files of namespaces (linux/magic.h).
const NSFS_MAGIC: nix::libc::c_long = 0x6e73_6673;
// `FS_IOC_GETVERSION` of linux/fs.h.
nix::ioctl_read!(generation_of, b'v', 1, nix::libc::c_long);
/// As many links as the kernel follows.
const MAX_LINKS: usize = 40;

/// Why a path could not be resolved. All of them can be over a moment later: try again on change.
#[derive(Debug, Error)]
pub enum ResolveError {
    #[error("{path} does not exist")]
    Absent { path: PathBuf },
    #[error("{path} is not a directory")]
    NotDirectory { path: PathBuf },
    /// Looking at it might block.
    #[error("{path} lies on {fs_type}, which is not touched")]
    OnNetwork { path: PathBuf, fs_type: String },
    #[error("{path}: too many symbolic links")]
    TooManyLinks { path: PathBuf },
    /// It was mounted after the snapshot was taken.
    #[error("{path} lies on mount {mount_id}, which is not in the mount table")]
    UnknownMount { path: PathBuf, mount_id: u32 },
    #[error("no cgroup v2 hierarchy is mounted")]
    NoCgroup2,
    /// snapd makes the file first and pins the namespace there later.
    #[error("{path} is no mount namespace: nothing is pinned there")]
    NoNamespace { path: PathBuf },
    #[error("{operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The kernel's identity of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// `s_dev` in the kernel's encoding.
    pub dev: u32,
    /// `i_ino`.
    pub ino: u64,
}

/// A policy's paths on this host.
#[derive(Debug, Default)]
pub struct Resolution {
    /// For `plan`.
    pub resolved: Resolved,
    /// The roots' paths with symbolic links followed, as the mount table shows them; in the order
    /// of the policy. Give them to [`Policy::with_root_paths`] before classifying.
    pub root_paths: Vec<PathBuf>,
    /// Entries of the policy that could not be resolved.
    pub problems: Vec<ResolveError>,
}

impl ResolveError {
    /// Whether the thing is not there yet: it is waited for. Anything else is there and cannot be
    /// looked at.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Absent { .. } | Self::NoNamespace { .. })
    }
}

impl Resolution {
    /// Roots that are reached through symbolic links: path in the policy, and where it leads.
    pub fn linked_roots<'a>(
        &'a self,
        policy: &'a Policy,
    ) -> impl Iterator<Item = (&'a Path, &'a Path)> {
        let pairs = policy
            .roots()
            .iter()
            .map(|root| root.path())
            .zip(self.root_paths.iter().map(PathBuf::as_path));
        pairs.filter(|(written, found)| written != found)
    }
}

/// Resolves everything that a policy names.
pub fn resolve(policy: &Policy, snapshot: &Snapshot) -> Resolution {
    let mut resolution = Resolution::default();
    for root in policy.roots() {
        let (path, object) = resolve_root(root.path(), snapshot);
        resolution.root_paths.push(path);
        let object = resolution.noted(object);
        let key = object.map(|object| RootKey { ino: object.ino, dev: object.dev, reserved: 0 });
        if let (Some(object), Some(path)) = (object, resolution.root_paths.last().cloned()) {
            resolution.note_generation(object, &path);
        }
        resolution.resolved.roots.push(key);
        for path in root.guests() {
            if !resolution.resolved.cgroups.contains_key(path)
                && let Some(id) = resolution.noted(resolve_cgroup(path, snapshot))
            {
                resolution.resolved.cgroups.insert(path.to_owned(), id);
            }
        }
        for path in root.namespaces() {
            let namespace = resolution.noted(resolve_namespace(path, snapshot));
            resolution.resolved.namespaces.extend(namespace);
        }
    }
    for actor in policy.roots().iter().flat_map(|root| root.actors()) {
        if let Some(path) = actor.cgroup()
            && !resolution.resolved.cgroups.contains_key(path)
            && let Some(id) = resolution.noted(resolve_cgroup(path, snapshot))
        {
            resolution.resolved.cgroups.insert(path.to_owned(), id);
        }
        if let Some(path) = actor.executable()
            && !resolution.resolved.executables.contains_key(path)
            && let Some(object) = resolution.noted(resolve_executable(path, snapshot))
        {
            resolution.resolved.executables.insert(path.to_owned(), (object.dev, object.ino));
            if let Ok(path) = canonical(path, snapshot) {
                resolution.note_generation(object, &path);
            }
        }
    }
    resolution
}

impl Resolution {
    /// Notes the `i_generation` of an object that lies at a path, where its filesystem tells it:
    /// ext4, XFS, Btrfs and F2FS do, which give inode numbers out again; overlayfs and tmpfs do
    /// not.
    fn note_generation(&mut self, object: Object, path: &Path) {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
        let Ok(file) = options.open(path) else { return };
        // Another file may lie there by now.
        let same = describe(&file, path).is_ok_and(|(_, ino)| ino == object.ino);
        let mut generation = 0;
        // SAFETY: the kernel writes an `int` there, which is no larger.
        let told = unsafe { generation_of(file.as_raw_fd(), &raw mut generation) };
        if same && told.is_ok() {
            self.resolved.generations.insert((object.dev, object.ino), generation as u32);
        }
    }

    fn noted<T>(&mut self, result: Result<T, ResolveError>) -> Option<T> {
        result.map_err(|error| self.problems.push(error)).ok()
    }
}

/// Whether a path leads through or to a network filesystem, where looking at it may block.
pub fn is_on_network(path: &Path, snapshot: &Snapshot) -> bool {
    let reached = canonical(path, snapshot).and_then(|path| untouchable(&path, snapshot));
    matches!(reached, Err(ResolveError::OnNetwork { .. }))
}

/// A guarded root's directory; and its path with links followed as far as that is possible.
pub fn resolve_root(path: &Path, snapshot: &Snapshot) -> (PathBuf, Result<Object, ResolveError>) {
    match canonical(path, snapshot) {
        Ok(path) => {
            let object =
                untouchable(&path, snapshot).and_then(|()| object(&path, O_DIRECTORY, snapshot));
            (path, object)
        }
        Err(error) => (path.to_owned(), Err(error)),
    }
}

/// An executable, with links followed.
pub fn resolve_executable(path: &Path, snapshot: &Snapshot) -> Result<Object, ResolveError> {
    let path = canonical(path, snapshot)?;
    untouchable(&path, snapshot)?;
    object(&path, 0, snapshot)
}

/// Inodes of the roots of CephFS pools, by `s_dev`. Roots that cannot be looked at are left out.
pub fn pool_roots(classification: &Classification, snapshot: &Snapshot) -> BTreeMap<u32, u64> {
    let found = classification.pools.iter().filter_map(|pool| {
        let shows_it =
            |entry: &&MountEntry| entry.dev() == pool.dev && entry.root == Path::new("/");
        let mount = snapshot.entries().iter().find(shows_it).filter(|_| pool.ceph.is_some())?;
        // The directory that it is mounted on is local, and O_PATH asks no server about the one
        // mounted there: Ceph's client checks no root again (it has no `d_weak_revalidate`).
        let parent = mount.mountpoint.parent()?;
        untouchable(parent, snapshot).ok()?;
        let root = object(&mount.mountpoint, O_DIRECTORY, snapshot).ok()?;
        (root.dev == pool.dev).then_some((pool.dev, root.ino))
    });
    found.collect()
}

/// The id of a cgroup (v2): the inode of its directory. `path` is as in `/proc/PID/cgroup`.
pub fn resolve_cgroup(path: &str, snapshot: &Snapshot) -> Result<u64, ResolveError> {
    let directory = cgroup_directory(path, snapshot).ok_or(ResolveError::NoCgroup2)?;
    object(&directory, O_DIRECTORY, snapshot).map(|object| object.ino)
}

/// The directory of a cgroup (v2), wherever the hierarchy is mounted.
pub fn cgroup_directory(path: &str, snapshot: &Snapshot) -> Option<PathBuf> {
    let whole = |fs_type: &str, root: &Path| fs_type == "cgroup2" && root == Path::new("/");
    let hierarchy = snapshot.entries().iter().find(|entry| whole(&entry.fs_type, &entry.root))?;
    Some(hierarchy.mountpoint.join(path.trim_start_matches('/')))
}

/// The inode of a mount namespace that a path leads to: one that is pinned there, or
/// `/proc/PID/ns/mnt`.
fn resolve_namespace(path: &Path, snapshot: &Snapshot) -> Result<u32, ResolveError> {
    untouchable(path, snapshot)?;
    let found = fs::metadata(path).map_err(|error| failed("look at", path, error))?;
    let of_namespaces =
        nix::sys::statfs::statfs(path).map_err(|error| failed("look at", path, error.into()))?;
    let number =
        u32::try_from(found.ino()).ok().filter(|_| of_namespaces.filesystem_type().0 == NSFS_MAGIC);
    number.ok_or_else(|| ResolveError::NoNamespace { path: path.to_owned() })
}

/// Follows all links of a path without touching a network filesystem: the part on one stays as
/// written.
fn canonical(path: &Path, snapshot: &Snapshot) -> Result<PathBuf, ResolveError> {
    let mut rest: Vec<PathBuf> = components(path).collect();
    rest.reverse();
    let (mut done, mut links) = (PathBuf::from("/"), 0);
    while let Some(component) = rest.pop() {
        if component == Path::new("..") {
            done.pop();
            continue;
        }
        let next = done.join(&component);
        if untouchable(&next, snapshot).is_err() {
            done = next;
            continue;
        }
        match fs::read_link(&next) {
            Ok(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(ResolveError::TooManyLinks { path: path.to_owned() });
                }
                if target.is_absolute() {
                    done = PathBuf::from("/");
                }
                rest.extend(components(&target).collect::<Vec<_>>().into_iter().rev());
            }
            // Not a link.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => done = next,
            Err(error) => return Err(failed("follow", path, error)),
        }
    }
    Ok(done)
}

fn components(path: &Path) -> impl Iterator<Item = PathBuf> + '_ {
    let kept = |component: &Component<'_>| {
        matches!(component, Component::Normal(_) | Component::ParentDir)
    };
    path.components().filter(kept).map(|component| PathBuf::from(component.as_os_str()))
}

/// Refuses a path whose topmost mount is a network filesystem or an automount point.
fn untouchable(path: &Path, snapshot: &Snapshot) -> Result<(), ResolveError> {
    match snapshot.mount_of(path) {
        Some(mount) if may_block(&mount.fs_type) => {
            Err(ResolveError::OnNetwork { path: path.to_owned(), fs_type: mount.fs_type.clone() })
        }
        _ => Ok(()),
    }
}

fn may_block(fs_type: &str) -> bool {
    let shared = Filesystem::is_known(fs_type) && fs_type != "tmpfs";
    shared || fs_type == "autofs" || fs_type.starts_with("fuse")
}

fn object(path: &Path, flags: i32, snapshot: &Snapshot) -> Result<Object, ResolveError> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(O_PATH | O_NOFOLLOW | O_CLOEXEC | flags);
    let file = options.open(path).map_err(|error| failed("open", path, error))?;
    let (mount_id, ino) = describe(&file, path)?;
    let mount = snapshot.mount(mount_id);
    let mount =
        mount.ok_or_else(|| ResolveError::UnknownMount { path: path.to_owned(), mount_id })?;
    Ok(Object { dev: mount.dev(), ino })
}

/// Mount id and inode of an open file, from its `fdinfo`.
fn describe(file: &File, path: &Path) -> Result<(u32, u64), ResolveError> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))
        .map_err(|error| failed("read fdinfo of", path, error))?;
    parse_fdinfo(&text).ok_or_else(|| {
        let error = io::Error::other("no mnt_id and ino: the kernel is older than 5.14");
        failed("read fdinfo of", path, error)
    })
}

pub(crate) fn parse_fdinfo(text: &str) -> Option<(u32, u64)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some((field("mnt_id:")?.parse().ok()?, field("ino:")?.parse().ok()?))
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> ResolveError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => ResolveError::Absent { path },
        io::ErrorKind::NotADirectory => ResolveError::NotDirectory { path },
        _ => ResolveError::Io { operation, path, source },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    /// A table of one mount, the one that a directory lies on. The host's own table will not do: it
    /// leaves out the root's mount if this runs in a chroot.
    fn host(directory: &Path) -> Snapshot {
        let (mount_id, _) = describe(&File::open(directory).unwrap(), directory).unwrap();
        Snapshot::parse(format!("{mount_id} 1 254:0 / / rw - ext4 /dev/vda rw\n").as_bytes())
    }

    #[test]
    fn links_are_followed_everywhere_in_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap();
        fs::create_dir_all(real.join("data/incus")).unwrap();
        symlink("data", real.join("lib")).unwrap();
        symlink("../lib/./incus", real.join("data/root")).unwrap();
        let host = host(&real);
        let (path, object) = resolve_root(&real.join("lib/root"), &host);
        assert_eq!(path, real.join("data/incus"));
        assert_eq!(object.unwrap().ino, fs::metadata(&path).unwrap().ino());
        symlink("loop", real.join("loop")).unwrap();
        let (_, object) = resolve_root(&real.join("loop"), &host);
        assert!(matches!(object, Err(ResolveError::TooManyLinks { .. })));
    }

    #[test]
    fn absence_and_wrong_kinds_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let host = host(directory.path());
        let resolve = |path: &Path| resolve_root(path, &host).1;
        assert!(matches!(
            resolve(&directory.path().join("none/x")),
            Err(ResolveError::Absent { .. })
        ));
        assert!(matches!(resolve(&file), Err(ResolveError::NotDirectory { .. })));
        assert!(matches!(resolve(&file.join("x")), Err(ResolveError::NotDirectory { .. })));
        assert_eq!(
            resolve_executable(&file, &host).unwrap().ino,
            fs::metadata(&file).unwrap().ino()
        );
        let unknown = resolve_executable(&file, &Snapshot::default());
        assert!(matches!(unknown, Err(ResolveError::UnknownMount { .. })));
    }

    #[test]
    fn a_network_filesystem_is_not_touched() {
        let table = "27 1 254:0 / / rw - ext4 /dev/vda rw\n78 27 0:43 / /no/such/place rw - ceph \
                     m:/ rw\n";
        let snapshot = Snapshot::parse(table.as_bytes());
        // Neither exists: to look at the second would say so.
        let (_, object) = resolve_root(Path::new("/no/such/place/root"), &snapshot);
        assert!(matches!(object, Err(ResolveError::Absent { .. })), "/no is looked at");
        let below = untouchable(Path::new("/no/such/place/root"), &snapshot);
        assert!(matches!(below, Err(ResolveError::OnNetwork { fs_type, .. }) if fs_type == "ceph"));
        let table = "27 1 254:0 / / rw - ceph m:/ rw\n";
        let (path, object) = resolve_root(Path::new("/a/b"), &Snapshot::parse(table.as_bytes()));
        assert_eq!(path, Path::new("/a/b"));
        assert!(matches!(object, Err(ResolveError::OnNetwork { .. })));
    }

    #[test]
    fn cgroups_are_found_where_their_hierarchy_is() {
        let table = "38 31 0:38 /part /sys/fs/cgroup/part rw - cgroup2 cgroup2 rw\n\
                     39 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let snapshot = Snapshot::parse(table.as_bytes());
        let directory = cgroup_directory("/system.slice/incus.service", &snapshot).unwrap();
        assert_eq!(directory, Path::new("/sys/fs/cgroup/unified/system.slice/incus.service"));
        assert!(matches!(resolve_cgroup("/x", &Snapshot::default()), Err(ResolveError::NoCgroup2)));
    }

    #[test]
    fn fdinfo_of_an_old_kernel_is_no_guess() {
        assert_eq!(parse_fdinfo("pos:\t0\nflags:\t0100000\nmnt_id:\t24\nino:\t3\n"), Some((24, 3)));
        assert_eq!(parse_fdinfo("pos:\t0\nflags:\t0100000\nmnt_id:\t24\n"), None);
    }
}
