//! Mount table × policy → the pools, and why every other mount is none. Pure.
//!
//! A pool is one superblock of a guarded kind with at least one mount at or below a guarded root.
//! It counts as a whole: its bind mounts elsewhere on the host are covered, since the kernel
//! decides by superblock. One that belongs elsewhere, by its oldest mount, is a visitor: only its
//! mounts below a root are protected. If NFS mounts of several sources share a superblock (two
//! exports of one server, and a home directory), each source is a part of it, and a pool or none by
//! itself. Of nested roots the innermost that guards the kind wins, as in the kernel program.

pub mod ceph;
pub mod clusters;
mod export;
mod identity;
pub mod names;
mod options;
mod server;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use clusters::Clusters;
use guard_common::PoolKey;
use identity::Identity;
use serde::Serialize;

use crate::model::mounts::{MountEntry, Snapshot};
use crate::model::policy::{Filesystem, Policy};

/// A mounted superblock to be protected, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// `s_dev` in the kernel's encoding.
    pub dev: u32,
    /// Id of its oldest mount, which stands for it where the superblock has parts.
    #[serde(skip)]
    pub head: u32,
    /// Mounts of other sources share the superblock.
    #[serde(skip)]
    pub shared: bool,
    /// Ids of its mounts.
    #[serde(skip)]
    pub mounts: BTreeSet<u32>,
    /// Names the shared filesystem and the path in it; the same after a remount. Never 0.
    pub pool_id: u64,
    /// For people: the volume or storage pool it is mounted for, else the end of the export's path.
    /// Unique.
    pub name: String,
    /// Type in mountinfo.
    pub fs_type: String,
    /// `s_magic` of its kind.
    pub magic: u64,
    pub source: String,
    /// The first mount at or below a guarded root, of the whole filesystem if there is one.
    pub mountpoint: PathBuf,
    /// All mounts in the host's namespace, also those outside every root; of a visitor, those below
    /// one.
    pub mountpoints: Vec<PathBuf>,
    /// It belongs to a place outside the roots, and a part of it, or all, is bound below one.
    #[serde(skip)]
    pub visitor: bool,
    /// Index of the root in the policy.
    pub root: usize,
    /// The kernel client's own data about a Ceph mount.
    #[serde(skip)]
    pub ceph: Option<ceph::Identity>,
}

/// A superblock of a guarded kind that is no pool. It may show a pool's data all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outsider {
    pub dev: u32,
    /// As for a pool.
    pub head: u32,
    /// Of the mounts that share the superblock, some are a pool's.
    pub shared: bool,
    /// As for a pool.
    pub pool_id: u64,
    pub magic: u64,
    pub ceph: Option<ceph::Identity>,
}

/// A mount that is no pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ignored {
    pub mountpoint: PathBuf,
    pub dev: u32,
    pub fs_type: String,
    pub reason: IgnoredReason,
}

/// Why a mount is no pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum IgnoredReason {
    /// No root guards this kind of filesystem.
    OtherFilesystem,
    /// A guarded kind, and no mount of this superblock is at or below a guarded root.
    OutsideRoots,
    /// Below roots that guard other kinds.
    NotGuardedHere,
}

/// Every mount, as a pool or ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Classification {
    /// In the order of `dev` and `head`.
    pub pools: Vec<Pool>,
    /// In the order of the mount table.
    pub ignored: Vec<Ignored>,
    /// In the order of `dev` and `head`.
    #[serde(skip)]
    pub outsiders: Vec<Outsider>,
    /// Every mount of a guarded kind, as the key that it would have if it stood for a part.
    #[serde(skip)]
    pub mounts: BTreeSet<PoolKey>,
}

impl Pool {
    /// Whether a mount is one of its own.
    pub fn has(&self, entry: &MountEntry) -> bool {
        self.dev == entry.dev() && (!self.shared || self.mounts.contains(&entry.mount_id))
    }

    /// Whether an entry with this key is its own.
    pub fn is(&self, key: PoolKey) -> bool {
        self.dev == key.dev && if key.is_part() { self.head == key.head } else { !self.shared }
    }
}

impl Classification {
    /// The pool that an entry with this key speaks for.
    pub fn pool(&self, key: PoolKey) -> Option<&Pool> {
        let first = self.pools.partition_point(|pool| pool.dev < key.dev);
        self.pools[first..].iter().take_while(|pool| pool.dev == key.dev).find(|pool| pool.is(key))
    }

    /// Whether a superblock, or a part of one, is still the one that an entry was made for.
    /// `pool_id` is 0 in the entry of a superblock with parts.
    pub fn has(&self, key: PoolKey, pool_id: u64) -> bool {
        let of_pool =
            |pool: &Pool| pool.dev == key.dev && (pool_id == 0 || pool.pool_id == pool_id);
        let of_outsider =
            |outsider: &Outsider| (outsider.dev, outsider.pool_id) == (key.dev, pool_id);
        let is_mounted = !key.is_part() || self.mounts.contains(&key);
        is_mounted && (self.pools.iter().any(of_pool) || self.outsiders.iter().any(of_outsider))
    }

    /// The pool that a mount is one of.
    pub fn pool_of(&self, entry: &MountEntry) -> Option<&Pool> {
        let first = self.pools.partition_point(|pool| pool.dev < entry.dev());
        self.pools[first..]
            .iter()
            .take_while(|pool| pool.dev == entry.dev())
            .find(|pool| pool.has(entry))
    }
}

/// Tells pools from all other mounts.
pub fn classify(snapshot: &Snapshot, policy: &Policy, clusters: &Clusters) -> Classification {
    let mut kinds: HashMap<&str, Option<&Filesystem>> = HashMap::new();
    let mut superblocks: BTreeMap<u32, Vec<&MountEntry>> = BTreeMap::new();
    for entry in snapshot.entries() {
        let kind = kinds.entry(&entry.fs_type).or_insert_with(|| policy.filesystem(&entry.fs_type));
        if kind.is_some() {
            superblocks.entry(entry.dev()).or_default().push(entry);
        }
    }
    let kind_of = |entry: &MountEntry| kinds.get(entry.fs_type.as_str()).copied().flatten();
    let mut classification = Classification::default();
    for (dev, mounts) in &superblocks {
        let Some(kind) = kind_of(mounts[0]) else { continue };
        let is_below =
            |entry: &&MountEntry| guarding_root(&entry.mountpoint, kind, policy).is_some();
        let has_pool = mounts.iter().any(is_below);
        let parts = match has_pool && has_several_trees(mounts[0]) {
            true => by_source(mounts, is_below),
            false => vec![mounts.clone()],
        };
        for part in &parts {
            match pool(part, kind, policy, clusters) {
                Some(pool) => classification.pools.push(Pool { shared: parts.len() > 1, ..pool }),
                None => {
                    let identity = Identity::of(part[0], part);
                    classification.outsiders.push(Outsider {
                        dev: *dev,
                        head: part[0].mount_id,
                        shared: has_pool,
                        pool_id: identity.pool_id(kind, clusters),
                        magic: kind.magic(),
                        ceph: identity.into_ceph(),
                    });
                }
            }
        }
        classification
            .mounts
            .extend(mounts.iter().map(|entry| PoolKey { dev: *dev, head: entry.mount_id }));
    }
    classification.pools.sort_by_key(|pool| (pool.dev, pool.head));
    classification.outsiders.sort_by_key(|outsider| (outsider.dev, outsider.head));
    tell_apart(&mut classification.pools);
    for entry in snapshot.entries() {
        if classification.pool_of(entry).is_some() {
            continue;
        }
        let below = policy.roots().iter().any(|root| entry.mountpoint.starts_with(root.path()));
        let reason = match kind_of(entry) {
            None => IgnoredReason::OtherFilesystem,
            Some(_) if below => IgnoredReason::NotGuardedHere,
            Some(_) => IgnoredReason::OutsideRoots,
        };
        let (mountpoint, fs_type) = (entry.mountpoint.clone(), entry.fs_type.clone());
        classification.ignored.push(Ignored { mountpoint, dev: entry.dev(), fs_type, reason });
    }
    classification
}

/// Whether a superblock of this kind may show trees that have nothing in common, told apart by the
/// source. Only NFS: its client shares one between all exports of a server's filesystem
/// (`nfs_compare_super`). One of CephFS is shared by mounts that name other monitors, and they show
/// the same path (`ceph_compare_super`). CIFS prints the first mount's source for all
/// (`cifs_show_devname`).
fn has_several_trees(entry: &MountEntry) -> bool {
    matches!(entry.fs_type.as_str(), "nfs" | "nfs4")
}

/// The mounts of a superblock, by their source, each list in their order. A source within an older
/// mount's source is a directory of that, bound or mounted: it belongs to it, if that is a pool.
fn by_source<'m>(
    mounts: &[&'m MountEntry],
    is_below: impl Fn(&&'m MountEntry) -> bool,
) -> Vec<Vec<&'m MountEntry>> {
    let pools: Vec<&OsStr> = mounts
        .iter()
        .filter(|entry| is_below(entry))
        .map(|entry| entry.source.as_os_str())
        .collect();
    let mut parts: Vec<Vec<&MountEntry>> = Vec::new();
    for entry in mounts {
        let takes = |part: &&mut Vec<&MountEntry>| {
            let source = part[0].source.as_os_str();
            source == entry.source || pools.contains(&source) && contains(source, &entry.source)
        };
        // The nearest around it.
        match parts.iter_mut().filter(takes).max_by_key(|part| part[0].source.len()) {
            Some(part) => part.push(entry),
            None => parts.push(vec![entry]),
        }
    }
    parts
}

/// Whether a source shows a directory of another one. NFS prints the path of the mounted directory,
/// also for a bind mount (`nfs_show_devname`): `nas:/export/volume` for a bind of a directory of
/// `nas:/export`.
pub fn contains(source: &OsStr, other: &OsStr) -> bool {
    let (source, other) = (source.as_bytes(), other.as_bytes());
    let outer = source.strip_suffix(b"/").unwrap_or(source);
    source == other || other.strip_prefix(outer).is_some_and(|rest| rest.starts_with(b"/"))
}

fn pool(
    mounts: &[&MountEntry],
    kind: &Filesystem,
    policy: &Policy,
    clusters: &Clusters,
) -> Option<Pool> {
    let guarded = |entry: &&MountEntry| guarding_root(&entry.mountpoint, kind, policy);
    let whole = |entry: &&&MountEntry| entry.root == Path::new("/") && guarded(entry).is_some();
    let primary = mounts
        .iter()
        .find(whole)
        .or_else(|| mounts.iter().find(|entry| guarded(entry).is_some()))?;
    let identity = Identity::of(primary, mounts);
    // The kernel lists mounts in the order in which they were made.
    let visitor = mounts.first().is_some_and(|oldest| guarded(oldest).is_none());
    let shown = mounts.iter().filter(|entry| !visitor || guarded(entry).is_some());
    Some(Pool {
        dev: primary.dev(),
        head: mounts[0].mount_id,
        shared: false,
        mounts: mounts.iter().map(|entry| entry.mount_id).collect(),
        pool_id: identity.pool_id(kind, clusters),
        name: identity.name(),
        fs_type: primary.fs_type.clone(),
        magic: kind.magic(),
        source: primary.source.to_string_lossy().into_owned(),
        mountpoint: primary.mountpoint.clone(),
        mountpoints: shown.map(|entry| entry.mountpoint.clone()).collect(),
        visitor,
        root: guarded(primary)?,
        ceph: identity.into_ceph(),
    })
}

/// Marks names that several pools have.
fn tell_apart(pools: &mut [Pool]) {
    let mut bearers: HashMap<String, Vec<usize>> = HashMap::new();
    for (index, pool) in pools.iter().enumerate() {
        bearers.entry(pool.name.clone()).or_default().push(index);
    }
    for indexes in bearers.into_values().filter(|indexes| indexes.len() > 1) {
        let ids: Vec<u64> = indexes.iter().map(|index| pools[*index].pool_id).collect();
        for index in indexes {
            let Pool { name, pool_id, dev, .. } = &mut pools[index];
            let is_only_one = ids.iter().filter(|id| *id == pool_id).count() == 1;
            *name = names::marked(name, *pool_id, *dev, is_only_one);
        }
    }
}

/// Index of the innermost root at or above a path that guards a kind, by whole components.
pub fn guarding_root(path: &Path, kind: &Filesystem, policy: &Policy) -> Option<usize> {
    let guards = policy.roots().iter().enumerate().filter(|(_, root)| root.guards(kind));
    let above = guards.filter(|(_, root)| path.starts_with(root.path()));
    above.max_by_key(|(_, root)| root.path().components().count()).map(|(index, _)| index)
}

#[cfg(test)]
mod tests;
