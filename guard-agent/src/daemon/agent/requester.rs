//! The process that asks for a lease, and the check that its cgroup is its own: from the kernel's
//! data on the connection's peer. Grants nothing.
//!
//! The cgroup is never named by the requester. The start time was read when the connection was
//! accepted and is compared again after everything else, so that a pid that was reused meanwhile
//! gives no lease to a stranger.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::daemon::control::Peer;
use crate::host::process;
use crate::host::roots;
use crate::model::control::Refusal;
use crate::model::mounts::Snapshot;

/// Name of the requested operation in a refusal.
pub(super) const GRANT: &str = "grant a lease to a command";

/// A process that is alone in its cgroup.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Requester {
    pub pid: u32,
    pub start_ticks: u64,
    /// As in `/proc/PID/cgroup`.
    pub cgroup: String,
    pub cgroup_id: u64,
}

/// Looks the requester up below `proc_root` (`/proc`).
pub(super) fn requester(
    proc_root: &Path,
    peer: &Peer,
    snapshot: &Snapshot,
) -> Result<Requester, Refusal> {
    let (Some(pid), Some(start_ticks)) = (peer.pid, peer.start_ticks) else {
        return Err(failed("the requester's process is not known".to_owned()));
    };
    let path = proc_root.join(pid.to_string()).join("cgroup");
    let text = fs::read_to_string(&path)
        .map_err(|error| failed(format!("read {}: {error}", path.display())))?;
    let cgroup = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_owned();
    let directory = roots::cgroup_directory(&cgroup, snapshot)
        .ok_or_else(|| failed("no cgroup v2 hierarchy is mounted".to_owned()))?;
    let look = |error: io::Error| failed(format!("look into {}: {error}", directory.display()));
    let others = processes(&directory).map_err(look)?.iter().filter(|other| **other != pid).count();
    // Kernel threads live in the hierarchy's root, and every cgroup is below it.
    if others > 0 || cgroup == "/" {
        return Err(Refusal::SharedCgroup { cgroup, others });
    }
    let cgroup_id = fs::metadata(&directory).map_err(look)?.ino();
    if process::started(proc_root, pid) != Some(start_ticks) {
        return Err(failed(format!("the requester, process {pid}, has ended")));
    }
    Ok(Requester { pid, start_ticks, cgroup, cgroup_id })
}

fn failed(detail: String) -> Refusal {
    Refusal::Failed { operation: GRANT, detail }
}

/// The processes in a cgroup and in those below it.
fn processes(cgroup: &Path) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    let mut waiting: Vec<PathBuf> = vec![cgroup.to_owned()];
    while let Some(directory) = waiting.pop() {
        let text = fs::read_to_string(directory.join("cgroup.procs"))?;
        found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host with one process, 42, in `/a`, started at tick 7.
    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            host.put("proc/42/cgroup", "1:name=systemd:/x\n0::/a\n");
            host.put("proc/42/stat", &format!("42 (a) S {}7 0", "0 ".repeat(18)));
            host.put("cgroup/a/cgroup.procs", "42\n");
            host
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn ask(&self, start_ticks: u64) -> Result<Requester, Refusal> {
            let peer = Peer {
                pid: Some(42),
                uid: 0,
                gid: 0,
                login_uid: None,
                start_ticks: Some(start_ticks),
            };
            let mount = self.0.path().join("cgroup");
            let table = format!("30 1 0:26 / {} rw - cgroup2 cgroup2 rw\n", mount.display());
            requester(&self.0.path().join("proc"), &peer, &Snapshot::parse(table.as_bytes()))
        }
    }

    #[test]
    fn one_that_is_alone_in_its_cgroup_is_taken() {
        let host = Host::new();
        let found = host.ask(7).unwrap();
        assert_eq!((found.pid, found.start_ticks, found.cgroup.as_str()), (42, 7, "/a"));
        assert_eq!(found.cgroup_id, fs::metadata(host.0.path().join("cgroup/a")).unwrap().ino());
    }

    #[test]
    fn strangers_in_the_cgroup_or_below_it_are_refused() {
        let host = Host::new();
        host.put("cgroup/a/below/deep/cgroup.procs", "43\n");
        host.put("cgroup/a/below/cgroup.procs", "");
        assert_eq!(host.ask(7), Err(Refusal::SharedCgroup { cgroup: "/a".to_owned(), others: 1 }));
        let host = Host::new();
        host.put("cgroup/a/cgroup.procs", "42\n43\n44\n");
        assert_eq!(host.ask(7), Err(Refusal::SharedCgroup { cgroup: "/a".to_owned(), others: 2 }));
    }

    #[test]
    fn the_root_cgroup_is_refused_also_with_nobody_else_in_it() {
        let host = Host::new();
        host.put("proc/42/cgroup", "0::/\n");
        host.put("cgroup/cgroup.procs", "42\n");
        assert!(matches!(host.ask(7), Err(Refusal::SharedCgroup { .. })));
    }

    #[test]
    fn a_pid_that_was_reused_is_refused() {
        let refusal = Host::new().ask(6).unwrap_err();
        assert!(matches!(refusal, Refusal::Failed { .. }), "{refusal}");
    }
}
