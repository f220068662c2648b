//! Whose storage daemons may not delete outside the roots either, and which superblocks are exempt.
//!
//! Each CephFS mount is a superblock of its own, so that a sealed pool can be reached through another one:
//! Incus mounts the filesystem's root below `/tmp` for a moment when it makes or deletes a pool. The kernel
//! program denies the actors of sealed pools every superblock of a guarded kind outside the roots, from its
//! first moment. Exempt is only what is seen, and certainly shows nothing of any sealed pool.

use std::collections::{BTreeMap, BTreeSet};

use guard_common::policy::POOL_NO_ALIAS;
use guard_common::{Mode, PoolEntry};

use super::pools::{self, is_canary, is_pool};
use super::{Desired, MapOperation, Observed};
use crate::classify::{Outsider, ceph::Identity};
use crate::join::NodeMode;

/// What follows from the pools that will be sealed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Actor sets of the roots that have a sealed or held pool.
    pub(super) sealed: BTreeSet<u32>,
    /// Exemptions that end.
    pub(super) ended: Vec<MapOperation>,
    /// New exemptions.
    pub(super) exempted: Vec<MapOperation>,
}

/// Takes the pools' changes too: a pool that policy drops may be exempt in the same step.
pub(super) fn changes(desired: &Desired<'_>, observed: &Observed, pools: &mut pools::Changes) -> Changes {
    let (sealed, exempt) = decide(desired, &pools.after);
    let mut changes = Changes { sealed, ..Changes::default() };
    let wanted = |entry: &PoolEntry, outsider: &Outsider| {
        entry.pool_id == outsider.pool_id && entry.magic == outsider.magic
    };
    for (dev, entry) in observed.pools.iter().filter(|(_, entry)| !is_pool(entry) && !is_canary(entry)) {
        let stays = exempt.get(dev).is_some_and(|outsider| wanted(entry, outsider));
        if !stays && !pools.after.contains_key(dev) {
            changes.ended.push(MapOperation::RemovePool { dev: *dev });
        }
    }
    for (dev, outsider) in exempt {
        let before = observed.pools.get(&dev);
        if pools.after.contains_key(&dev)
            || before.is_some_and(|entry| is_canary(entry) || !is_pool(entry) && wanted(entry, outsider))
        {
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
            pools.removed.retain(|operation| *operation != MapOperation::RemovePool { dev });
            changes.exempted.push(MapOperation::UpdatePool { dev, entry });
        } else {
            changes.exempted.push(MapOperation::CreatePool { dev, entry });
        }
    }
    changes
}

/// The sets whose actors are denied, and the superblocks where they are not, by `dev`.
fn decide<'a>(
    desired: &Desired<'a>,
    after: &BTreeMap<u32, PoolEntry>,
) -> (BTreeSet<u32>, BTreeMap<u32, &'a Outsider>) {
    // Held too: the daemon may not delete, by whatever mount.
    let is_sealed = |entry: &&PoolEntry| pools::strength(entry.mode) >= pools::strength(Mode::Held as u32);
    // A root without a live pool has no data that could be reached: its actors, which may be another root's too, are
    // left alone.
    let sealed: BTreeSet<u32> = after.values().filter(is_sealed).map(|entry| entry.actor_set).collect();
    // More pools of a node on its way into a cluster may still come, and nothing is known of them.
    let may_grow = |set: &u32| {
        let node = desired.overrides.nodes.get(set);
        node.is_some_and(|modes| modes.mode == NodeMode::Sealed)
    };
    let more_may_come = sealed.iter().any(may_grow);
    // Of a pool that is mounted no more, or not through the kernel client, it is not known what it shows.
    let identity = |dev: &u32| desired.classification.pool(*dev)?.ceph.as_ref();
    let sealed_pools: Option<Vec<&Identity>> =
        after.iter().filter(|(_, entry)| is_sealed(entry)).map(|(dev, _)| identity(dev)).collect();
    let exempt = match sealed_pools.filter(|_| !more_may_come && !sealed.is_empty()) {
        None => BTreeMap::new(),
        Some(pools) => desired
            .classification
            .outsiders
            .iter()
            .filter(|outsider| {
                let apart = |ceph: &Identity| pools.iter().all(|pool| pool.certainly_apart(ceph));
                outsider.ceph.as_ref().is_some_and(apart)
            })
            .map(|outsider| (outsider.dev, outsider))
            .collect(),
    };
    (sealed, exempt)
}
