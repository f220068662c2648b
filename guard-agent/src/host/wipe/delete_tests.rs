//! Deletions in temporary directories. (Mounts need root: see the stand-in suite.)

use std::fs;
use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;
use crate::host::wipe::census;

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("root")).unwrap();
        fs::create_dir_all(directory.path().join("outside/deep")).unwrap();
        fs::write(directory.path().join("outside/deep/precious"), "x").unwrap();
        Self { directory }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn delete(&self) -> (Deleted, Result<(), WipeError>) {
        delete(&Root::open(&self.root()).unwrap(), &mut |_| true)
    }

    fn is_empty(&self) -> bool {
        fs::read_dir(self.root()).unwrap().next().is_none()
    }

    fn outside_is_whole(&self) -> bool {
        self.directory.path().join("outside/deep/precious").exists()
    }
}

#[test]
fn everything_goes_but_the_root_and_what_links_lead_to() {
    let place = Place::new();
    let root = place.root();
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::write(root.join("a/b/file"), "xyz").unwrap();
    symlink("../outside", root.join("link")).unwrap();
    symlink(place.directory.path().join("outside/deep"), root.join("a/absolute")).unwrap();
    fs::hard_link(place.directory.path().join("outside/deep/precious"), root.join("hard")).unwrap();
    nix::unistd::mkfifo(&root.join("a/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("unix.socket")).unwrap();

    let counted = census(&Root::open(&root).unwrap(), &root).unwrap();
    assert_eq!((counted.all.files, counted.all.directories), (6, 3));
    assert_eq!(counted.parts["a"].directories, 3);
    assert!(root.join("a/b/file").exists(), "a census deletes nothing");

    let (deleted, result) = place.delete();
    result.unwrap();
    assert_eq!((deleted.files, deleted.directories, deleted.failed), (6, 3, 0));
    assert!(place.is_empty() && place.outside_is_whole());
    // Once more finds nothing, and that is no error.
    let (deleted, result) = place.delete();
    assert!(result.is_ok() && deleted == Deleted::default());
}

#[test]
fn the_root_is_no_link() {
    let place = Place::new();
    let link = place.directory.path().join("linked");
    symlink("outside", &link).unwrap();
    assert!(Root::open(&link).is_err());
    assert!(place.outside_is_whole());
}

#[test]
fn a_tree_deeper_than_descriptors_and_paths_allow() {
    let place = Place::new();
    let mut current = nix::fcntl::open(
        &place.root(),
        nix::fcntl::OFlag::O_DIRECTORY,
        nix::sys::stat::Mode::empty(),
    )
    .unwrap();
    let name = "d".repeat(100);
    for _ in 0..3_000 {
        nix::sys::stat::mkdirat(&current, name.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let flags = nix::fcntl::OFlag::O_DIRECTORY;
        current = nix::fcntl::openat(&current, name.as_str(), flags, nix::sys::stat::Mode::empty())
            .unwrap();
    }
    let (deleted, result) = place.delete();
    result.unwrap();
    assert_eq!(deleted.directories, 3_000);
    assert!(place.is_empty());
}

#[test]
fn a_directory_that_is_moved_out_meanwhile_ends_the_walk() {
    let place = Place::new();
    let (root, outside) = (place.root(), place.directory.path().join("outside"));
    fs::create_dir_all(root.join("a/b")).unwrap();
    for number in 0..NAMES_A_REPORT {
        fs::write(root.join(format!("a/b/{number}")), "").unwrap();
    }
    fs::write(outside.join("b-sibling"), "").unwrap();
    let moved = &mut |_: &Deleted| fs::rename(root.join("a/b"), outside.join("b")).is_ok();
    let (_, result) = delete(&Root::open(&root).unwrap(), moved);
    assert!(matches!(result, Err(WipeError::Moved { .. })), "{result:?}");
    assert!(place.outside_is_whole() && outside.join("b-sibling").exists());
}

#[derive(Clone, Debug)]
enum Entry {
    File,
    Directory,
    Link,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_deletion_that_was_stopped_anywhere_goes_on(
        entries in prop::collection::vec((prop::sample::select(vec![Entry::File, Entry::Directory, Entry::Link]), 0_usize..20, "[a-c]{1,2}"), 0..30),
        stops in prop::collection::vec(0_u64..10, 0..4),
    ) {
        let place = Place::new();
        let mut directories = vec![place.root()];
        for (entry, parent, name) in entries {
            let path = directories[parent % directories.len()].join(name);
            if path.symlink_metadata().is_ok() {
                continue;
            }
            match entry {
                Entry::File => fs::write(&path, "x").unwrap(),
                Entry::Link => symlink(place.directory.path().join("outside"), &path).unwrap(),
                Entry::Directory => {
                    fs::create_dir(&path).unwrap();
                    directories.push(path);
                }
            }
        }
        for stop in stops {
            let root = Root::open(&place.root()).unwrap();
            let mut stopper = Stopper { left: stop };
            let _ = walk(&root, &mut stopper);
            prop_assert!(place.root().exists() && place.outside_is_whole());
        }
        let (_, result) = place.delete();
        prop_assert!(result.is_ok() && place.is_empty() && place.outside_is_whole(), "{:?}", result);
    }
}

/// Deletes so many things, then stops in the middle of everything, as a kill does.
struct Stopper {
    left: u64,
}

impl Stopper {
    fn act(&mut self, at: &OwnedFd, name: &CStr, flags: UnlinkatFlags) -> Result<Found, WipeError> {
        self.left = self.left.checked_sub(1).ok_or(WipeError::Stopped)?;
        let _ = unlinkat(at, name, flags);
        Ok(Found::File)
    }
}

impl Visitor for Stopper {
    fn file(&mut self, directory: &OwnedFd, name: &CStr, _: &Path) -> Result<Found, WipeError> {
        self.act(directory, name, UnlinkatFlags::NoRemoveDir)
    }

    fn directory(&mut self, parent: &OwnedFd, name: &CStr, _: &Path) -> Result<(), WipeError> {
        self.act(parent, name, UnlinkatFlags::RemoveDir).map(|_| ())
    }

    fn failed(&mut self, _: &Path, _: io::Error) {}
}
