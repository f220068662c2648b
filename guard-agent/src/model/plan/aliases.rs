//! Actor sets that may not delete outside the roots either, and superblocks that are exempt.
//!
//! Each CephFS mount is a superblock of its own, so that a sealed pool can be reached through
//! another one: Incus mounts the filesystem's root below `/tmp` for a moment when it makes or
//! deletes a pool. The kernel program denies the actors of sealed pools every superblock of a
//! guarded kind outside the roots, from its first moment. A superblock is exempt only if it is
//! seen, and certainly shows nothing of any sealed pool.
//!
//! If the inode of every sealed pool's root is known, the mount of a whole filesystem is decided
//! about name by name: only entries of a sealed pool are denied there. So a seal on one pool leaves
//! Incus its other pools of that filesystem.

use std::collections::{BTreeMap, BTreeSet};

use guard_common::names::capacity;
use guard_common::policy::{ALIAS_ACTORS, CONFIG_ALIASES, CONFIG_ALIASES_BY_INODE, POOL_NO_ALIAS};
use guard_common::{Mode, PoolEntry, PoolKey, RootEntry, RootKey};

use super::content::{MapOperation, Observed};
use super::desired::Desired;
use super::entries::{self, is_pool, is_visitor};
use super::pools;
use crate::model::classify::Outsider;
use crate::model::classify::ceph::Identity;
use crate::model::join::NodeMode;

/// The consequences of the pools that will be sealed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Actor sets of the roots that have a sealed or held pool.
    pub(super) sealed: BTreeSet<u32>,
    /// Exemptions that end.
    pub(super) ended: Vec<MapOperation>,
    /// New exemptions.
    pub(super) exempted: Vec<MapOperation>,
    /// Whether names tell the entries of a sealed pool.
    by_inode: bool,
    /// Roots of pools that are sealed no more, or not known.
    pub(super) inodes_gone: Vec<MapOperation>,
    /// Roots of pools that are sealed now.
    pub(super) inodes_new: Vec<MapOperation>,
}

impl Changes {
    /// Flags of `Config`.
    pub(super) fn flags(&self) -> u32 {
        match (self.sealed.is_empty(), self.by_inode) {
            (true, _) => 0,
            (false, false) => CONFIG_ALIASES,
            (false, true) => CONFIG_ALIASES | CONFIG_ALIASES_BY_INODE,
        }
    }

    /// Whether the map of inodes changes.
    pub(super) fn inodes_change(&self) -> bool {
        !self.inodes_gone.is_empty() || !self.inodes_new.is_empty()
    }

    /// The roots of sealed pools in the map. `None`: not all are known, or there is no room for
    /// them.
    fn set_inodes(&mut self, observed: &Observed, wanted: Option<BTreeSet<u64>>, roots: usize) {
        let wanted = wanted.filter(|inodes| inodes.len() + roots <= capacity::ROOTS as usize);
        self.by_inode = wanted.as_ref().is_some_and(|inodes| !inodes.is_empty());
        let wanted: BTreeSet<RootKey> =
            wanted.unwrap_or_default().into_iter().map(RootKey::alias).collect();
        let before: BTreeSet<RootKey> =
            observed.roots.keys().filter(|key| key.is_alias()).copied().collect();
        self.inodes_gone =
            before.difference(&wanted).copied().map(MapOperation::RemoveRoot).collect();
        // No root of the policy has this number.
        let entry = RootEntry { reserved: ALIAS_ACTORS, ..RootEntry::default() };
        self.inodes_new =
            wanted.difference(&before).map(|key| MapOperation::PutRoot(*key, entry)).collect();
    }
}

/// Takes the pools' changes too: a pool that policy drops may be exempt in the same step. `roots`:
/// how many of the policy are in the map of roots.
pub(super) fn changes(
    desired: &Desired<'_>,
    observed: &Observed,
    pools: &mut entries::Changes,
    roots: usize,
) -> Changes {
    let Decided { sealed, exempt, inodes } = decide(desired, &pools.after);
    let mut changes = Changes { sealed, ..Changes::default() };
    changes.set_inodes(observed, inodes, roots);
    let wanted = |entry: &PoolEntry, outsider: &Outsider| {
        entry.pool_id == outsider.pool_id && entry.magic == outsider.magic
    };
    let exempted = observed.pools.iter().filter(|(_, entry)| is_exempt(entry));
    let has_pool: BTreeSet<u32> = pools.after.keys().map(|key| key.dev).collect();
    for (key, entry) in exempted {
        let stays = exempt.get(&key.dev).is_some_and(|outsider| wanted(entry, outsider));
        if !stays && !has_pool.contains(&key.dev) {
            changes.ended.push(MapOperation::RemovePool { key: *key });
        }
    }
    for (dev, outsider) in exempt {
        let key = PoolKey::superblock(dev);
        let before = observed.pools.get(&key);
        let stays = |entry: &PoolEntry| match is_exempt(entry) {
            true => wanted(entry, outsider),
            false => !is_pool(entry),
        };
        if has_pool.contains(&dev) || before.is_some_and(stays) {
            continue;
        }
        let entry = PoolEntry {
            generation: pools.next_generation,
            pool_id: outsider.pool_id,
            magic: outsider.magic,
            mode: Mode::Observed as u32,
            flags: POOL_NO_ALIAS,
            ..PoolEntry::default()
        };
        pools.next_generation += 1;
        if before.is_some_and(is_pool) {
            // Policy drops it: one step instead of two.
            pools.removed.retain(|operation| *operation != MapOperation::RemovePool { key });
            changes.exempted.push(MapOperation::UpdatePool { key, entry });
        } else {
            changes.exempted.push(MapOperation::CreatePool { key, entry });
        }
    }
    changes
}

/// Whether an entry says that its superblock is exempt.
fn is_exempt(entry: &PoolEntry) -> bool {
    entry.flags & POOL_NO_ALIAS != 0
}

struct Decided<'a> {
    /// The sets whose actors are denied.
    sealed: BTreeSet<u32>,
    /// The superblocks where they are not, by `dev`.
    exempt: BTreeMap<u32, &'a Outsider>,
    /// The roots of all sealed pools; `None` if one is not known, or more pools may come.
    inodes: Option<BTreeSet<u64>>,
}

fn decide<'a>(desired: &Desired<'a>, after: &BTreeMap<PoolKey, PoolEntry>) -> Decided<'a> {
    // Held too: the daemon may not delete, by any mount. A visitor's data is its host's own, by any
    // mount.
    let is_sealed = |entry: &&PoolEntry| {
        pools::strength(entry.mode) >= pools::strength(Mode::Held as u32) && !is_visitor(entry)
    };
    // A root without a live pool has no data that could be reached: its actors, which may be
    // another root's too, are left alone.
    let sealed: BTreeSet<u32> =
        after.values().filter(is_sealed).map(|entry| entry.actor_set).collect();
    // More pools of a node on its way into a cluster may still come, and nothing is known of them.
    let may_grow = |set: &u32| {
        let node = desired.overrides.nodes.get(set);
        node.is_some_and(|modes| modes.mode == NodeMode::Sealed)
    };
    let more_may_come = sealed.iter().any(may_grow);
    // Of a pool that is mounted no more, or not through the kernel client, the content is not
    // known.
    let identity = |key: &PoolKey| desired.classification.pool(*key)?.ceph.as_ref();
    let inode = |key: &PoolKey| match key.is_part() {
        true => None,
        false => identity(key).and_then(|_| desired.resolved.pool_roots.get(&key.dev)).copied(),
    };
    let inodes = match more_may_come {
        true => None,
        false => {
            after.iter().filter(|(_, entry)| is_sealed(entry)).map(|(key, _)| inode(key)).collect()
        }
    };
    let sealed_pools: Option<Vec<&Identity>> =
        after.iter().filter(|(_, entry)| is_sealed(entry)).map(|(key, _)| identity(key)).collect();
    let exempt = match sealed_pools.filter(|_| !more_may_come && !sealed.is_empty()) {
        None => BTreeMap::new(),
        Some(pools) => desired
            .classification
            .outsiders
            .iter()
            .filter(|outsider| {
                let apart = |ceph: &Identity| pools.iter().all(|pool| pool.certainly_apart(ceph));
                !outsider.shared && outsider.ceph.as_ref().is_some_and(apart)
            })
            .map(|outsider| (outsider.dev, outsider))
            .collect(),
    };
    Decided { sealed, exempt, inodes }
}
