//! Who opens a directory: what `/proc` says of a process that waits for the answer.
//!
//! While it waits it cannot end, so its number is its own. (One that is killed meanwhile may leave its number to
//! another; the answer then reaches nobody.) Nothing here reads the process's memory or a path of a pool, which
//! could block.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use guard_common::{CgroupKey, LeaseKey, PoolEntry};
use nix::libc::{O_CLOEXEC, O_PATH};

use super::decide::Asker;
use crate::bpf::{MapAccessError, Maps};
use crate::events::process::{start_ticks, ticks_per_second};
use crate::mounts::Snapshot;
use crate::roots;

/// `PF_KTHREAD` in `/proc/PID/stat`.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// A process, as decisions and their records need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    pub tgid: u32,
    pub ppid: u32,
    pub uid: u32,
    pub euid: u32,
    /// `u32::MAX`: not set.
    pub login_uid: u32,
    pub comm: [u8; 16],
    pub start_boot_ns: u64,
    pub kernel_thread: bool,
    /// Of version 2, as in `/proc/PID/cgroup`; `None` if it is in none.
    pub cgroup: Option<PathBuf>,
}

impl Process {
    /// One of which nothing is known.
    pub fn unknown(tgid: u32) -> Self {
        Self { tgid, uid: u32::MAX, euid: u32::MAX, login_uid: u32::MAX, ..Self::default() }
    }

    /// Looks a process up below `proc_root` (`/proc`).
    pub fn read(proc_root: &Path, tgid: u32) -> io::Result<Self> {
        let directory = proc_root.join(tgid.to_string());
        let stat = fs::read(directory.join("stat"))?;
        let status = fs::read_to_string(directory.join("status"))?;
        let cgroup = fs::read_to_string(directory.join("cgroup")).unwrap_or_default();
        let login_uid = fs::read_to_string(directory.join("loginuid")).unwrap_or_default();
        let unclear = || io::Error::other("stat or status of a process could not be understood");
        Self::parse(tgid, &stat, &status, &cgroup, &login_uid).ok_or_else(unclear)
    }

    fn parse(tgid: u32, stat: &[u8], status: &str, cgroup: &str, login_uid: &str) -> Option<Self> {
        let (open, close) =
            (stat.iter().position(|byte| *byte == b'(')?, stat.iter().rposition(|byte| *byte == b')')?);
        let rest: Vec<&str> =
            std::str::from_utf8(stat.get(close + 1..)?).ok()?.split_ascii_whitespace().collect();
        let mut comm = [0; 16];
        let name = stat.get(open + 1..close)?;
        let kept = name.len().min(comm.len() - 1);
        comm[..kept].copy_from_slice(&name[..kept]);
        let flags: u64 = rest.get(6)?.parse().ok()?;
        let mut uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_ascii_whitespace();
        let start_ns = u128::from(start_ticks(stat)?) * 1_000_000_000 / u128::from(ticks_per_second());
        Some(Self {
            tgid,
            ppid: rest.get(1)?.parse().ok()?,
            uid: uids.next()?.parse().ok()?,
            euid: uids.next()?.parse().ok()?,
            login_uid: login_uid.trim().parse().unwrap_or(u32::MAX),
            comm,
            start_boot_ns: u64::try_from(start_ns).unwrap_or(u64::MAX),
            kernel_thread: flags & KERNEL_THREAD != 0,
            cgroup: cgroup.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from),
        })
    }
}

/// Looks processes up, and compares them with what policy names.
#[derive(Debug, Default)]
pub struct Identities {
    /// The mounts of the host's namespace, of which executables are told.
    host: Snapshot,
}

impl Identities {
    /// Reads the mount table anew.
    pub fn refresh(&mut self) -> io::Result<()> {
        self.host = Snapshot::parse(&fs::read("/proc/self/mountinfo")?);
        Ok(())
    }

    /// Ids of a cgroup and all above it.
    fn cgroup_ids(&mut self, process: &Process) -> io::Result<Vec<u64>> {
        let Some(cgroup) = &process.cgroup else { return Ok(Vec::new()) };
        // No hierarchy of version 2: nothing can have been named by one.
        let Some(top) = roots::cgroup_directory("/", &self.host) else { return Ok(Vec::new()) };
        let relative = cgroup.strip_prefix("/").unwrap_or(cgroup);
        let mut ids = Vec::new();
        for part in relative.ancestors() {
            ids.push(fs::metadata(top.join(part))?.ino());
        }
        Ok(ids)
    }

    /// What a process may do in a pool, and the id of its cgroup.
    pub fn ask(
        &mut self,
        maps: &Maps,
        dev: u32,
        entry: &PoolEntry,
        now_boot_ns: u64,
        process: &Process,
    ) -> Result<(Asker, u64), AskError> {
        let cgroups = self.cgroup_ids(process)?;
        let mut combined = 0;
        let mut asker = Asker { kernel_thread: process.kernel_thread, ..Asker::default() };
        for &cgroup_id in &cgroups {
            let key = CgroupKey { cgroup_id, actor_set: entry.actor_set, reserved: 0 };
            if let Some(mask) = maps.actor_cgroups.get(&key)? {
                asker.actor |= mask.alone != 0;
                combined |= mask.combined;
            }
            let lease = maps.leases.get(&LeaseKey { cgroup_id, dev, reserved: 0 })?;
            asker.lease |= lease.is_some_and(|lease| {
                lease.generation == entry.generation && now_boot_ns < lease.expires_boot_ns
            });
        }
        asker.actor = asker.actor || self.is_actor_by_executable(maps, entry.actor_set, combined, process)?;
        Ok((asker, cgroups.first().copied().unwrap_or(0)))
    }

    fn is_actor_by_executable(
        &self,
        maps: &Maps,
        actor_set: u32,
        combined: u64,
        process: &Process,
    ) -> Result<bool, AskError> {
        if process.kernel_thread {
            return Ok(false);
        }
        let directory = Path::new("/proc").join(process.tgid.to_string());
        let Some((mount_id, ino)) = executable(&directory)? else { return Ok(false) };
        let named = maps.actor_executables.entries()?;
        let named = named.iter().filter(|(key, _)| key.actor_set == actor_set && key.ino == ino);
        let mut named = named.filter(|(_, mask)| mask.alone != 0 || mask.combined & combined != 0).peekable();
        if named.peek().is_none() {
            return Ok(false);
        }
        // Only for those that are actors in all likelihood: another namespace's table is read each time.
        let dev = match self.host.mount(mount_id) {
            Some(mount) => mount.dev(),
            None => {
                let table = Snapshot::parse(&fs::read(directory.join("mountinfo"))?);
                match table.mount(mount_id) {
                    Some(mount) => mount.dev(),
                    None => return Ok(false),
                }
            }
        };
        Ok(named.any(|(key, _)| key.dev == dev))
    }
}

/// It could not be told who asks.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Proc(#[from] io::Error),
    #[error(transparent)]
    Map(#[from] MapAccessError),
}

/// Mount id and inode of a process's executable.
fn executable(directory: &Path) -> io::Result<Option<(u32, u64)>> {
    // O_PATH asks no server, and makes no event.
    let file = OpenOptions::new().read(true).custom_flags(O_PATH | O_CLOEXEC).open(directory.join("exe"));
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    described(&file).map(Some)
}

/// Mount id and inode of an open file.
pub fn described(file: &impl AsRawFd) -> io::Result<(u32, u64)> {
    let text = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", file.as_raw_fd()))?;
    roots::parse_fdinfo(&text).ok_or_else(|| io::Error::other("fdinfo has no mnt_id and ino"))
}

/// Inode of a process's mount namespace; 0 if it cannot be told.
pub fn mount_namespace(tgid: u32) -> u32 {
    let inode =
        File::open(format!("/proc/{tgid}/ns/mnt")).and_then(|file| file.metadata()).map(|data| data.ino());
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
        let cgroup = "1:cpu:/x\n0::/system.slice/incus.service\n";
        let process = Process::parse(42, &stat("a) R 1 (b", 0), STATUS, cgroup, "1000").unwrap();
        assert_eq!((process.ppid, process.uid, process.euid, process.login_uid), (7, 1000, 0, 1000));
        assert_eq!(&process.comm[..10], b"a) R 1 (b\0");
        assert_eq!(process.cgroup.as_deref(), Some(Path::new("/system.slice/incus.service")));
        assert_eq!(process.start_boot_ns, 12345 * (1_000_000_000 / ticks_per_second()));
        assert!(!process.kernel_thread);
        let thread = Process::parse(2, &stat("nfsd", KERNEL_THREAD | 1), STATUS, "", "4294967295").unwrap();
        assert!(thread.kernel_thread && thread.cgroup.is_none() && thread.login_uid == u32::MAX);
    }

    #[test]
    fn what_cannot_be_understood_is_nobody() {
        for (stat, status) in
            [(&b""[..], STATUS), (b"42 (x", STATUS), (b"42 (x) S 1", STATUS), (b")(", STATUS)]
        {
            assert_eq!(Process::parse(42, stat, status, "", ""), None);
        }
        assert_eq!(Process::parse(42, &stat("x", 0), "Name: x\n", "", ""), None);
    }

    #[test]
    fn this_process_is_found() {
        let process = Process::read(Path::new("/proc"), std::process::id()).unwrap();
        assert_eq!(process.uid, nix::unistd::getuid().as_raw());
        let (_, ino) = executable(Path::new("/proc/self")).unwrap().unwrap();
        assert_eq!(ino, fs::metadata("/proc/self/exe").unwrap().ino());
    }
}
