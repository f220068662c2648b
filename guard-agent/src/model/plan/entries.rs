//! The meaning of an entry of `POOLS`, and operations on entries by when they are due.

use std::collections::{BTreeMap, BTreeSet};

use guard_common::policy::{POOL_CANARY, POOL_NONE, POOL_VISITOR};
use guard_common::{PoolEntry, PoolKey};

use super::content::MapOperation;

/// Operations on `POOLS`, by when they are due.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Updates that weaken nothing.
    pub(super) strengthened: Vec<MapOperation>,
    pub(super) created: Vec<MapOperation>,
    /// All other updates.
    pub(super) weakened: Vec<MapOperation>,
    pub(super) removed: Vec<MapOperation>,
    /// Entries in mode guarded whose pools go over to another actor set, as they are now.
    pub(super) moving: Vec<(PoolKey, PoolEntry)>,
    /// Magics of all pools that remain.
    pub(super) kept_magics: BTreeSet<u64>,
    pub(super) next_generation: u64,
    /// The pools that remain, as they will be.
    pub(super) after: BTreeMap<PoolKey, PoolEntry>,
}

/// Whether an entry speaks for a pool: it may also be the canary's, or say that something is none.
pub fn is_pool(entry: &PoolEntry) -> bool {
    entry.flags & POOL_NONE == 0
}

/// Whether a pool may be a join's: neither a host's own filesystem of which something is bound
/// below a root, nor one that shares its superblock with others.
pub fn is_own(key: PoolKey, entry: &PoolEntry) -> bool {
    is_pool(entry) && !is_visitor(entry) && !key.is_part()
}

/// Whether only mounts below a root are protected. An entry keeps saying so, or not, for as long as
/// its superblock lives: a pool that has lost its oldest mount does not become free elsewhere.
pub fn is_visitor(entry: &PoolEntry) -> bool {
    entry.flags & POOL_VISITOR != 0
}

pub(super) fn is_canary(entry: &PoolEntry) -> bool {
    entry.flags & POOL_CANARY != 0
}
