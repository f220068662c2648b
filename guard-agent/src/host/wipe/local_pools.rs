//! Local storage pools that no mount shows: images in `disks`, which Incus makes for pools without
//! a device of their own, ZFS pools and LVM volume groups. With the instances stopped nothing of
//! them is mounted, so a wipe meets no mountpoint: it deletes the images, and leaves the others
//! without the database that knows them.
//!
//! An image's first bytes are read, and text below `/proc` and `/sys`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host::roots;
use crate::model::mounts::Snapshot;

/// A pool, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "pool", rename_all = "kebab-case")]
pub enum LocalPool {
    /// A file below the root that holds a whole pool.
    Image {
        path: PathBuf,
        content: Content,
        bytes: u64,
        /// The device that shows it, such as `loop3`.
        loop_device: Option<String>,
    },
    /// A ZFS pool that is imported and called like one of Incus's pools.
    Zfs { name: String },
    /// Volumes of an LVM volume group that are active.
    Lvm { group: String, volumes: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    Zfs,
    Lvm,
    Btrfs,
    Unknown,
}

impl LocalPool {
    /// Describes the obstacle.
    pub fn describe(&self) -> String {
        match self {
            Self::Image { path, content, bytes, loop_device } => {
                let (path, mib) = (path.display(), bytes >> 20);
                let used = loop_device.as_deref().map(|device| format!(", shown by {device}"));
                let used = used.unwrap_or_default();
                format!(
                    "{path} ({} of {mib} MiB{used}) holds a local pool, which would be deleted",
                    content.name()
                )
            }
            Self::Zfs { name } => {
                format!(
                    "the ZFS pool {name} is imported: Incus's database, which knows its datasets, \
                     would be deleted"
                )
            }
            Self::Lvm { group, volumes } => format!(
                "the LVM volume group {group} has {volumes} active volumes: Incus's database, \
                 which knows them, would be deleted"
            ),
        }
    }

    /// The advice to the operator.
    pub fn fix(&self) -> String {
        let go_on = "to go on all the same: --despite-local-pools";
        match self {
            Self::Image { content, path, .. } => {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let release = match content {
                    Content::Zfs => format!("zpool export {name}, "),
                    Content::Lvm => format!("vgchange -an {name}, "),
                    Content::Btrfs | Content::Unknown => String::new(),
                };
                format!("if its data is needed: {release}then move the file away; {go_on}")
            }
            Self::Zfs { name } => {
                format!(
                    "if its data is needed: zpool export {name} (import it again later); {go_on}"
                )
            }
            Self::Lvm { group, .. } => {
                format!(
                    "if its data is needed: vgchange -an {group} (activate it again later); {go_on}"
                )
            }
        }
    }
}

impl Content {
    fn name(self) -> &'static str {
        match self {
            Self::Zfs => "ZFS",
            Self::Lvm => "LVM",
            Self::Btrfs => "btrfs",
            Self::Unknown => "unknown content",
        }
    }

    /// By the marks that each has near its beginning.
    fn of(start: &[u8]) -> Self {
        let has = |at: usize, mark: &[u8]| start.get(at..at + mark.len()) == Some(mark);
        // The label is in one of the first four sectors.
        if (0..4).any(|sector| has(sector * 512, b"LABELONE")) {
            return Self::Lvm;
        }
        if has(0x10040, b"_BHRfS_M") {
            return Self::Btrfs;
        }
        // One of the uberblocks in the first label, of either byte order.
        let uberblock = |at: usize| {
            has(at, &0x00ba_b10c_u64.to_le_bytes()) || has(at, &0x00ba_b10c_u64.to_be_bytes())
        };
        if (LABEL / 2..LABEL).step_by(1024).any(uberblock) { Self::Zfs } else { Self::Unknown }
    }
}

/// Bytes of a ZFS label.
const LABEL: usize = 256 * 1024;
/// The thin pool that Incus makes in a volume group, and LXD before it.
const THIN_POOLS: [&str; 2] = ["IncusThinPool", "LXDThinPool"];

/// Finds those of a root. `proc_root`: `/proc`, `sys_root`: `/sys`.
pub fn find(
    root: &Path,
    snapshot: &Snapshot,
    proc_root: &Path,
    sys_root: &Path,
) -> io::Result<Vec<LocalPool>> {
    let mut found = images(&root.join("disks"), snapshot, sys_root)?;
    let names = names(&root.join("storage-pools"), snapshot)?;
    let zfs = list(&proc_root.join("spl/kstat/zfs"))?;
    found.extend(
        zfs.into_iter().filter(|name| names.contains(name)).map(|name| LocalPool::Zfs { name }),
    );
    found.extend(groups(sys_root, &names)?);
    Ok(found)
}

fn images(disks: &Path, snapshot: &Snapshot, sys_root: &Path) -> io::Result<Vec<LocalPool>> {
    let mut found = Vec::new();
    for name in names(disks, snapshot)? {
        let path = disks.join(name);
        let about = path.symlink_metadata()?;
        if !about.is_file() {
            continue;
        }
        let mut start = Vec::new();
        File::open(&path)?.take(LABEL as u64).read_to_end(&mut start)?;
        let loop_device = loop_device(sys_root, &path)?;
        found.push(LocalPool::Image {
            content: Content::of(&start),
            bytes: about.len(),
            loop_device,
            path,
        });
    }
    Ok(found)
}

fn loop_device(sys_root: &Path, image: &Path) -> io::Result<Option<String>> {
    for name in list(&sys_root.join("block"))? {
        let backing = fs::read(sys_root.join("block").join(&name).join("loop/backing_file"));
        if backing.is_ok_and(|backing| backing.trim_ascii_end() == image.as_os_str().as_bytes()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Volume groups with active volumes that are Incus's: by the group's name, or by its thin pool.
fn groups(sys_root: &Path, pools: &[String]) -> io::Result<Vec<LocalPool>> {
    let mut found: Vec<(String, usize, bool)> = Vec::new();
    for device in list(&sys_root.join("block"))? {
        let read = |file: &str| {
            fs::read_to_string(sys_root.join("block").join(&device).join("dm").join(file))
        };
        let (Ok(name), Ok(uuid)) = (read("name"), read("uuid")) else { continue };
        let Some((group, volume)) = split(name.trim()).filter(|_| uuid.starts_with("LVM-")) else {
            continue;
        };
        let is_its =
            pools.contains(&group) || THIN_POOLS.iter().any(|pool| volume.starts_with(pool));
        match found.iter_mut().find(|(known, ..)| *known == group) {
            Some((_, volumes, its)) => (*volumes, *its) = (*volumes + 1, *its || is_its),
            None => found.push((group, 1, is_its)),
        }
    }
    let its = found.into_iter().filter(|(.., is_its)| *is_its);
    Ok(its.map(|(group, volumes, _)| LocalPool::Lvm { group, volumes }).collect())
}

/// Group and volume of a device-mapper name: joined by a hyphen, their own hyphens doubled.
fn split(name: &str) -> Option<(String, String)> {
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b'-', Some(b'-')) => at += 2,
            (b'-', _) => {
                let undouble = |part: &str| part.replace("--", "-");
                return Some((undouble(&name[..at]), undouble(&name[at + 1..])));
            }
            _ => at += 1,
        }
    }
    None
}

/// Names in a directory below the root; none if there is no such directory. A directory on a
/// network filesystem is not looked into: it is a mount, and in the way as such.
fn names(directory: &Path, snapshot: &Snapshot) -> io::Result<Vec<String>> {
    if roots::is_on_network(directory, snapshot) || directory.is_symlink() {
        return Ok(Vec::new());
    }
    list(directory)
}

fn list(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names =
        entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, bytes: &[u8]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn images_zfs_and_lvm_are_found_with_nothing_of_them_mounted() {
        let host = tempfile::tempdir().unwrap();
        let (root, proc, sys) =
            (host.path().join("incus"), host.path().join("proc"), host.path().join("sys"));
        for pool in ["tank", "vg-one", "shared"] {
            fs::create_dir_all(root.join("storage-pools").join(pool)).unwrap();
        }
        let mut zfs = vec![0; LABEL];
        zfs[LABEL / 2 + 5 * 1024..][..8].copy_from_slice(&0x00ba_b10c_u64.to_le_bytes());
        write(&root.join("disks/tank.img"), &zfs);
        let image = root.join("disks/tank.img");
        write(
            &sys.join("block/loop3/loop/backing_file"),
            format!("{}\n", image.display()).as_bytes(),
        );
        for name in ["tank", "rpool"] {
            fs::create_dir_all(proc.join("spl/kstat/zfs").join(name)).unwrap();
        }
        let devices = [
            ("dm-0", "vg--one-containers_c1", "LVM-a"),
            ("dm-1", "data-IncusThinPool_tdata", "LVM-b"),
            ("dm-2", "data-containers_c2", "LVM-b"),
            ("dm-3", "root-swap", "LVM-c"),
            ("dm-4", "shared-crypt", "CRYPT-d"),
        ];
        for (device, name, uuid) in devices {
            write(&sys.join("block").join(device).join("dm/name"), name.as_bytes());
            write(&sys.join("block").join(device).join("dm/uuid"), uuid.as_bytes());
        }
        let found = find(&root, &Snapshot::default(), &proc, &sys).unwrap();
        let lvm = |group: &str, volumes| LocalPool::Lvm { group: group.to_owned(), volumes };
        let (bytes, loop_device) = (LABEL as u64, Some("loop3".to_owned()));
        let expected = [
            LocalPool::Image { path: image, content: Content::Zfs, bytes, loop_device },
            LocalPool::Zfs { name: "tank".to_owned() },
            lvm("vg-one", 1),
            lvm("data", 2),
        ];
        assert_eq!(found, expected);
        let texts: Vec<String> = found.iter().map(|pool| pool.describe() + &pool.fix()).collect();
        assert!(
            texts[0].contains("shown by loop3") && texts[0].contains("zpool export tank"),
            "{}",
            texts[0]
        );
        assert!(texts.iter().all(|text| text.contains("--despite-local-pools")));
    }

    #[test]
    fn a_root_without_local_pools_has_none() {
        let host = tempfile::tempdir().unwrap();
        let find = || find(host.path(), &Snapshot::default(), host.path(), host.path()).unwrap();
        assert_eq!(find(), []);
        fs::create_dir(host.path().join("disks")).unwrap();
        assert_eq!(find(), []);
    }

    #[test]
    fn contents_are_told_by_their_marks() {
        let with = |at: usize, mark: &[u8]| {
            let mut start = vec![0; LABEL];
            start[at..at + mark.len()].copy_from_slice(mark);
            Content::of(&start)
        };
        assert_eq!(with(512, b"LABELONE"), Content::Lvm);
        assert_eq!(with(0x10040, b"_BHRfS_M"), Content::Btrfs);
        assert_eq!(with(255 * 1024, &0x00ba_b10c_u64.to_be_bytes()), Content::Zfs);
        assert_eq!(with(0, b"x"), Content::Unknown);
        assert_eq!(Content::of(b""), Content::Unknown);
    }
}
