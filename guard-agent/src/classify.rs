//! Mount table × policy → the pools, and why every other mount is none. Pure.
//!
//! A pool is one superblock of a guarded kind with at least one mount at or below a guarded root.
//! It counts as a whole: its bind mounts elsewhere on the host are covered, since the kernel decides by
//! superblock. One that belongs elsewhere, by its oldest mount, is a visitor: only its mounts below a root are
//! protected. Of nested roots the innermost that guards the kind wins, as in the kernel program.

pub mod ceph;
pub mod clusters;
mod export;
mod identity;
pub mod names;
mod options;
mod server;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use clusters::Clusters;
use identity::Identity;
use serde::Serialize;

use crate::mounts::{MountEntry, Snapshot};
use crate::policy::{Filesystem, Policy};

/// A mounted superblock to be protected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// `s_dev` in the kernel's encoding: the key in `POOLS`.
    pub dev: u32,
    /// Names the shared filesystem and the path in it; the same after a remount. Never 0.
    pub pool_id: u64,
    /// For people: the volume or storage pool it is mounted for, else the end of what is exported. Unique.
    pub name: String,
    /// Type in mountinfo.
    pub fs_type: String,
    /// `s_magic` of its kind.
    pub magic: u64,
    pub source: String,
    /// The first mount at or below a guarded root, of the whole filesystem if there is one.
    pub mountpoint: PathBuf,
    /// All mounts in the host's namespace, also those outside every root; of a visitor, those below one.
    pub mountpoints: Vec<PathBuf>,
    /// It belongs to a place outside the roots, and a part of it, or all, is bound below one.
    #[serde(skip)]
    pub visitor: bool,
    /// Index of the root in the policy.
    pub root: usize,
    /// What the kernel client of Ceph says of it.
    #[serde(skip)]
    pub ceph: Option<ceph::Identity>,
}

/// A superblock of a guarded kind that is no pool. It may show a pool's data all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outsider {
    pub dev: u32,
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
    /// In the order of `dev`.
    pub pools: Vec<Pool>,
    /// In the order of the mount table.
    pub ignored: Vec<Ignored>,
    /// In the order of `dev`.
    #[serde(skip)]
    pub outsiders: Vec<Outsider>,
}

impl Classification {
    /// The pool of a superblock.
    pub fn pool(&self, dev: u32) -> Option<&Pool> {
        self.pools.binary_search_by_key(&dev, |pool| pool.dev).ok().map(|index| &self.pools[index])
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
    let found = superblocks.values().filter_map(|mounts| pool(mounts, kind_of(mounts[0])?, policy, clusters));
    let mut pools: Vec<Pool> = found.collect();
    tell_apart(&mut pools);
    let mut classification = Classification { pools, ..Classification::default() };
    for (dev, mounts) in &superblocks {
        let Some(kind) = kind_of(mounts[0]).filter(|_| classification.pool(*dev).is_none()) else { continue };
        let identity = Identity::of(mounts[0], mounts);
        let (pool_id, magic) = (identity.pool_id(kind, clusters), kind.magic());
        classification.outsiders.push(Outsider { dev: *dev, pool_id, magic, ceph: identity.into_ceph() });
    }
    for entry in snapshot.entries() {
        if classification.pool(entry.dev()).is_some() {
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

fn pool(mounts: &[&MountEntry], kind: &Filesystem, policy: &Policy, clusters: &Clusters) -> Option<Pool> {
    let guarded = |entry: &&MountEntry| guarding_root(&entry.mountpoint, kind, policy);
    let whole = |entry: &&&MountEntry| entry.root == Path::new("/") && guarded(entry).is_some();
    let primary =
        mounts.iter().find(whole).or_else(|| mounts.iter().find(|entry| guarded(entry).is_some()))?;
    let identity = Identity::of(primary, mounts);
    // The kernel lists mounts in the order in which they were made.
    let visitor = mounts.first().is_some_and(|oldest| guarded(oldest).is_none());
    let shown = mounts.iter().filter(|entry| !visitor || guarded(entry).is_some());
    Some(Pool {
        dev: primary.dev(),
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
