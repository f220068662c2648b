//! The names that people know pools by: of the volume or the storage pool, by the path of a mount;
//! else of the exported directory.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::path::Path;

use crate::model::audit::record::{device_text, pool_id_text};

/// Last components of mountpoints that name nothing.
const GENERIC: &[&str] = &["globalmount", "mount", "_data"];

/// Between a name that several pools have and the mark that tells them apart.
const MARK: char = '~';
/// Hexadecimal digits of an id that do so.
const MARK_DIGITS: usize = 8;

/// The volume of a container engine, or the storage pool, that a mountpoint is made for.
pub(super) fn volume(mountpoint: &Path) -> Option<String> {
    let parts: Vec<Cow<'_, str>> = mountpoint.iter().map(OsStr::to_string_lossy).collect();
    let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
    let name = match parts[..] {
        // Incus, LXD.
        [.., "storage-pools", pool] => Some(pool),
        // Docker, Podman.
        [.., "volumes", volume, "_data"] => Some(volume),
        _ => None,
    };
    name.map(str::to_owned).or_else(|| persistent_volume(mountpoint))
}

/// Kubernetes: the kubelet's directories of a pod's volumes, and older ones' of a CSI volume for
/// all pods.
pub(super) fn persistent_volume(mountpoint: &Path) -> Option<String> {
    let parts: Vec<Cow<'_, str>> = mountpoint.iter().map(OsStr::to_string_lossy).collect();
    let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
    let of_pod = parts.windows(5).find_map(|part| match part {
        ["pods", _uid, "volumes", plugin, volume] if plugin.contains('~') => Some(*volume),
        ["pods", _uid, "volume-subpaths", volume, _container] => Some(*volume),
        _ => None,
    });
    let name = of_pod.or(match parts[..] {
        [.., "csi", "pv", volume, "globalmount"] => Some(volume),
        _ => None,
    });
    name.map(str::to_owned)
}

/// The last meaningful part of an export's path. CephFS subvolumes are directories with a random
/// name in one that is called as the subvolume.
pub(super) fn exported(path: &str) -> Option<&str> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts[..] {
        ["volumes", _group, subvolume, _random] => Some(subvolume),
        [.., last] => Some(last),
        [] => None,
    }
}

/// The last part of a mountpoint, unless every mount of its kind ends so.
pub(super) fn place(mountpoint: &Path) -> Option<String> {
    let last = mountpoint.file_name()?.to_string_lossy();
    (!GENERIC.contains(&last.as_ref())).then(|| last.into_owned())
}

/// Tells a pool from another of the same name by the beginning of its id; by its device if they
/// share the id.
pub(super) fn marked(name: &str, pool_id: u64, dev: u32, is_only_one_with_id: bool) -> String {
    match is_only_one_with_id {
        true => format!("{name}{MARK}{}", &pool_id_text(pool_id)[..MARK_DIGITS]),
        false => format!("{name}{MARK}{}", device_text(dev)),
    }
}

/// A pool's name without the mark that tells it from others of that name.
pub fn unmarked<'n>(name: &'n str, pool_id: &str, device: &str) -> &'n str {
    match name.rsplit_once(MARK) {
        Some((bare, mark)) if mark == device || pool_id.get(..MARK_DIGITS) == Some(mark) => bare,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_by_mountpoint() {
        for (mountpoint, name) in [
            ("/var/lib/incus/storage-pools/shared", "shared"),
            ("/var/snap/lxd/common/lxd/storage-pools/remote", "remote"),
            ("/var/lib/kubelet/pods/u1/volumes/kubernetes.io~csi/pvc-1/mount", "pvc-1"),
            ("/var/lib/kubelet/pods/u1/volumes/kubernetes.io~nfs/pv-nfs", "pv-nfs"),
            (
                "/var/snap/microk8s/common/var/lib/kubelet/pods/u/volumes/kubernetes.io~cephfs/a",
                "a",
            ),
            ("/var/lib/kubelet/pods/u1/volume-subpaths/pvc-1/web/0", "pvc-1"),
            ("/var/lib/kubelet/plugins/kubernetes.io/csi/pv/pvc-1/globalmount", "pvc-1"),
            ("/var/lib/docker/volumes/web_media/_data", "web_media"),
        ] {
            assert_eq!(volume(Path::new(mountpoint)).as_deref(), Some(name), "{mountpoint}");
        }
        for mountpoint in [
            "/",
            "/mnt/pods/a/volumes/b",
            "/var/lib/incus/storage-pools",
            "/var/lib/incus/storage-pools/shared/custom/v",
            "/var/lib/kubelet/plugins/kubernetes.io/csi/nfs.csi.k8s.io/0a1b/globalmount",
            "/srv/_data",
        ] {
            assert_eq!(volume(Path::new(mountpoint)), None, "{mountpoint}");
        }
    }

    #[test]
    fn a_mark_is_taken_off_again() {
        let id = 0x1a2b_3c4d_0000_0001;
        let (pool_id, device) = (pool_id_text(id), "0:67");
        for (only_one, name) in [(true, "data~1a2b3c4d"), (false, "data~0:67")] {
            assert_eq!(marked("data", id, 67, only_one), name);
            assert_eq!(unmarked(name, &pool_id, device), "data");
        }
        assert_eq!(unmarked("data~old", &pool_id, device), "data~old");
        assert_eq!(unmarked("data", &pool_id, device), "data");
    }

    #[test]
    fn exports_and_places() {
        for (path, name) in [
            ("/srv/pvc-a", Some("pvc-a")),
            ("/volumes/csi/csi-vol-1/e80e499e", Some("csi-vol-1")),
            ("/volumes/csi/csi-vol-1", Some("csi-vol-1")),
            ("/", None),
        ] {
            assert_eq!(exported(path), name, "{path}");
        }
        for (mountpoint, name) in [
            ("/srv/pool", Some("pool")),
            ("/x/globalmount", None),
            ("/x/mount", None),
            ("/x/_data", None),
        ] {
            assert_eq!(place(Path::new(mountpoint)).as_deref(), name, "{mountpoint}");
        }
    }
}
