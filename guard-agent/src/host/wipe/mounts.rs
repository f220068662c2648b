//! Mount table × root → mounts below it: the daemon's own, which may be unmounted, and all
//! others, which are in the way. Pure.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::mounts::{MountEntry, Snapshot};

/// A mount that Incus has made for itself, and that holds nobody's data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnMount {
    pub mount_id: u32,
    pub dev: u32,
    pub mountpoint: PathBuf,
    pub fs_type: String,
}

/// A mount that is not ours to unmount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InTheWay {
    pub mountpoint: PathBuf,
    pub fs_type: String,
    pub source: String,
    /// `major:minor`.
    pub device: String,
}

/// Everything that is mounted below a root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountsBelow {
    /// In the order in which they can be unmounted.
    pub own: Vec<OwnMount>,
    pub in_the_way: Vec<InTheWay>,
}

/// Directories of Incus in which it mounts for itself.
const OWN_PLACES: [&str; 3] = ["devices", "guestapi", "shmounts"];
/// Types of its own mounts there. (Every other mount there is somebody's: a disk, a share, a pool.)
const OWN_KINDS: [&str; 3] = ["tmpfs", "nsfs", "fuse.lxcfs"];

/// Looks at a table. A mount on one of the daemon's mounts keeps that one too, unless it is its
/// own.
pub fn below(snapshot: &Snapshot, root: &Path) -> MountsBelow {
    let entries = snapshot.entries().iter().rev();
    let below: Vec<&MountEntry> = entries
        .filter(|entry| entry.mountpoint != root && entry.mountpoint.starts_with(root))
        .collect();
    let strange: BTreeSet<u32> =
        below.iter().filter(|entry| !is_own(entry, root)).map(|entry| entry.mount_id).collect();
    let mut mounts = MountsBelow::default();
    // The kernel lists a mount after the one below it; so backwards, the topmost mount comes first.
    let mut kept = strange.clone();
    for entry in &below {
        if kept.contains(&entry.mount_id) {
            kept.insert(entry.parent_id);
        }
        if strange.contains(&entry.mount_id) {
            mounts.in_the_way.push(in_the_way(entry));
        } else if !kept.contains(&entry.mount_id) {
            mounts.own.push(OwnMount {
                mount_id: entry.mount_id,
                dev: entry.dev(),
                mountpoint: entry.mountpoint.clone(),
                fs_type: entry.fs_type.clone(),
            });
        }
    }
    mounts
}

fn is_own(entry: &MountEntry, root: &Path) -> bool {
    let relative = entry.mountpoint.strip_prefix(root).unwrap_or(Path::new(""));
    let place = relative.components().next().and_then(|first| first.as_os_str().to_str());
    place.is_some_and(|place| OWN_PLACES.contains(&place))
        && OWN_KINDS.contains(&entry.fs_type.as_str())
}

fn in_the_way(entry: &MountEntry) -> InTheWay {
    InTheWay {
        mountpoint: entry.mountpoint.clone(),
        fs_type: entry.fs_type.clone(),
        source: entry.source.to_string_lossy().into_owned(),
        device: format!("{}:{}", entry.major, entry.minor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(lines: &[&str]) -> (Vec<u32>, Vec<PathBuf>) {
        let snapshot = Snapshot::parse(lines.join("\n").as_bytes());
        let mounts = below(&snapshot, Path::new("/var/lib/incus"));
        let own = mounts.own.iter().map(|own| own.mount_id).collect();
        (own, mounts.in_the_way.into_iter().map(|mount| mount.mountpoint).collect())
    }

    #[test]
    fn own_mounts_go_and_all_others_are_in_the_way() {
        let (own, others) = found(&[
            "1 0 8:1 / / rw - ext4 a rw",
            "2 1 8:2 / /var/lib/incus rw - ext4 b rw",
            "3 2 0:50 / /var/lib/incus/shmounts rw - tmpfs t rw",
            "4 2 0:51 / /var/lib/incus/devices rw - tmpfs t rw",
            "5 4 0:52 / /var/lib/incus/devices/x rw - tmpfs t rw",
            "6 2 0:43 / /var/lib/incus/storage-pools/shared rw - ceph s rw",
            "7 1 0:53 / /var/lib/incus-other/shmounts rw - tmpfs t rw",
            "8 2 0:54 / /var/lib/incus/storage-pools/ram rw - tmpfs t rw",
        ]);
        assert_eq!(own, [5, 4, 3]);
        let places = ["/var/lib/incus/storage-pools/ram", "/var/lib/incus/storage-pools/shared"];
        assert_eq!(others, places.map(PathBuf::from));
    }

    #[test]
    fn what_carries_a_strangers_mount_stays() {
        let (own, others) = found(&[
            "2 1 8:2 / /var/lib/incus rw - ext4 b rw",
            "4 2 0:51 / /var/lib/incus/devices rw - tmpfs t rw",
            "5 4 0:52 / /var/lib/incus/devices/x rw - tmpfs t rw",
            "6 5 0:43 /v /var/lib/incus/devices/x/disk rw - ceph s rw",
            "7 4 0:55 / /var/lib/incus/devices/y rw - tmpfs t rw",
        ]);
        assert_eq!((own, others.len()), (vec![7], 1));
    }
}
