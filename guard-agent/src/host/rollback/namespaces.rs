//! The mount tables of every mount namespace that some process lives in.
//!
//! A table is read through a process, and shows only mounts below that process's root directory; so
//! one table is read for each distinct root in a namespace, and they are put together with paths as
//! the namespace's own root shows them. Namespaces that no process lives in any more (kept by a
//! file descriptor or a bind mount) are not seen here: their pools' superblocks stay alive, and are
//! reported as held.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self};
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::host::mount_table;
use crate::model::rollback::table::NamespaceTable;

/// The mount tables could not be read.
#[derive(Debug, Error)]
#[error("{operation} {path}: which mounts exist cannot be told")]
pub struct NamespaceError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Reads all of them below `proc_root` (`/proc`). Processes that end meanwhile are passed over.
pub fn all(proc_root: &Path) -> Result<Vec<NamespaceTable>, NamespaceError> {
    let host = namespace_of(proc_root, 1).map_err(|source| NamespaceError {
        operation: "read",
        path: proc_root.join("1/ns/mnt"),
        source,
    })?;
    let mut tables: BTreeMap<u64, NamespaceTable> = BTreeMap::new();
    let mut seen: BTreeSet<(u64, PathBuf)> = BTreeSet::new();
    for pid in processes(proc_root)? {
        let Ok(namespace) = namespace_of(proc_root, pid) else { continue };
        let Ok(root) = fs::read_link(proc_root.join(format!("{pid}/root"))) else { continue };
        if seen.contains(&(namespace, root.clone())) {
            continue;
        }
        let path = proc_root.join(format!("{pid}/mountinfo"));
        let Ok(snapshot) = mount_table::open(&path) else {
            continue;
        };
        // It may have moved to another namespace before its table was opened.
        if namespace_of(proc_root, pid).ok() != Some(namespace) {
            continue;
        }
        let snapshot = snapshot.below(&root);
        seen.insert((namespace, root));
        match tables.get_mut(&namespace) {
            Some(table) => table.mounts = table.mounts.joined(&snapshot),
            None => {
                let is_host = namespace == host;
                tables.insert(
                    namespace,
                    NamespaceTable { namespace, is_host, pid, mounts: snapshot },
                );
            }
        }
    }
    Ok(tables.into_values().collect())
}

/// Name of the container that a process belongs to, or of the process.
pub fn name_of(proc_root: &Path, pid: u32) -> String {
    let read = |file: &str| {
        let text = fs::read(proc_root.join(pid.to_string()).join(file)).unwrap_or_default();
        String::from_utf8_lossy(&text).trim_end().to_owned()
    };
    container_of(&read("cgroup")).map_or_else(|| read("comm"), str::to_owned)
}

/// All processes, PID 1 first.
pub(super) fn processes(proc_root: &Path) -> Result<Vec<u32>, NamespaceError> {
    let failed = |source| NamespaceError { operation: "list", path: proc_root.to_owned(), source };
    let mut processes = Vec::new();
    for entry in fs::read_dir(proc_root).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        processes.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    processes.sort_unstable();
    Ok(processes)
}

/// Inode of the mount namespace of a process.
pub(super) fn namespace_of(proc_root: &Path, pid: u32) -> io::Result<u64> {
    let link = fs::read_link(proc_root.join(format!("{pid}/ns/mnt")))?;
    let text = link.to_string_lossy();
    let inode = text.strip_prefix("mnt:[").and_then(|rest| rest.strip_suffix(']'));
    let inode = inode.and_then(|inode| inode.parse().ok());
    inode.ok_or_else(|| io::Error::other(format!("{text} is no mount namespace")))
}

/// The name of a container, from one of its processes' `/proc/PID/cgroup`: liblxc makes a cgroup
/// `lxc.payload.NAME` for the processes inside and `lxc.monitor.NAME` for its monitor.
pub fn container_of(cgroup: &str) -> Option<&str> {
    let parts =
        cgroup.lines().flat_map(|line| line.splitn(3, ':').nth(2)).flat_map(|path| path.split('/'));
    // The first one: a container within it has one of its own further down.
    let mut names = parts.filter_map(|part| {
        part.strip_prefix("lxc.payload.").or_else(|| part.strip_prefix("lxc.monitor."))
    });
    names.next()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Proc(tempfile::TempDir);

    impl Proc {
        fn add(&self, pid: u32, namespace: u64, root: &str, table: &str) {
            let directory = self.0.path().join(pid.to_string());
            fs::create_dir_all(directory.join("ns")).unwrap();
            symlink(format!("mnt:[{namespace}]"), directory.join("ns/mnt")).unwrap();
            symlink(root, directory.join("root")).unwrap();
            fs::write(directory.join("mountinfo"), table).unwrap();
        }
    }

    #[test]
    fn each_namespace_once_and_chrooted_views_completed() {
        let proc = Proc(tempfile::tempdir().unwrap());
        fs::create_dir(proc.0.path().join("self")).unwrap();
        let root = "1 0 8:1 / / rw - ext4 /dev/vda rw\n";
        proc.add(1, 10, "/", root);
        proc.add(7, 10, "/", "must not be read twice");
        proc.add(
            8,
            10,
            "/srv/jail",
            "90 1 0:43 / / rw - ceph a rw\n91 90 0:44 / /x rw - tmpfs t \
             rw\n",
        );
        proc.add(9, 11, "/", "50 0 0:43 / /pool rw - ceph a rw\n");
        let tables = all(proc.0.path()).unwrap();
        let found: Vec<_> =
            tables.iter().map(|table| (table.namespace, table.is_host, table.pid)).collect();
        assert_eq!(found, [(10, true, 1), (11, false, 9)]);
        let places: Vec<_> =
            tables[0].mounts.entries().iter().map(|entry| entry.mountpoint.clone()).collect();
        assert_eq!(places, [Path::new("/"), Path::new("/srv/jail"), Path::new("/srv/jail/x")]);
    }

    #[test]
    fn without_pid_1_nothing_can_be_told() {
        let proc = Proc(tempfile::tempdir().unwrap());
        proc.add(7, 10, "/", "");
        assert!(all(proc.0.path()).is_err());
    }

    #[test]
    fn containers_are_told_by_their_cgroup() {
        for (cgroup, name) in [
            ("0::/lxc.payload.c1/system.slice/x.service\n", Some("c1")),
            ("0::/lxc.monitor.web_c2\n", Some("web_c2")),
            ("1:name=systemd:/lxc.payload.c3/init.scope\n0::/\n", Some("c3")),
            ("0::/lxc.payload.outer/lxc.payload.inner\n", Some("outer")),
            ("0::/system.slice/incus.service\n", None),
            ("", None),
        ] {
            assert_eq!(container_of(cgroup), name, "{cgroup}");
        }
    }
}
