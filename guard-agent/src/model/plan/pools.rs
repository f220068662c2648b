//! Which entries pools get, and which changes of entries strengthen.

use std::collections::{BTreeMap, BTreeSet};

use guard_common::policy::{POOL_EXPORTED, POOL_GUARD_TRUNCATE, POOL_OPERATOR, POOL_VISITOR};
use guard_common::{Mode, PoolEntry, PoolKey};

use super::content::{MapOperation, Observed, flag};
use super::desired::{Desired, node_mode};
use super::entries::{Changes, is_canary, is_pool, is_visitor};
use super::parts::Parts;
use crate::model::classify::{Classification, Pool};
use crate::model::join::NodeMode;
use crate::model::policy::{Policy, Root};

/// Pools that an operator has sealed under another id than they have now.
pub fn seals_to_keep<'c>(
    classification: &'c Classification,
    observed: &Observed,
) -> impl Iterator<Item = &'c Pool> {
    let is_sealed_otherwise = |pool: &&Pool| {
        observed.pools.get(&Parts::key(observed, pool)).is_some_and(|entry| {
            let by_operator = is_pool(entry) && entry.flags & POOL_OPERATOR != 0;
            by_operator && entry.magic == pool.magic && entry.pool_id != pool.pool_id
        })
    };
    classification.pools.iter().filter(is_sealed_otherwise)
}

pub(super) fn changes(desired: &Desired<'_>, observed: &Observed) -> Changes {
    // No entry's generation is given out again, also if the counter is too low.
    let used = observed.pools.values().map(|entry| entry.generation).max().unwrap_or(0);
    let next_generation = desired.next_generation.max(used + 1);
    let mut changes = Changes { next_generation, ..Changes::default() };
    let parts = Parts::of(desired.classification, observed);
    for pool in &desired.classification.pools {
        let key = Parts::key(observed, pool);
        match observed.pools.get(&key) {
            // The canary's own superblock, seen below a root: it is not a pool while it has that
            // entry.
            Some(entry) if is_canary(entry) => {}
            // It lay outside all roots before.
            Some(entry) if !is_pool(entry) => changes.create(desired, pool, key, true),
            Some(entry) => {
                changes.update(key, entry, wanted(desired, pool, entry, changes.next_generation))
            }
            None => match Parts::whole(observed, pool) {
                // The superblock has got parts: the entry of the whole goes on for this one.
                Some(entry) => {
                    let entry = wanted(desired, pool, entry, changes.next_generation);
                    changes.put(key, entry, |key, entry| MapOperation::CreatePool { key, entry });
                }
                None => changes.create(desired, pool, key, false),
            },
        }
    }
    parts.change(desired, observed, &mut changes);
    let mounted: BTreeMap<u32, &str> = desired
        .classification
        .ignored
        .iter()
        .map(|ignored| (ignored.dev, ignored.fs_type.as_str()))
        .collect();
    for (key, entry) in observed.pools.iter().filter(|(key, _)| !parts.decides(**key)) {
        if desired.classification.pool(*key).is_some() {
            continue;
        }
        let mounted = mounted.get(&key.dev).copied();
        if is_canary(entry) {
            changes.kept_magics.insert(entry.magic);
        } else if !is_pool(entry) {
            // See `aliases`.
        } else if is_visitor(entry) && mounted.is_some() {
            // It is at home, and nothing of it is below a root any more.
            changes.removed.push(MapOperation::RemovePool { key: *key });
        } else {
            changes.keep(desired, *key, entry, mounted);
        }
    }
    changes
}

impl Changes {
    /// Whether a pool is sealed on the way: see `seal_on_the_way`.
    pub(super) fn seals_on_the_way(&self) -> bool {
        self.strengthened
            .iter()
            .any(|operation| matches!(operation, MapOperation::UpdatePool { entry, .. } if is_strict(entry)))
    }

    /// Settles the entry of a pool that is mounted no more, or not below a root any more.
    pub(super) fn keep(
        &mut self,
        desired: &Desired<'_>,
        key: PoolKey,
        entry: &PoolEntry,
        mounted: Option<&str>,
    ) {
        if let Some(root) = guarding_root(desired.policy, entry, mounted) {
            self.update(key, entry, settled(desired, root, *entry));
        } else if mounted.is_some() {
            self.removed.push(MapOperation::RemovePool { key });
        } else {
            self.after.insert(key, *entry);
            self.kept_magics.insert(entry.magic);
        }
    }

    fn create(&mut self, desired: &Desired<'_>, pool: &Pool, key: PoolKey, replaces: bool) {
        let root = &desired.policy.roots()[pool.root];
        let generation = self.next_generation;
        let flags = flag(pool.visitor, POOL_VISITOR);
        let entry = PoolEntry {
            generation,
            pool_id: pool.pool_id,
            magic: pool.magic,
            flags,
            ..PoolEntry::default()
        };
        let entry = settled(desired, root, entry);
        if replaces {
            self.put(key, entry, |key, entry| MapOperation::UpdatePool { key, entry });
        } else {
            self.put(key, entry, |key, entry| MapOperation::CreatePool { key, entry });
        }
    }

    /// An entry that comes.
    fn put(
        &mut self,
        key: PoolKey,
        entry: PoolEntry,
        operation: fn(PoolKey, PoolEntry) -> MapOperation,
    ) {
        self.next_generation = self.next_generation.max(entry.generation + 1);
        self.kept_magics.insert(entry.magic);
        self.after.insert(key, entry);
        self.created.push(operation(key, entry));
    }

    fn update(&mut self, key: PoolKey, before: &PoolEntry, after: PoolEntry) {
        self.next_generation = self.next_generation.max(after.generation + 1);
        self.kept_magics.insert(after.magic);
        self.after.insert(key, after);
        if *before == after {
            return;
        }
        if before.actor_set != after.actor_set {
            self.moves(key, before);
        }
        let operation = MapOperation::UpdatePool { key, entry: after };
        if weakens(before, &after) {
            self.weakened.push(operation);
        } else {
            self.strengthened.push(operation);
        }
    }

    /// Notes that a pool leaves the actor set of this entry.
    pub(super) fn moves(&mut self, key: PoolKey, before: &PoolEntry) {
        if Mode::from_u32(before.mode) == Some(Mode::Guarded) {
            self.moving.push((key, *before));
        }
    }

    /// Seals each pool that leaves an actor set which is about to get new actors: until the pool
    /// has left it, they could delete in a pool that is theirs neither before nor after. If the set
    /// gets none, nothing is sealed, and nobody is denied in between.
    pub(super) fn seal_on_the_way(&mut self, new_actors: &BTreeSet<u32>) {
        for (key, before) in std::mem::take(&mut self.moving) {
            if new_actors.contains(&before.actor_set) {
                let entry = PoolEntry { mode: Mode::Sealed as u32, ..before };
                self.strengthened.push(MapOperation::UpdatePool { key, entry });
            }
        }
    }
}

/// The entry of a mounted pool that has one.
fn wanted(
    desired: &Desired<'_>,
    pool: &Pool,
    entry: &PoolEntry,
    next_generation: u64,
) -> PoolEntry {
    let root = &desired.policy.roots()[pool.root];
    let same = entry.magic == pool.magic && entry.pool_id == pool.pool_id;
    // Otherwise it is another superblock, whose end the kernel program has not seen. Its entry is
    // replaced in one step, so that there is no moment without one; leases and releases of the old
    // one end.
    let (generation, flags) = match same {
        true => (entry.generation, entry.flags),
        false => (next_generation, flag(pool.visitor, POOL_VISITOR)),
    };
    let base = PoolEntry { generation, flags, pool_id: pool.pool_id, magic: pool.magic, ..*entry };
    settled(desired, root, base)
}

/// The root that an entry was made for, if policy still guards that kind there.
fn guarding_root<'p>(
    policy: &'p Policy,
    entry: &PoolEntry,
    fs_type: Option<&str>,
) -> Option<&'p Root> {
    let root = policy.root_of_actor_set(entry.actor_set)?;
    let is_kind = |kind: &&crate::model::policy::Filesystem| {
        kind.magic() == entry.magic && fs_type.is_none_or(|fs_type| kind.matches(fs_type))
    };
    policy.filesystems().iter().filter(|kind| root.guards(kind)).find(is_kind).map(|_| root)
}

/// Mode and end of release. An expired release falls back to the underlying mode.
fn mode(desired: &Desired<'_>, root: &Root, pool_id: u64, generation: u64) -> (Mode, u64) {
    match desired.overrides.released.get(&generation) {
        Some(end) if *end > desired.now_boot_ns => (Mode::Released, *end),
        _ if desired.overrides.is_sealed(pool_id) => (Mode::Sealed, 0),
        _ => {
            let node = desired.overrides.nodes.get(&root.actor_set());
            let state = node.map_or(NodeMode::Policy, |modes| modes.of(generation));
            (node_mode(root.default_mode(), state), 0)
        }
    }
}

/// The mode that a pool gets which nobody has seen yet.
pub(super) fn mode_of_new(desired: &Desired<'_>, root: &Root) -> Mode {
    let node = desired.overrides.nodes.get(&root.actor_set());
    node_mode(root.default_mode(), node.map_or(NodeMode::Policy, |modes| modes.others))
}

/// Whether the hooks that carry only the inode have something to say to a user's thread.
pub(super) fn is_strict(entry: &PoolEntry) -> bool {
    !matches!(Mode::from_u32(entry.mode), Some(Mode::Guarded | Mode::Held | Mode::Observed))
}

/// The entry with everything that policy, operators and the node's state say of it.
fn settled(desired: &Desired<'_>, root: &Root, entry: PoolEntry) -> PoolEntry {
    let flags = entry.flags & POOL_VISITOR
        | flag(root.exported(), POOL_EXPORTED)
        | flag(root.guard_truncate(), POOL_GUARD_TRUNCATE)
        | flag(desired.overrides.sealed.contains(&entry.pool_id), POOL_OPERATOR);
    let (mode, expires_boot_ns) = mode(desired, root, entry.pool_id, entry.generation);
    let (mode, actor_set) = (mode as u32, root.actor_set());
    PoolEntry { mode, expires_boot_ns, flags, actor_set, canary_token: 0, ..entry }
}

/// Strength of a mode's denial. A release counts as running: it allows most.
pub(super) fn strength(mode: u32) -> u32 {
    match Mode::from_u32(mode) {
        Some(Mode::Released) => 0,
        Some(Mode::Observed) => 1,
        Some(Mode::Guarded) => 2,
        // A number that is no mode is denied by the kernel program.
        Some(Mode::Held) => 3,
        Some(Mode::Sealed) | None => 4,
    }
}

fn weakens(before: &PoolEntry, after: &PoolEntry) -> bool {
    let exported = after.flags & !before.flags & POOL_EXPORTED != 0;
    let truncate = before.flags & !after.flags & POOL_GUARD_TRUNCATE != 0;
    let longer = after.expires_boot_ns > before.expires_boot_ns;
    let other_actors = before.actor_set != after.actor_set;
    strength(after.mode) < strength(before.mode) || exported || truncate || longer || other_actors
}
