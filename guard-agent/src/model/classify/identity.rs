//! A pool's id and name. Both stay the same when it is mounted again, or at another place.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::clusters::Clusters;
use super::export::Export;
use super::{ceph, names};
use crate::model::mounts::MountEntry;
use crate::model::policy::Filesystem;

/// Of one superblock.
#[derive(Debug)]
pub(super) struct Identity<'m> {
    mount: &'m MountEntry,
    /// The volume that one of its mounts belongs to, by the path; `mount` is looked at first.
    volume: Option<String>,
    /// The same, if that is a volume of Kubernetes.
    persistent_volume: Option<String>,
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    Ceph(ceph::Identity),
    Export(Export),
    /// A source that is not taken apart.
    Source,
}

impl<'m> Identity<'m> {
    /// `mount` is the one that speaks for all.
    pub(super) fn of(mount: &'m MountEntry, all: &[&MountEntry]) -> Self {
        let (source, options) = (&mount.source, &mount.super_options);
        let shown = match mount.fs_type.as_str() {
            "ceph" => ceph::identity(mount).map(Shown::Ceph),
            "nfs" | "nfs4" => Export::nfs(source, options).map(Shown::Export),
            "cifs" | "smb3" => Export::cifs(source, options).map(Shown::Export),
            _ => None,
        };
        let places = || std::iter::once(&mount).chain(all).map(|entry| entry.mountpoint.as_path());
        let (volume, persistent_volume) =
            (places().find_map(names::volume), places().find_map(names::persistent_volume));
        Self { mount, volume, persistent_volume, shown: shown.unwrap_or(Shown::Source) }
    }

    /// The first eight bytes of a SHA-256 over kind and identity. Never 0.
    pub(super) fn pool_id(&self, kind: &Filesystem, clusters: &Clusters) -> u64 {
        let mut hash = Sha256::new();
        hash.update(kind.name());
        hash.update([0]);
        match &self.shown {
            Shown::Ceph(identity) => hash.update(identity.canonical(clusters)),
            Shown::Export(export) => {
                hash.update(export.canonical(self.persistent_volume.as_deref()))
            }
            Shown::Source => self.hash_source(&mut hash),
        }
        let digest = hash.finalize();
        let first = digest.iter().take(8).fold(0_u64, |id, byte| id << 8 | u64::from(*byte));
        first.max(1)
    }

    fn hash_source(&self, hash: &mut Sha256) {
        let source = self.mount.source.as_bytes();
        hash.update(source);
        // A source such as `none` or `ceph-fuse` names nothing: the place has to.
        if !source.iter().any(|byte| matches!(byte, b'/' | b':' | b'@')) {
            hash.update([0]);
            hash.update(self.mount.mountpoint.as_os_str().as_bytes());
        }
    }

    pub(super) fn name(&self) -> String {
        let exported = match &self.shown {
            Shown::Ceph(identity) => {
                Some(Path::new(&identity.path).join(relative(&self.mount.root)))
            }
            Shown::Export(export) => Some(Path::new(&export.path).join(relative(&self.mount.root))),
            Shown::Source => None,
        };
        let exported =
            exported.and_then(|path| names::exported(&path.to_string_lossy()).map(str::to_owned));
        let server = || match &self.shown {
            Shown::Export(export) => Some(export.server.to_string()),
            Shown::Ceph(identity) => identity.filesystem.clone(),
            Shown::Source => None,
        };
        let place = || names::place(&self.mount.mountpoint);
        let name = self.volume.clone().or(exported).or_else(place).or_else(server);
        name.unwrap_or_else(|| self.mount.mountpoint.to_string_lossy().into_owned())
    }

    pub(super) fn into_ceph(self) -> Option<ceph::Identity> {
        match self.shown {
            Shown::Ceph(identity) => Some(identity),
            Shown::Export(_) | Shown::Source => None,
        }
    }
}

fn relative(root: &Path) -> &Path {
    root.strip_prefix("/").unwrap_or(root)
}
