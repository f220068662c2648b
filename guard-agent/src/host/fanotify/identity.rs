//! Identifies a process that opens a directory and waits for the answer, by its files in `/proc`.
//!
//! While it waits it cannot end, so its number is its own. (One that is killed meanwhile may leave
//! its number to another; the answer then reaches nobody.) Nothing here reads the process's memory
//! or a path of a pool, which could block.
//!
//! Its cgroup and its executable are read anew for each answer: a process may move to another
//! cgroup, execute another program, and policy may change at any time. Kept are the start of a
//! process ([`Life`]), which cannot change, and facts that are proven unchanged each time that they
//! are used ([`Cgroups`]).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use guard_common::{ExecutableKey, Mode, PoolEntry};

use super::cgroups::{Cgroup, Cgroups, Said};
use super::decide::Asker;
use super::kept::{Descriptions, Life, Processes};
use crate::host::bpf::{MapAccessError, Maps};
use crate::host::mount_table;
use crate::host::process::stat_field;
use crate::host::roots;
use crate::model::mounts::Snapshot;

/// Number of tries to find a process that moves from cgroup to cgroup.
const TRIES: u32 = 8;

/// A process, as records need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Process {
    pub tgid: u32,
    pub ppid: u32,
    pub uid: u32,
    pub euid: u32,
    /// `u32::MAX`: not set.
    pub login_uid: u32,
    pub comm: [u8; 16],
    pub start_boot_ns: u64,
    pub kernel_thread: bool,
}

impl Process {
    /// One of which nothing is known.
    pub(super) fn unknown(tgid: u32) -> Self {
        Self { tgid, uid: u32::MAX, euid: u32::MAX, login_uid: u32::MAX, ..Self::default() }
    }

    /// Looks a process up below `proc_root` (`/proc`).
    pub(super) fn read(proc_root: &Path, tgid: u32) -> io::Result<Self> {
        let directory = proc_root.join(tgid.to_string());
        let stat = fs::read(directory.join("stat"))?;
        let status = fs::read_to_string(directory.join("status"))?;
        let login_uid = fs::read_to_string(directory.join("loginuid")).unwrap_or_default();
        let unclear = || io::Error::other("stat or status of a process could not be understood");
        Self::parse(tgid, &stat, &status, &login_uid).ok_or_else(unclear)
    }

    fn parse(tgid: u32, stat: &[u8], status: &str, login_uid: &str) -> Option<Self> {
        let (open, close) = (
            stat.iter().position(|byte| *byte == b'(')?,
            stat.iter().rposition(|byte| *byte == b')')?,
        );
        let mut comm = [0; 16];
        let name = stat.get(open + 1..close)?;
        let kept = name.len().min(comm.len() - 1);
        comm[..kept].copy_from_slice(&name[..kept]);
        let mut uids =
            status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_ascii_whitespace();
        let life = Life::parse(stat)?;
        Some(Self {
            tgid,
            ppid: stat_field(stat, 4)?.parse().ok()?,
            uid: uids.next()?.parse().ok()?,
            euid: uids.next()?.parse().ok()?,
            login_uid: login_uid.trim().parse().unwrap_or(u32::MAX),
            comm,
            start_boot_ns: life.start_boot_ns,
            kernel_thread: life.kernel_thread,
        })
    }
}

/// Looks processes up, and compares them with the names in policy.
#[derive(Debug)]
pub(super) struct Identities {
    /// The mounts of the host's namespace, of which executables are told.
    host: Snapshot,
    cgroups: Cgroups,
    processes: Processes,
    descriptions: Descriptions,
}

impl Default for Identities {
    fn default() -> Self {
        Self {
            host: Snapshot::default(),
            cgroups: Cgroups::default(),
            processes: Processes::new(Path::new("/proc")),
            descriptions: Descriptions::default(),
        }
    }
}

impl Identities {
    /// Reads the mount table anew.
    pub(super) fn refresh(&mut self) -> io::Result<()> {
        self.host = mount_table::open(mount_table::OWN)?;
        self.cgroups.set_top(roots::cgroup_directory("/", &self.host));
        Ok(())
    }

    /// Mount id and inode of an open file of this thread.
    pub(super) fn described(&mut self, file: &impl AsFd) -> io::Result<(u32, u64)> {
        self.descriptions.of(file)
    }

    /// Start and kind of a process that was asked about.
    pub(super) fn life(&mut self, tgid: u32) -> io::Result<Life> {
        self.processes.life(tgid)
    }

    /// The rights of a process in a pool, and the id of its cgroup.
    pub(super) fn ask(
        &mut self,
        maps: &Maps,
        dev: u32,
        entry: &PoolEntry,
        now_boot_ns: u64,
        tgid: u32,
    ) -> Result<(Asker, u64), AskError> {
        let (said, lease, own) = match cgroup(&mut self.processes, &mut self.cgroups, tgid)? {
            None => (Said::default(), false, 0),
            Some(cgroup) => {
                let config = maps.config.read()?;
                let said = cgroup.said(maps, &config, entry.actor_set)?;
                (said, cgroup.has_lease(maps, &config, dev, entry, now_boot_ns)?, cgroup.id())
            }
        };
        let mut asker = Asker { actor: said.alone, lease, ..Asker::default() };
        // A lease is always allowed, and so is an actor unless the mode lets none delete.
        if asker.lease || asker.actor && Mode::from_u32(entry.mode) != Some(Mode::Held) {
            return Ok((asker, own));
        }
        asker.kernel_thread = self.processes.life(tgid)?.kernel_thread;
        asker.actor |= !asker.kernel_thread
            && self.is_actor_by_executable(maps, entry.actor_set, said.combined, tgid)?;
        Ok((asker, own))
    }

    fn is_actor_by_executable(
        &mut self,
        maps: &Maps,
        actor_set: u32,
        combined: u64,
        tgid: u32,
    ) -> Result<bool, AskError> {
        let Some(executable) = self.processes.executable(tgid)? else { return Ok(false) };
        let (mount_id, ino) = self.descriptions.of(&executable)?;
        if let Some(mount) = self.host.mount(mount_id) {
            let key = ExecutableKey { ino, dev: mount.dev(), actor_set };
            let mask = maps.actor_executables.get(&key)?;
            return Ok(mask.is_some_and(|mask| mask.alone != 0 || mask.combined & combined != 0));
        }
        let named = maps.actor_executables.entries()?;
        let named = named.iter().filter(|(key, _)| key.actor_set == actor_set && key.ino == ino);
        let mut named =
            named.filter(|(_, mask)| mask.alone != 0 || mask.combined & combined != 0).peekable();
        if named.peek().is_none() {
            return Ok(false);
        }
        // Only for those that are actors in all likelihood: another namespace's table is read each
        // time.
        let table = Snapshot::parse(&fs::read(format!("/proc/{tgid}/mountinfo"))?);
        Ok(table.mount(mount_id).is_some_and(|mount| named.any(|(key, _)| key.dev == mount.dev())))
    }
}

/// The cgroup of version 2 that a process is in; `None` if it is in none.
///
/// It says where it is after its cgroup was learnt and before that is found to be there still: so
/// it was there.
fn cgroup<'c>(
    processes: &mut Processes,
    cgroups: &'c mut Cgroups,
    tgid: u32,
) -> io::Result<Option<&'c mut Cgroup>> {
    let mut tries = 0..TRIES;
    loop {
        let path = processes.cgroup(tgid)?;
        let Some(path) = path.filter(|_| cgroups.is_there()) else { return Ok(None) };
        if let Some(index) = cgroups.find(path) {
            return Ok(Some(cgroups.found(index)));
        }
        tries
            .next()
            .ok_or_else(|| io::Error::other("the process changes its cgroup all the time"))?;
        cgroups.learn(path)?;
    }
}

/// The asking process could not be identified.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error(transparent)]
    Proc(#[from] io::Error),
    #[error(transparent)]
    Map(#[from] MapAccessError),
}

/// Mount id and inode of an open file.
pub(super) fn described(file: &impl AsRawFd) -> io::Result<(u32, u64)> {
    let text = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", file.as_raw_fd()))?;
    roots::parse_fdinfo(&text).ok_or_else(|| io::Error::other("fdinfo has no mnt_id and ino"))
}

/// Inode of a process's mount namespace; 0 if it cannot be told.
pub(super) fn mount_namespace(tgid: u32) -> u32 {
    let inode = File::open(format!("/proc/{tgid}/ns/mnt"))
        .and_then(|file| file.metadata())
        .map(|data| data.ino());
    inode.ok().and_then(|inode| u32::try_from(inode).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tx\nUid:\t1000\t0\t0\t0\n";

    fn stat(comm: &str, flags: u64) -> Vec<u8> {
        let zeros = "0 ".repeat(12);
        format!("42 ({comm}) S 7 1 1 0 -1 {flags} {zeros}12345 0\n").into_bytes()
    }

    #[test]
    fn a_process_is_read_field_by_field() {
        let process = Process::parse(42, &stat("a) R 1 (b", 0), STATUS, "1000").unwrap();
        assert_eq!(
            (process.ppid, process.uid, process.euid, process.login_uid),
            (7, 1000, 0, 1000)
        );
        assert_eq!(&process.comm[..10], b"a) R 1 (b\0");
        assert_eq!(
            process.start_boot_ns,
            12345 * (1_000_000_000 / crate::host::process::ticks_per_second())
        );
        assert!(!process.kernel_thread);
        let thread = Process::parse(2, &stat("nfsd", 0x0020_0001), STATUS, "4294967295").unwrap();
        assert!(thread.kernel_thread && thread.login_uid == u32::MAX);
    }

    #[test]
    fn what_cannot_be_understood_is_nobody() {
        for (stat, status) in
            [(&b""[..], STATUS), (b"42 (x", STATUS), (b"42 (x) S 1", STATUS), (b")(", STATUS)]
        {
            assert_eq!(Process::parse(42, stat, status, ""), None);
        }
        assert_eq!(Process::parse(42, &stat("x", 0), "Name: x\n", ""), None);
    }

    #[test]
    fn this_process_is_found() {
        let process = Process::read(Path::new("/proc"), std::process::id()).unwrap();
        assert_eq!(process.uid, nix::unistd::getuid().as_raw());
    }
}
