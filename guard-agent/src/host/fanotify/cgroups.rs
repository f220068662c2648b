//! Cgroups of version 2 that processes have asked from: those above them, and their rights by
//! policy.
//!
//! Kept are two facts, each with its basis:
//!
//! - The cgroup that a path names, and those above it. No cgroup is renamed, none goes before
//!   those below it, and none has the id of an earlier one. So all of it holds until the cgroup
//!   goes. A file of its own that stays open tells whether it has gone (procfs and cgroupfs tie
//!   an open file to the thing, not to the name).
//! - The actors that policy names among them. That holds while `Config::generation` is the same
//!   even number, as for the kernel program: the agent makes it odd before it changes a map, and
//!   another even number afterwards.
//!
//! Leases come and go by themselves, and are looked up each time that there may be any.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, fence};

use guard_common::policy::CONFIG_LEASES;
use guard_common::{CgroupKey, Config, LeaseKey, PoolEntry};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::host::bpf::{MapAccessError, Maps};

/// So many cgroups are known; with one more all are forgotten. Each has a file open.
const CGROUPS: usize = 64;
/// A file that every cgroup has, the first one too, and that never tells of a change.
const FILE: &str = "cgroup.controllers";

/// The rights that policy gives a cgroup, by itself or by those above it, in one set of actors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// It names one of them as an actor, for every executable.
    pub alone: bool,
    /// Actors that are named by one of them together with an executable.
    pub combined: u64,
}

/// One cgroup.
#[derive(Debug)]
pub(super) struct Cgroup {
    /// Its own id and all above it.
    ids: Vec<u64>,
    file: File,
    answers: Answers,
}

/// Rights by set of actors, and the generation of the maps that they hold for.
#[derive(Debug, Default)]
struct Answers {
    generation: u32,
    said: Vec<(u32, Said)>,
}

/// All that are known, with their paths in the hierarchy.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    /// Root of the hierarchy. Without one nothing can have been named by a cgroup.
    top: Option<PathBuf>,
    known: Vec<(PathBuf, Cgroup)>,
}

impl Cgroups {
    /// Tells where the hierarchy is.
    pub(super) fn set_top(&mut self, top: Option<PathBuf>) {
        if self.top != top {
            self.known.clear();
            self.top = top;
        }
    }

    /// Whether there is a hierarchy.
    pub(super) fn is_there(&self) -> bool {
        self.top.is_some()
    }

    /// Whether it is known which cgroup a path names, and still so: then it was so ever since it
    /// was learnt. Returns where it is to be had.
    pub(super) fn find(&self, path: &Path) -> Option<usize> {
        // As bytes: the kernel writes a path in one way only, and comparing parts would take
        // longer.
        let bytes = path.as_os_str().as_bytes();
        let index =
            self.known.iter().position(|(known, _)| known.as_os_str().as_bytes() == bytes)?;
        self.known[index].1.is_there().then_some(index)
    }

    /// The cgroup that was found.
    pub(super) fn found(&mut self, index: usize) -> &mut Cgroup {
        &mut self.known[index].1
    }

    /// Looks a cgroup up.
    pub(super) fn learn(&mut self, path: &Path) -> io::Result<()> {
        let top = self.top.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let relative = path.strip_prefix("/").unwrap_or(path);
        let file = File::open(top.join(relative).join(FILE))?;
        // Until it is read first, it claims to have changed.
        file.read_at(&mut [0], 0)?;
        let id = |part: &Path| fs::metadata(top.join(part)).map(|directory| directory.ino());
        let ids = relative.ancestors().map(id).collect::<io::Result<Vec<u64>>>()?;
        let cgroup = Cgroup { ids, file, answers: Answers::default() };
        // If it is there now it was there all the while, and with it those above it.
        if !cgroup.is_there() {
            return Err(io::Error::other(
                "the process's cgroup was removed while it was looked at",
            ));
        }
        self.known.retain(|(known, _)| known != path);
        if self.known.len() >= CGROUPS {
            self.known.clear();
        }
        self.known.push((path.to_owned(), cgroup));
        Ok(())
    }
}

impl Cgroup {
    /// Its own id.
    pub(super) fn id(&self) -> u64 {
        self.ids[0]
    }

    /// Whether it has not been removed. Files of a cgroup that is gone are in a state of error.
    fn is_there(&self) -> bool {
        let mut polled = [PollFd::new(self.file.as_fd(), PollFlags::empty())];
        poll(&mut polled, PollTimeout::ZERO) == Ok(0)
    }

    /// The rights of the cgroup. `config` must have been read after the question came.
    pub(super) fn said(
        &mut self,
        maps: &Maps,
        config: &Config,
        actor_set: u32,
    ) -> Result<Said, MapAccessError> {
        if let Some(said) = self.answers.kept(config.generation, actor_set) {
            return Ok(said);
        }
        let mut said = Said::default();
        for &cgroup_id in &self.ids {
            let key = CgroupKey { cgroup_id, actor_set, reserved: 0 };
            if let Some(mask) = maps.actor_cgroups.get(&key)? {
                said.alone |= mask.alone != 0;
                said.combined |= mask.combined;
            }
        }
        // The number was read before the entries by the caller, and is read after them here.
        fence(Ordering::SeqCst);
        self.answers.keep(config.generation, maps.config.read()?.generation, actor_set, said);
        Ok(said)
    }

    /// Whether a command in it has a lease on a pool that runs.
    pub(super) fn has_lease(
        &self,
        maps: &Maps,
        config: &Config,
        dev: u32,
        entry: &PoolEntry,
        now_boot_ns: u64,
    ) -> Result<bool, MapAccessError> {
        if config.flags & CONFIG_LEASES == 0 {
            return Ok(false);
        }
        for &cgroup_id in &self.ids {
            let lease = maps.leases.get(&LeaseKey { cgroup_id, dev, reserved: 0 })?;
            if lease.is_some_and(|lease| {
                lease.generation == entry.generation && now_boot_ns < lease.expires_boot_ns
            }) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Answers {
    /// The rights that are kept for this generation; none while maps are being changed.
    fn kept(&mut self, generation: u32, actor_set: u32) -> Option<Said> {
        if self.generation != generation {
            self.said.clear();
            self.generation = generation;
        }
        let kept = self.said.iter().find(|(set, _)| *set == actor_set);
        kept.map(|(_, said)| *said)
    }

    /// Keeps the rights that were read between `before`, for which nothing was kept, and `after`.
    fn keep(&mut self, before: u32, after: u32, actor_set: u32, said: Said) {
        if before == after && before & 1 == 0 {
            self.said.push((actor_set, said));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree that looks like a hierarchy: a plain file is never gone.
    fn tree(top: &Path, path: &str) {
        fs::create_dir_all(top.join(path)).unwrap();
        for part in Path::new(path).ancestors() {
            fs::write(top.join(part).join(FILE), "").unwrap();
        }
    }

    #[test]
    fn a_cgroup_is_learnt_with_all_above_it() {
        let top = tempfile::tempdir().unwrap();
        tree(top.path(), "a/b");
        let ino = |path: &str| fs::metadata(top.path().join(path)).unwrap().ino();
        let mut cgroups = Cgroups::default();
        assert!(!cgroups.is_there() && cgroups.learn(Path::new("/a")).is_err());
        cgroups.set_top(Some(top.path().to_owned()));
        for (path, ids) in [
            ("/a/b", vec![ino("a/b"), ino("a"), ino("")]),
            ("/", vec![ino("")]),
            ("/a", vec![ino("a"), ino("")]),
        ] {
            let path = Path::new(path);
            assert_eq!(cgroups.find(path), None);
            cgroups.learn(path).unwrap();
            cgroups.learn(path).unwrap();
            let cgroup = cgroups.find(path).map(|index| cgroups.found(index)).unwrap();
            assert_eq!((cgroup.id(), &cgroup.ids), (ids[0], &ids));
        }
        assert!(cgroups.learn(Path::new("/c")).is_err(), "there is no such cgroup");
        cgroups.set_top(Some(top.path().to_owned()));
        assert_eq!(cgroups.known.len(), 3, "it is the same hierarchy");
        cgroups.set_top(None);
        assert_eq!(cgroups.find(Path::new("/a")), None);
    }

    #[test]
    fn no_more_than_some_are_kept() {
        let top = tempfile::tempdir().unwrap();
        let mut cgroups = Cgroups::default();
        cgroups.set_top(Some(top.path().to_owned()));
        for number in 0..=CGROUPS {
            tree(top.path(), &format!("c{number}"));
            cgroups.learn(Path::new(&format!("/c{number}"))).unwrap();
        }
        assert_eq!(cgroups.known.len(), 1);
    }

    #[test]
    fn what_policy_has_said_holds_until_a_map_changes() {
        let actor = Said { alone: true, combined: 0 };
        let mut answers = Answers::default();
        assert_eq!(answers.kept(4, 1), None);
        answers.keep(4, 4, 1, actor);
        assert_eq!((answers.kept(4, 1), answers.kept(4, 2)), (Some(actor), None));
        // A change is under way, and the next one has made this one's end.
        assert_eq!(answers.kept(5, 1), None);
        answers.keep(5, 5, 1, actor);
        assert_eq!(answers.kept(5, 1), None);
        assert_eq!(answers.kept(6, 1), None);
        // One came while it was looked at.
        answers.keep(6, 7, 1, actor);
        assert_eq!(answers.kept(6, 1), None);
        answers.keep(6, 8, 1, actor);
        assert_eq!(answers.kept(6, 1), None);
        answers.keep(6, 6, 1, actor);
        assert_eq!(answers.kept(6, 1), Some(actor));
        assert_eq!(
            answers.kept(4, 1),
            None,
            "nor does an earlier number bring back what was kept for it"
        );
    }

    #[test]
    fn a_file_in_a_state_of_error_tells_that_the_cgroup_is_gone() {
        // As a cgroup's file after rmdir: the end of a pipe without a reader is in error.
        let (read, write) = nix::unistd::pipe().unwrap();
        let cgroup = Cgroup { ids: vec![7], file: write.into(), answers: Answers::default() };
        assert!(cgroup.is_there());
        drop(read);
        assert!(!cgroup.is_there());
        let mut cgroups = Cgroups::default();
        cgroups.known.push(("/gone".into(), cgroup));
        assert_eq!(
            cgroups.find(Path::new("/gone")),
            None,
            "its id speaks for no other of the name"
        );
    }
}
