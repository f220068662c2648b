//! The pools that the kernel has entries for, and the audit log's records of them.
//!
//! [`PoolBook::update`] takes the entries as the kernel has them now and returns the changes. It
//! changes nothing else: the caller writes the records, and ends the leases of pools that have
//! ended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use guard_common::{Mode, PoolEntry, PoolKey};

use crate::daemon::control::Peer;
use crate::model::audit::record::{
    ModeBody, ModeCause, PoolBody, PoolChange, device_text, pool_id_text,
};
use crate::model::audit::{Body, Place};
use crate::model::classify::{Classification, Pool};
use crate::model::events::Name;
use crate::model::join;
use crate::model::plan;
use crate::model::plan::Overrides;
use crate::model::policy::Policy;

/// Places of ended pools that are remembered.
const PAST: usize = 1024;

/// A pool that has an entry in the kernel.
#[derive(Clone, Debug)]
pub(super) struct KnownPool {
    /// The pool in the mount table; as it was last seen, if the mount is gone and the superblock
    /// lives.
    pub pool: Pool,
    /// Of its entry.
    pub key: PoolKey,
    /// Path of the guarded root.
    pub root: PathBuf,
    pub entry: PoolEntry,
    pub mode: Mode,
    pub cause: ModeCause,
}

impl KnownPool {
    /// The pool's identity in the audit log.
    pub(super) fn place(&self) -> Place {
        Place {
            pool_id: Some(pool_id_text(self.pool.pool_id)),
            pool: Some(self.pool.name.clone()),
            mountpoint: Some(self.pool.mountpoint.display().to_string()),
            generation: Some(self.entry.generation),
        }
    }

    fn record(&self, change: PoolChange) -> PoolBody {
        PoolBody {
            change,
            place: self.place(),
            device: device_text(self.pool.dev),
            filesystem: self.pool.fs_type.clone(),
            source: self.pool.source.clone(),
            mode: Some(Name(self.mode)),
        }
    }
}

/// An operator's request that is being carried out, and the generation of its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub generation: u64,
    pub peer: Peer,
}

/// Sources of the pools' names, roots and modes.
#[derive(Clone, Copy, Debug)]
pub(super) struct BookSources<'a> {
    pub policy: &'a Policy,
    pub classification: &'a Classification,
    /// The decisions beside the policy.
    pub overrides: &'a Overrides,
    pub asked: Option<Asked>,
}

/// Changes of the book.
#[derive(Debug, Default)]
pub(super) struct BookChanges {
    pub records: Vec<Body>,
    /// Generations of pools that have ended.
    pub ended: Vec<u64>,
}

/// All pools with entries, and the places of those that had one.
#[derive(Debug, Default)]
pub(super) struct PoolBook {
    /// By generation.
    pools: BTreeMap<u64, KnownPool>,
    /// Places of pools that ended, for records that come after the end.
    past: BTreeMap<u64, Place>,
}

impl PoolBook {
    /// Compares the pools in the kernel with those known.
    pub(super) fn update(
        &mut self,
        entries: &BTreeMap<PoolKey, PoolEntry>,
        sources: BookSources<'_>,
    ) -> BookChanges {
        let mut changes = BookChanges::default();
        let mut seen = BTreeSet::new();
        for (key, entry) in entries.iter().filter(|(_, entry)| plan::is_pool(entry)) {
            seen.insert(entry.generation);
            self.take(*key, *entry, sources, &mut changes);
        }
        let gone: Vec<u64> =
            self.pools.keys().filter(|generation| !seen.contains(generation)).copied().collect();
        for generation in gone {
            if let Some(known) = self.pools.remove(&generation) {
                self.end(&known, &mut changes);
            }
        }
        changes
    }

    fn take(
        &mut self,
        key: PoolKey,
        entry: PoolEntry,
        sources: BookSources<'_>,
        changes: &mut BookChanges,
    ) {
        let mode = Mode::from_u32(entry.mode).unwrap_or(Mode::Sealed);
        let known = self.pools.get(&entry.generation);
        let pool = match (sources.classification.pool(key), known) {
            (Some(pool), _) if pool.pool_id == entry.pool_id => pool.clone(),
            (_, Some(known)) => known.pool.clone(),
            (_, None) => detached(key, &entry),
        };
        // As policy spells it, which is its name everywhere: the mount table's spelling is for
        // comparing with mounts.
        let root = sources.policy.root_of_actor_set(entry.actor_set);
        let root = root.map_or_else(PathBuf::new, |root| root.path().to_owned());
        let before = known.map(|known| known.mode);
        let asked = sources.asked.filter(|asked| asked.generation == entry.generation);
        let cause = cause(before, mode, &entry, asked, sources);
        let known = KnownPool { pool, key, root, entry, mode, cause };
        let name = &known.pool.name;
        match before {
            None => {
                let dev = device_text(key.dev);
                tracing::info!(pool = name, dev, mode = mode.name(), "pool appeared");
                changes.records.push(Body::Pool(known.record(PoolChange::Appeared)));
            }
            Some(from) if from != mode => {
                let (old, new) = (from.name(), mode.name());
                tracing::info!(pool = name, from = old, to = new, ?cause, "mode changed");
                changes.records.push(Body::Mode(ModeBody {
                    place: known.place(),
                    from: Some(Name(from)),
                    to: Name(mode),
                    cause,
                    uid: asked.map(|asked| asked.peer.uid),
                    login_uid: asked.and_then(|asked| asked.peer.login_uid),
                }));
            }
            Some(_) => {}
        }
        self.pools.insert(entry.generation, known);
    }

    fn end(&mut self, known: &KnownPool, changes: &mut BookChanges) {
        let generation = known.entry.generation;
        tracing::info!(pool = known.pool.name, generation, "pool ended");
        self.past.insert(generation, known.place());
        while self.past.len() > PAST {
            self.past.pop_first();
        }
        changes.records.push(Body::Pool(known.record(PoolChange::Ended)));
        changes.ended.push(generation);
    }

    /// All pools, in the order of their generations.
    pub(super) fn pools(&self) -> impl Iterator<Item = &KnownPool> {
        self.pools.values()
    }

    /// The pool with an entry of this generation.
    pub(super) fn get(&self, generation: u64) -> Option<&KnownPool> {
        self.pools.get(&generation)
    }

    /// Identity in the audit log of a generation's pool, also after its end.
    pub(super) fn place(&self, generation: u64) -> Place {
        let living = self.pools.get(&generation).map(KnownPool::place);
        living.or_else(|| self.past.get(&generation).cloned()).unwrap_or_default()
    }

    /// The live pools of an actor set that a join may have brought. A visitor is the host's own
    /// filesystem, of which a container has a directory.
    pub(super) fn own_pools(&self, actor_set: u32) -> impl Iterator<Item = &KnownPool> {
        let is_own = move |known: &&KnownPool| {
            known.entry.actor_set == actor_set && plan::is_own(known.key, &known.entry)
        };
        self.pools.values().filter(is_own)
    }

    /// The same as the join's state machine takes them: pool ids by generation.
    pub(super) fn alive(&self, actor_set: u32) -> join::Pools {
        let own = self.own_pools(actor_set);
        own.map(|known| (known.entry.generation, known.entry.pool_id)).collect()
    }
}

/// Whether a pool has its mode by an operator's word.
fn has_word_on(overrides: &Overrides, entry: &PoolEntry) -> bool {
    overrides.released.contains_key(&entry.generation) || overrides.is_sealed(entry.pool_id)
}

/// Why a pool has its mode.
fn cause(
    before: Option<Mode>,
    mode: Mode,
    entry: &PoolEntry,
    asked: Option<Asked>,
    sources: BookSources<'_>,
) -> ModeCause {
    match before {
        Some(Mode::Released) if mode != Mode::Released && asked.is_none() => ModeCause::Expiry,
        _ if has_word_on(sources.overrides, entry) => ModeCause::Operator,
        // An operator who takes a seal back has not set a mode that stays nevertheless.
        Some(from) if asked.is_some() && from != mode => ModeCause::Operator,
        _ if sources.overrides.nodes.contains_key(&entry.actor_set) => ModeCause::Join,
        _ => ModeCause::Policy,
    }
}

/// A pool that an earlier agent knew, whose mount is gone while its superblock lives.
fn detached(key: PoolKey, entry: &PoolEntry) -> Pool {
    Pool {
        dev: key.dev,
        head: key.head,
        shared: key.is_part(),
        mounts: BTreeSet::new(),
        pool_id: entry.pool_id,
        name: pool_id_text(entry.pool_id),
        fs_type: String::new(),
        magic: entry.magic,
        source: String::new(),
        mountpoint: PathBuf::new(),
        mountpoints: Vec::new(),
        visitor: plan::is_visitor(entry),
        root: 0,
        ceph: None,
    }
}

#[cfg(test)]
#[path = "pool_book_tests.rs"]
pub(super) mod tests;
