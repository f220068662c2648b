//! Superblocks of which several sources' mounts are parts, each a pool or none by itself.
//!
//! The superblock's own entry says so (`POOL_PARTS`), and keeps saying it for as long as the
//! superblock lives. It comes after those of the parts: until then the superblock is decided about
//! as a whole, which is the stronger.

use std::collections::BTreeSet;

use guard_common::policy::{POOL_OUTSIDE, POOL_PARTS};
use guard_common::{Mode, PoolEntry, PoolKey};

use super::content::{MapOperation, Observed};
use super::desired::Desired;
use super::entries::{Changes, is_canary, is_pool};
use crate::model::classify::{Classification, Outsider, Pool};

/// The superblocks that have parts, or will have.
#[derive(Debug, Default)]
pub(super) struct Parts {
    devices: BTreeSet<u32>,
    /// Keys without a superblock that has parts.
    strays: BTreeSet<PoolKey>,
}

fn has_parts(observed: &Observed, dev: u32) -> bool {
    observed.pools.get(&PoolKey::superblock(dev)).is_some_and(|entry| entry.flags & POOL_PARTS != 0)
}

impl Parts {
    /// Those that are seen, and those that were.
    pub(super) fn of(classification: &Classification, observed: &Observed) -> Self {
        let seen = classification.pools.iter().filter(|pool| pool.shared).map(|pool| pool.dev);
        let known =
            observed.pools.keys().map(|key| key.dev).filter(|dev| has_parts(observed, *dev));
        let is_canarys =
            |dev: &u32| observed.pools.get(&PoolKey::superblock(*dev)).is_some_and(is_canary);
        let devices: BTreeSet<u32> = seen.chain(known).filter(|dev| !is_canarys(dev)).collect();
        let parts = observed.pools.keys().filter(|key| key.is_part());
        let strays = parts.filter(|key| !devices.contains(&key.dev)).copied().collect();
        Self { devices, strays }
    }

    /// The key of a pool's entry.
    pub(super) fn key(observed: &Observed, pool: &Pool) -> PoolKey {
        let is_part = pool.shared || has_parts(observed, pool.dev);
        PoolKey { dev: pool.dev, head: if is_part { pool.head } else { 0 } }
    }

    /// The entry of the whole superblock, if it was made for a pool that is a part by now.
    pub(super) fn whole<'o>(observed: &'o Observed, pool: &Pool) -> Option<&'o PoolEntry> {
        let whole =
            observed.pools.get(&PoolKey::superblock(pool.dev)).filter(|entry| is_pool(entry))?;
        (pool.shared && whole.pool_id == pool.pool_id && whole.magic == pool.magic).then_some(whole)
    }

    /// Whether an entry is looked after here.
    pub(super) fn decides(&self, key: PoolKey) -> bool {
        key.is_part() || self.devices.contains(&key.dev)
    }

    /// The entries of superblocks with parts, and of parts that are no pools, or are mounted no
    /// more.
    pub(super) fn change(&self, desired: &Desired<'_>, observed: &Observed, changes: &mut Changes) {
        let outsiders = &desired.classification.outsiders;
        for outsider in outsiders.iter().filter(|outsider| self.devices.contains(&outsider.dev)) {
            self.outside(outsider, observed, changes);
        }
        for dev in &self.devices {
            Self::superblock(*dev, desired, observed, changes);
        }
        let gone = self.strays.iter().map(|key| MapOperation::RemovePool { key: *key });
        changes.removed.extend(gone);
        let classification = desired.classification;
        for (key, entry) in observed.pools.iter().filter(|(key, _)| key.is_part()) {
            if self.strays.contains(key) || changes.after.contains_key(key) {
                continue;
            }
            let is_outsider =
                |outsider: &Outsider| (outsider.dev, outsider.head) == (key.dev, key.head);
            if outsiders.iter().any(is_outsider) {
                continue;
            }
            let mounted_again = classification
                .pools
                .iter()
                .any(|pool| (pool.dev, pool.pool_id) == (key.dev, entry.pool_id));
            // Its number may be another mount's by now; or it is the same part, which another mount
            // stands for.
            if !is_pool(entry) || classification.mounts.contains(key) || mounted_again {
                changes.removed.push(MapOperation::RemovePool { key: *key });
            } else {
                // Open directories may still reach it.
                changes.keep(desired, *key, entry, None);
            }
        }
    }

    fn outside(&self, outsider: &Outsider, observed: &Observed, changes: &mut Changes) {
        let key = PoolKey { dev: outsider.dev, head: outsider.head };
        let before = observed.pools.get(&key);
        let is_it = |entry: &PoolEntry| {
            entry.flags & POOL_OUTSIDE != 0 && entry.pool_id == outsider.pool_id
        };
        if before.is_some_and(is_it) {
            return;
        }
        let entry =
            PoolEntry { pool_id: outsider.pool_id, ..none(outsider.magic, POOL_OUTSIDE, changes) };
        match before {
            Some(_) => changes.weakened.push(MapOperation::UpdatePool { key, entry }),
            None => changes.created.push(MapOperation::CreatePool { key, entry }),
        }
    }

    fn superblock(dev: u32, desired: &Desired<'_>, observed: &Observed, changes: &mut Changes) {
        let key = PoolKey::superblock(dev);
        let pools = desired.classification.pools.iter().filter(|pool| pool.dev == dev);
        match observed.pools.get(&key) {
            Some(entry) if entry.flags & POOL_PARTS != 0 => {
                changes.kept_magics.insert(entry.magic);
            }
            before => {
                let Some(magic) = pools.map(|pool| pool.magic).next() else { return };
                let entry = none(magic, POOL_PARTS, changes);
                changes.kept_magics.insert(magic);
                // Both come after all parts have their entries.
                match before {
                    Some(before) => {
                        // Until then all parts have the whole's actors.
                        let stays = |part: &PoolEntry| part.actor_set == before.actor_set;
                        let mut parts = changes.after.iter().filter(|(key, _)| key.dev == dev);
                        if is_pool(before) && !parts.all(|(_, part)| stays(part)) {
                            changes.moves(key, before);
                        }
                        changes.weakened.push(MapOperation::UpdatePool { key, entry });
                    }
                    None => changes.created.push(MapOperation::CreatePool { key, entry }),
                }
            }
        }
    }
}

/// An entry that is no pool's.
fn none(magic: u64, flags: u32, changes: &mut Changes) -> PoolEntry {
    let generation = changes.next_generation;
    changes.next_generation += 1;
    PoolEntry { generation, magic, flags, mode: Mode::Observed as u32, ..PoolEntry::default() }
}
