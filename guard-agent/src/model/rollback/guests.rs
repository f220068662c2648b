//! Mount namespaces with a view of their own: containers, virtiofsd, services with bound paths.
//! Pure.
//!
//! A mount that goes from under a guest leaves the guest running: from then on it writes into the
//! directory that was hidden below. So nothing is unmounted under a guest without the operator's
//! word.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::Target;
use super::table::NamespaceTable;
use crate::model::mounts::MountEntry;

/// A guest that has a pool mounted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Guest {
    /// The pool's name.
    pub pool: String,
    /// Inode of the mount namespace.
    pub namespace: u64,
    /// A process that lives in it.
    pub pid: u32,
    /// The container's name, or that of the process.
    pub name: String,
    /// Mountpoint of the pool, as the guest sees it.
    pub mountpoint: String,
}

impl std::fmt::Display for Guest {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pool, pid, name, mountpoint, .. } = self;
        write!(out, "{name} (process {pid}) has pool {pool} mounted at {mountpoint}")
    }
}

/// Whether a namespace shows the host's own tree: its top is the mount that is PID 1's.
pub fn is_host_view(table: &NamespaceTable, host: &NamespaceTable) -> bool {
    let top = |table: &NamespaceTable| {
        let top = table.mounts.mount_of(Path::new("/"))?;
        Some((top.dev(), top.root.clone()))
    };
    table.is_host || (top(table).is_some() && top(table) == top(host))
}

/// Every mount of the targets that a guest has. Copies of the host's tree, which a service with a
/// private `/tmp` gets, are none: there the pool lies where it lies on the host, or below the
/// guarded root.
pub fn guests(
    tables: &[NamespaceTable],
    targets: &[Target],
    root: &Path,
    name: &mut dyn FnMut(u32) -> String,
) -> Vec<Guest> {
    let Some(host) = tables.iter().find(|table| table.is_host) else { return Vec::new() };
    let mut guests = Vec::new();
    for table in tables.iter().filter(|table| !table.is_host) {
        let copy = is_host_view(table, host);
        for entry in table.mounts.entries() {
            let Some(target) = targets.iter().find(|target| target.dev == entry.dev()) else {
                continue;
            };
            let is_same = |other: &MountEntry| {
                (other.dev(), &other.root, &other.mountpoint)
                    == (entry.dev(), &entry.root, &entry.mountpoint)
            };
            let below = entry.mountpoint.starts_with(root);
            if copy && (below || host.mounts.entries().iter().any(is_same)) {
                continue;
            }
            guests.push(Guest {
                pool: target.name.clone(),
                namespace: table.namespace,
                pid: table.pid,
                name: name(table.pid),
                mountpoint: entry.mountpoint.to_string_lossy().into_owned(),
            });
        }
    }
    guests.sort();
    guests
}

/// Something below the root that a guest has mounted, as the host sees it.
pub fn part_below(table: &NamespaceTable, host: &NamespaceTable, root: &Path) -> Option<PathBuf> {
    if is_host_view(table, host) {
        return None;
    }
    table.mounts.entries().iter().find_map(|entry| {
        let same = host.mounts.entries().iter().filter(|other| other.dev() == entry.dev());
        let mut paths = same.filter_map(|other| {
            let rest = entry.root.strip_prefix(&other.root).ok()?;
            Some(if rest == Path::new("") {
                other.mountpoint.clone()
            } else {
                other.mountpoint.join(rest)
            })
        });
        // A guest that shows the host's tree somewhere (a snap's hostfs) has it under the same
        // path.
        let is_copy =
            |path: &Path| path.strip_prefix("/").is_ok_and(|path| entry.mountpoint.ends_with(path));
        paths.find(|path| path != root && path.starts_with(root) && !is_copy(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::mounts::Snapshot;

    pub(crate) fn table(namespace: u64, text: &str) -> NamespaceTable {
        let pid = u32::try_from(namespace).unwrap() * 100;
        NamespaceTable {
            namespace,
            is_host: namespace == 1,
            pid,
            mounts: Snapshot::parse(text.as_bytes()),
        }
    }

    const ROOT: &str = "/var/lib/incus";
    const HOST: &str = "1 0 8:1 / / rw - ext4 a rw\n\
                        2 1 0:43 / /var/lib/incus/storage-pools/shared rw - ceph s rw\n\
                        3 1 0:44 / /var/lib/incus/devices rw - tmpfs t rw\n";

    fn found(text: &str) -> Vec<String> {
        let target = Target { dev: 43, generation: 7, name: "shared".to_owned() };
        let tables = [table(1, HOST), table(2, text)];
        let guests = guests(&tables, &[target], Path::new(ROOT), &mut |pid| format!("p{pid}"));
        guests.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_containers_volume_is_a_guests() {
        let container = "50 0 8:1 /var/lib/incus/storage-pools/d/containers/c1/rootfs / rw - ext4 \
                         a rw\n51 50 0:43 /custom/default_v /data rw - ceph s rw\n";
        assert_eq!(found(container), ["p200 (process 200) has pool shared mounted at /data"]);
        // The same path as the host's does not make it the host's tree.
        let same_path = container.replace("/data", "/var/lib/incus/storage-pools/shared");
        assert_eq!(found(&same_path).len(), 1);
        // virtiofsd shows the volume alone.
        assert_eq!(found("60 0 0:43 /custom/default_v / rw - ceph s rw\n").len(), 1);
    }

    #[test]
    fn copies_of_the_hosts_tree_are_none_and_bound_paths_are() {
        let service = HOST.replace("1 0 ", "71 0 ").replace("2 1 ", "72 71 ");
        assert_eq!(found(&service), Vec::<String>::new());
        // Another mount of the host's, and its copy.
        let alias = "9 1 0:43 /custom/default_v /srv/alias rw - ceph s rw\n";
        let copied = alias.replace("9 1", "79 71");
        let tables = [table(1, &format!("{HOST}{alias}")), table(2, &format!("{service}{copied}"))];
        let target = Target { dev: 43, generation: 7, name: "shared".to_owned() };
        assert_eq!(guests(&tables, &[target], Path::new(ROOT), &mut |_| String::new()), []);
        let bound = format!("{service}74 71 0:43 /custom/default_v /srv/data rw - ceph s rw\n");
        assert_eq!(found(&bound), ["p200 (process 200) has pool shared mounted at /srv/data"]);
    }

    #[test]
    fn parts_of_the_root_that_a_guest_has() {
        let host = table(1, HOST);
        let part = |text: &str| part_below(&table(2, text), &host, Path::new(ROOT));
        let rootfs = "50 0 8:1 /var/lib/incus/containers/c1/rootfs / rw - ext4 a rw\n";
        assert_eq!(part(rootfs).as_deref(), Some(Path::new("/var/lib/incus/containers/c1/rootfs")));
        let devices = "50 0 7:1 / / rw - squashfs a rw\n51 50 0:44 /c1 /dev/.incus rw - tmpfs t \
                       rw\n";
        assert_eq!(part(devices).as_deref(), Some(Path::new("/var/lib/incus/devices/c1")));
        // LXC's own container, the copy of a service, and a snap that shows the host's tree.
        assert_eq!(part("50 0 8:1 /var/lib/lxc/x/rootfs / rw - ext4 a rw\n"), None);
        assert_eq!(part(&HOST.replace("1 0 ", "71 0 ")), None);
        let snap = "50 0 7:1 / / rw - squashfs a rw\n\
                    51 50 0:44 / /var/lib/snapd/hostfs/var/lib/incus/devices rw - tmpfs t rw\n";
        assert_eq!(part(snap), None);
    }
}
