//! Watches paths for "there may be something new": files, directories, executables, cgroups.
//!
//! Every directory on the way to a path is watched for the one name that leads on, also through
//! symbolic links. So it sees a file written in place, an editor's rename, deletion and
//! re-creation, a missing parent that appears, and a link that is turned (as Kubernetes does with
//! `..data`). It says that a path may have changed, not how; several changes at once are not told
//! apart, and waiting until they are over is the caller's part. Paths on a network filesystem
//! should not be given.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::host::reactor;
use crate::host::reactor::OwnsDescriptor;

/// As many links as the kernel follows.
const MAX_LINKS: usize = 40;

/// A set of watched paths.
#[derive(Debug)]
pub struct PathWatcher {
    inotify: AsyncFd<Descriptor>,
    paths: Vec<PathBuf>,
    watches: Watches,
}

/// inotify, with the descriptor that the reactor asks for.
#[derive(Debug)]
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

// SAFETY: `Inotify` owns one descriptor and closes it when it is dropped.
unsafe impl OwnsDescriptor for Descriptor {}

/// For each watched directory: the names that lead to paths (by index), and the paths it leads to.
type Watches = HashMap<WatchDescriptor, BTreeMap<OsString, BTreeSet<usize>>>;

impl PathWatcher {
    /// Watches absolute paths; they need not exist. Must be called within a tokio runtime.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let inotify = reactor::watch(Descriptor(inotify), Interest::READABLE)?;
        let mut watcher = Self { inotify, paths: Vec::new(), watches: Watches::new() };
        watcher.set_paths(paths)?;
        Ok(watcher)
    }

    /// Watches these paths from now on. Call it with the same paths after the mount table has
    /// changed: a mount may hide the directories that were watched.
    pub fn set_paths(&mut self, paths: impl IntoIterator<Item = PathBuf>) -> io::Result<()> {
        self.paths = paths.into_iter().collect();
        self.rearm()
    }

    /// Waits until some paths may have changed; returns them. They are watched again before it
    /// returns, so that reading them afterwards misses nothing. Cancel-safe.
    pub async fn changed(&mut self) -> io::Result<Vec<PathBuf>> {
        loop {
            let events = self.events().await?;
            let touched: BTreeSet<usize> =
                events.iter().flat_map(|event| self.touched(event)).collect();
            if !touched.is_empty() {
                self.rearm()?;
                return Ok(touched
                    .into_iter()
                    .filter_map(|index| self.paths.get(index).cloned())
                    .collect());
            }
        }
    }

    async fn events(&self) -> io::Result<Vec<InotifyEvent>> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match self.inotify.get_ref().0.read_events() {
                Ok(events) => return Ok(events),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn touched(&self, event: &InotifyEvent) -> BTreeSet<usize> {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return (0..self.paths.len()).collect();
        }
        let Some(names) = self.watches.get(&event.wd) else { return BTreeSet::new() };
        match &event.name {
            Some(name) => names.get(name).cloned().unwrap_or_default(),
            // The directory itself was moved, deleted or unmounted.
            None => names.values().flatten().copied().collect(),
        }
    }

    fn rearm(&mut self) -> io::Result<()> {
        let mut watches = Watches::new();
        for (index, path) in self.paths.iter().enumerate() {
            self.arm(index, path, &mut watches)?;
        }
        let old = std::mem::replace(&mut self.watches, watches);
        for descriptor in
            old.into_keys().filter(|descriptor| !self.watches.contains_key(descriptor))
        {
            // The kernel may have removed it together with its directory.
            let _ = self.inotify.get_ref().0.rm_watch(descriptor);
        }
        Ok(())
    }

    /// Watches every existing directory on the way to a path.
    fn arm(&self, index: usize, path: &Path, watches: &mut Watches) -> io::Result<()> {
        let mut rest: Vec<OsString> = names(path);
        let (mut directory, mut links) = (PathBuf::from("/"), 0);
        while let Some(name) = rest.pop() {
            if name == ".." {
                directory.pop();
                continue;
            }
            // The watch comes before the look: a change between them is an event.
            let Some(descriptor) = self.add(&directory)? else { return Ok(()) };
            watches.entry(descriptor).or_default().entry(name.clone()).or_default().insert(index);
            let next = directory.join(&name);
            match std::fs::read_link(&next) {
                Ok(target) if links < MAX_LINKS => {
                    links += 1;
                    if target.is_absolute() {
                        directory = PathBuf::from("/");
                    }
                    rest.extend(names(&target));
                }
                Ok(_) => return Ok(()),
                // Not a link; or not there, then adding the next watch says so.
                Err(_) => directory = next,
            }
        }
        Ok(())
    }

    /// `None` if it is no directory that can be watched now.
    fn add(&self, directory: &Path) -> io::Result<Option<WatchDescriptor>> {
        let events = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        match self.inotify.get_ref().0.add_watch(directory, events) {
            Ok(descriptor) => Ok(Some(descriptor)),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::ELOOP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The components of a path, the first one last.
fn names(path: &Path) -> Vec<OsString> {
    let kept = |component: &Component<'_>| {
        matches!(component, Component::Normal(_) | Component::ParentDir)
    };
    path.components().filter(kept).rev().map(|component| component.as_os_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    struct Place {
        directory: tempfile::TempDir,
        file: PathBuf,
        watcher: PathWatcher,
    }

    impl Place {
        fn new(relative: &str, prepare: impl FnOnce(&Path)) -> Self {
            let directory = tempfile::tempdir().unwrap();
            prepare(directory.path());
            let file = directory.path().join(relative);
            let watcher = PathWatcher::new([file.clone()]).unwrap();
            Self { directory, file, watcher }
        }

        fn path(&self, relative: &str) -> PathBuf {
            self.directory.path().join(relative)
        }

        /// The change is seen; then all events of it are drained.
        async fn sees(&mut self) {
            let change = tokio::time::timeout(Duration::from_secs(5), self.watcher.changed()).await;
            assert_eq!(
                change.expect("a change is seen").unwrap(),
                std::slice::from_ref(&self.file)
            );
            while tokio::time::timeout(Duration::from_millis(20), self.watcher.changed())
                .await
                .is_ok()
            {}
        }

        async fn sees_nothing(&mut self) {
            let change =
                tokio::time::timeout(Duration::from_millis(50), self.watcher.changed()).await;
            assert!(change.is_err(), "{change:?}");
        }
    }

    #[tokio::test]
    async fn edits_of_a_file() {
        let mut place =
            Place::new("policy.toml", |path| fs::write(path.join("policy.toml"), "a").unwrap());
        fs::write(place.path("other"), "x").unwrap();
        place.sees_nothing().await;
        fs::write(&place.file, "b").unwrap();
        place.sees().await;
        // As editors and configuration management do.
        fs::write(place.path(".policy.tmp"), "c").unwrap();
        fs::rename(place.path(".policy.tmp"), &place.file).unwrap();
        place.sees().await;
        fs::remove_file(&place.file).unwrap();
        place.sees().await;
        fs::write(&place.file, "d").unwrap();
        place.sees().await;
    }

    #[tokio::test]
    async fn missing_parents_appear_and_go() {
        let mut place = Place::new("a/b/file", |_| {});
        fs::create_dir_all(place.path("a/b")).unwrap();
        place.sees().await;
        fs::write(&place.file, "").unwrap();
        place.sees().await;
        fs::rename(place.path("a"), place.path("old")).unwrap();
        place.sees().await;
        fs::write(place.path("old/b/file"), "x").unwrap();
        place.sees_nothing().await;
        fs::create_dir_all(place.path("a/b")).unwrap();
        place.sees().await;
        fs::write(&place.file, "").unwrap();
        place.sees().await;
    }

    #[tokio::test]
    async fn turned_links_and_their_targets() {
        let mut place = Place::new("file", |path| {
            for version in ["v1", "v2"] {
                fs::create_dir(path.join(version)).unwrap();
                fs::write(path.join(version).join("file"), version).unwrap();
            }
            symlink("v1", path.join("..data")).unwrap();
            symlink("..data/file", path.join("file")).unwrap();
        });
        fs::write(place.path("v1/file"), "new").unwrap();
        place.sees().await;
        symlink("v2", place.path("..tmp")).unwrap();
        fs::rename(place.path("..tmp"), place.path("..data")).unwrap();
        place.sees().await;
        fs::write(place.path("v1/file"), "unseen").unwrap();
        place.sees_nothing().await;
        fs::write(place.path("v2/file"), "seen").unwrap();
        place.sees().await;
    }

    #[tokio::test]
    async fn paths_can_be_exchanged() {
        let mut place = Place::new("one", |_| {});
        let two = place.path("two");
        place.watcher.set_paths([two.clone()]).unwrap();
        fs::write(place.path("one"), "").unwrap();
        place.sees_nothing().await;
        fs::write(&two, "").unwrap();
        assert_eq!(place.watcher.changed().await.unwrap(), [two]);
    }
}
