//! Whether the daemon runs, and whether it serves its socket: from its unit's cgroup, or, where
//! that has none, from all processes of the host. Reads `/proc` only, and blocks no longer than
//! that does: a process in uninterruptible sleep can hold up the reading of its arguments, so call
//! it where that is all right.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::libc::ESRCH;

use super::Options;
use super::procfs::{Role, Stat, comm_of, incus_dir, incus_socket, listeners, role};
use crate::host::roots;
use crate::model::join::{Daemon, Incarnation};
use crate::model::mounts::Snapshot;

/// Names of the daemon's executable everywhere: the usual one, and that behind NixOS's wrapper.
const DAEMONS: [&str; 2] = ["incusd", ".incusd-wrapped"];
/// Name of its clients' socket everywhere.
const SOCKET: &str = "unix.socket";

/// One look at the daemon's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    pub daemon: Daemon,
    pub listener: Listener,
    /// Processes that may own the socket: the daemon, and the others of its cgroup.
    pub processes: Vec<u32>,
}

/// Whether the daemon itself holds a socket that listens for its clients. While it does, connecting
/// starts nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listener {
    /// The daemon does not run, or could not be looked into.
    Unknown,
    /// It listens on this path.
    Daemon(PathBuf),
    /// It has not opened it yet, or has closed it on its way out.
    NotDaemon,
}

impl Sighting {
    pub(super) fn unknown() -> Self {
        Self { daemon: Daemon::Unknown, listener: Listener::Unknown, processes: Vec::new() }
    }
}

/// Looks for the daemon of a node. `ticks_per_second` is the unit of start times.
pub fn sight(options: &Options, snapshot: &Snapshot, ticks_per_second: u64) -> Sighting {
    let host = Host { options, snapshot };
    host.sight(ticks_per_second).unwrap_or_else(|error| {
        tracing::debug!(directory = %options.directory.display(), %error, "the daemon's process \
                                                                           could not be looked \
                                                                           for");
        Sighting::unknown()
    })
}

/// The processes of the unit's cgroup that run the daemon's executable: pid and start. Cheap;
/// whenever it changes it is worth a [`sight`].
pub(super) fn pulse(options: &Options, snapshot: &Snapshot, known: Option<u32>) -> Vec<(u32, u64)> {
    let host = Host { options, snapshot };
    let mut processes = host.cgroup_processes().unwrap_or_default();
    processes.extend(known);
    processes.sort_unstable();
    processes.dedup();
    let alive = |pid| host.stat(pid).ok().flatten().filter(|stat| host.is_called_so(&stat.comm));
    processes.into_iter().filter_map(|pid| alive(pid).map(|stat| (pid, stat.start_ticks))).collect()
}

struct Host<'a> {
    options: &'a Options,
    snapshot: &'a Snapshot,
}

/// A process that runs the daemon's executable.
struct Candidate {
    pid: u32,
    parent: u32,
    start_ticks: u64,
    role: Role,
}

impl Host<'_> {
    fn sight(&self, ticks_per_second: u64) -> io::Result<Sighting> {
        let mut processes = self.cgroup_processes()?;
        let mut found = self.candidates(&processes, |_| Ok(true))?;
        if !found.iter().any(|candidate| candidate.role == Role::Daemon) {
            // Without systemd, or started by hand. Helpers that are left in the cgroup do not
            // count.
            found.extend(self.candidates(&self.all_processes()?, |pid| self.is_of_node(pid))?);
        }
        let Some(daemon) = choose(&found) else {
            let unclear = found.iter().any(|candidate| candidate.role == Role::Unclear);
            let daemon = if unclear { Daemon::Unknown } else { Daemon::Stopped };
            return Ok(Sighting { daemon, ..Sighting::unknown() });
        };
        processes.push(daemon.pid);
        Ok(Sighting {
            daemon: Daemon::Running {
                incarnation: Incarnation {
                    boot_id: self.boot_id()?,
                    pid: daemon.pid,
                    start_ticks: daemon.start_ticks,
                },
                age_seconds: self
                    .uptime()?
                    .saturating_sub(daemon.start_ticks / ticks_per_second.max(1)),
            },
            listener: self.listener(daemon.pid),
            processes,
        })
    }

    fn candidates(
        &self,
        processes: &[u32],
        accept: impl Fn(u32) -> io::Result<bool>,
    ) -> io::Result<Vec<Candidate>> {
        let mut found = Vec::new();
        for pid in processes {
            if let Some(candidate) = self.candidate(*pid)?
                && accept(*pid)?
            {
                found.push(candidate);
            }
        }
        Ok(found)
    }

    fn candidate(&self, pid: u32) -> io::Result<Option<Candidate>> {
        let Some(stat) = self.stat(pid)? else { return Ok(None) };
        if !self.is_called_so(&stat.comm) && !self.runs_executable(pid) {
            return Ok(None);
        }
        let Some(cmdline) = unless_gone(fs::read(self.path(pid, "cmdline")))? else {
            return Ok(None);
        };
        let role = role(&cmdline, &self.names());
        Ok(Some(Candidate { pid, parent: stat.parent, start_ticks: stat.start_ticks, role }))
    }

    /// `None` if there is no such process, or no more.
    fn stat(&self, pid: u32) -> io::Result<Option<Stat>> {
        let Some(text) = unless_gone(fs::read(self.path(pid, "stat")))? else { return Ok(None) };
        let stat = Stat::parse(&text)
            .ok_or_else(|| io::Error::other(format!("stat of {pid} is no such text")))?;
        Ok(Some(stat).filter(|stat| !stat.has_ended()))
    }

    fn names(&self) -> Vec<&OsStr> {
        let configured =
            self.options.executables.iter().filter_map(|executable| executable.file_name());
        configured.chain(DAEMONS.map(OsStr::new)).collect()
    }

    fn is_called_so(&self, comm: &[u8]) -> bool {
        self.names().into_iter().any(|name| comm_of(Path::new(name)) == comm)
    }

    /// An upgrade replaces the file while the old daemon runs: its link then says `(deleted)`.
    fn runs_executable(&self, pid: u32) -> bool {
        let Ok(link) = fs::read_link(self.path(pid, "exe")) else { return false };
        let link = link.to_string_lossy();
        let link = Path::new(link.strip_suffix(" (deleted)").unwrap_or(&link));
        self.options.executables.iter().any(|executable| executable == link)
    }

    /// Whether a daemon found anywhere on the host is this node's: not another directory's, and not
    /// that of an Incus in a container.
    fn is_of_node(&self, pid: u32) -> io::Result<bool> {
        let namespace = unless_gone(fs::read_link(self.path(pid, "ns/mnt")))?;
        if namespace != Some(fs::read_link(self.path(1, "ns/mnt"))?) {
            return Ok(false);
        }
        let environ = unless_gone(fs::read(self.path(pid, "environ")))?;
        Ok(environ.is_some_and(|environ| incus_dir(&environ) == self.options.directory))
    }

    fn listener(&self, pid: u32) -> Listener {
        let Ok(table) = fs::read(self.path(pid, "net/unix")) else { return Listener::Unknown };
        let Ok(descriptors) = fs::read_dir(self.path(pid, "fd")) else { return Listener::Unknown };
        let links: Vec<PathBuf> =
            descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
        let is_own = |inode: &u64| links.contains(&PathBuf::from(format!("socket:[{inode}]")));
        let own: Vec<PathBuf> = listeners(&table)
            .into_iter()
            .filter(|(inode, _)| is_own(inode))
            .map(|(_, path)| path)
            .collect();
        let named = match &self.options.socket {
            Some(socket) => vec![socket.clone()],
            None => self.usual_sockets(pid),
        };
        let found = named.into_iter().find_map(|socket| {
            let real = self.real(&socket);
            own.iter().find(|path| **path == socket || Some(*path) == real.as_ref()).cloned()
        });
        // Wherever a package has put it, it keeps its name: the daemon's other sockets are called
        // otherwise.
        let called_so =
            || own.iter().find(|path| path.file_name() == Some(OsStr::new(SOCKET))).cloned();
        let found = found.or_else(|| called_so().filter(|_| self.options.socket.is_none()));
        found.map_or(Listener::NotDaemon, Listener::Daemon)
    }

    /// The path that the daemon's environment names, and upstream's path.
    fn usual_sockets(&self, pid: u32) -> Vec<PathBuf> {
        let environ = fs::read(self.path(pid, "environ")).unwrap_or_default();
        let named = incus_socket(&environ).map(Path::to_owned);
        named.into_iter().chain([self.options.directory.join(SOCKET)]).collect()
    }

    /// `None` if it is not there, or where looking may block.
    fn real(&self, socket: &Path) -> Option<PathBuf> {
        if roots::is_on_network(socket, self.snapshot) {
            None
        } else {
            fs::canonicalize(socket).ok()
        }
    }

    /// None if there is no such cgroup: a unit has none while nothing of it runs.
    fn cgroup_processes(&self) -> io::Result<Vec<u32>> {
        let Some(directory) = roots::cgroup_directory(&self.options.cgroup, self.snapshot) else {
            return Ok(Vec::new());
        };
        let text = unless_gone(fs::read_to_string(directory.join("cgroup.procs")))?;
        Ok(text.unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect())
    }

    fn all_processes(&self) -> io::Result<Vec<u32>> {
        let names = fs::read_dir(&self.options.proc_root)?
            .map(|entry| entry.map(|entry| entry.file_name()));
        let names = names.collect::<io::Result<Vec<_>>>()?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }

    fn boot_id(&self) -> io::Result<String> {
        let text = fs::read_to_string(self.options.proc_root.join("sys/kernel/random/boot_id"))?;
        Ok(text.trim().to_owned())
    }

    /// In whole seconds.
    fn uptime(&self) -> io::Result<u64> {
        let text = fs::read_to_string(self.options.proc_root.join("uptime"))?;
        let seconds = text.split('.').next().and_then(|seconds| seconds.parse().ok());
        seconds.ok_or_else(|| io::Error::other("uptime is no number"))
    }

    fn path(&self, pid: u32, name: &str) -> PathBuf {
        self.options.proc_root.join(pid.to_string()).join(name)
    }
}

/// The daemon among the processes that look like it: not a child that it has forked and that has
/// not executed its own program yet; and if an old one has not ended yet, the new one.
fn choose(found: &[Candidate]) -> Option<&Candidate> {
    let daemons = || found.iter().filter(|candidate| candidate.role == Role::Daemon);
    let forked = |candidate: &&Candidate| daemons().any(|other| other.pid == candidate.parent);
    daemons().filter(|candidate| !forked(candidate)).max_by_key(|candidate| candidate.start_ticks)
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ESRCH) =>
        {
            Ok(None)
        }
        // A cgroup that was removed after it was opened.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
