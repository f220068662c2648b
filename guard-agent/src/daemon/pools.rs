//! The pools that the kernel has entries for, and what the audit log hears of them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use guard_common::{Mode, PoolEntry, PoolKey};

use super::agent::Agent;
use crate::daemon::control::Peer;
use crate::model::audit::record::{
    LeaseChange, ModeBody, ModeCause, PoolBody, PoolChange, device_text, pool_id_text,
};
use crate::model::audit::{Body, Place};
use crate::model::classify::Pool;
use crate::model::errors::chain;
use crate::model::events::Name;
use crate::model::plan;

/// Places of ended pools that are remembered.
const PAST: usize = 1024;

/// A pool that has an entry in the kernel.
#[derive(Clone, Debug)]
pub struct KnownPool {
    /// What the mount table says; as it was last seen, if the mount is gone and the superblock
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
    /// How the audit log names it.
    pub fn place(&self) -> Place {
        Place {
            pool_id: Some(pool_id_text(self.pool.pool_id)),
            pool: Some(self.pool.name.clone()),
            mountpoint: Some(self.pool.mountpoint.display().to_string()),
            generation: Some(self.entry.generation),
        }
    }
}

impl Agent {
    /// Compares the pools in the kernel with those known, and writes down the differences.
    pub(super) fn note_pools(&mut self) -> Result<(), String> {
        let entries = self.maps.observed().map_err(|error| chain(&error))?.pools;
        let mut seen = BTreeSet::new();
        for (key, entry) in entries.iter().filter(|(_, entry)| plan::is_pool(entry)) {
            seen.insert(entry.generation);
            self.note_pool(*key, *entry);
        }
        let gone: Vec<u64> =
            self.pools.keys().filter(|generation| !seen.contains(generation)).copied().collect();
        for generation in gone {
            if let Some(known) = self.pools.remove(&generation) {
                self.note_end(&known);
            }
        }
        Ok(())
    }

    fn note_pool(&mut self, key: PoolKey, entry: PoolEntry) {
        let mode = Mode::from_u32(entry.mode).unwrap_or(Mode::Sealed);
        let known = self.pools.get(&entry.generation);
        let pool = match (self.classification.pool(key), known) {
            (Some(pool), _) if pool.pool_id == entry.pool_id => pool.clone(),
            (_, Some(known)) => known.pool.clone(),
            (_, None) => detached(key, &entry),
        };
        // As policy spells it, which is its name everywhere: the mount table's spelling is for
        // comparing with mounts.
        let policy = &self.policy.policy;
        let root = policy
            .root_of_actor_set(entry.actor_set)
            .map_or_else(PathBuf::new, |root| root.path().to_owned());
        let by_operator = self.overrides.released.contains_key(&entry.generation)
            || self.overrides.is_sealed(entry.pool_id);
        let before = known.map(|known| (known.mode, known.entry.expires_boot_ns));
        let cause = match before {
            Some((Mode::Released, _)) if mode != Mode::Released && self.asker(&entry).is_none() => {
                ModeCause::Expiry
            }
            _ if by_operator => ModeCause::Operator,
            // Whoever takes a seal back has not set the mode that stays all the same.
            _ if self.asker(&entry).is_some() && before.is_some_and(|(from, _)| from != mode) => {
                ModeCause::Operator
            }
            _ if self.overrides.nodes.contains_key(&entry.actor_set) => ModeCause::Join,
            _ => ModeCause::Policy,
        };
        let now_known = KnownPool { pool, key, root, entry, mode, cause };
        match before {
            None => {
                tracing::info!(
                    pool = now_known.pool.name,
                    dev = device_text(key.dev),
                    mode = mode.name(),
                    "pool appeared"
                );
                let body = self.pool_body(PoolChange::Appeared, &now_known);
                self.write(Body::Pool(body));
            }
            Some((from, _)) if from != mode => {
                tracing::info!(
                    pool = now_known.pool.name,
                    from = from.name(),
                    to = mode.name(),
                    ?cause,
                    "mode changed"
                );
                let place = now_known.place();
                let (from, to) = (Some(Name(from)), Name(mode));
                let uid = self.asker(&entry).map(|peer| peer.uid);
                let login_uid = self.asker(&entry).and_then(|peer| peer.login_uid);
                self.write(Body::Mode(ModeBody { place, from, to, cause, uid, login_uid }));
            }
            Some(_) => {}
        }
        self.pools.insert(entry.generation, now_known);
    }

    /// Who asked for the change of this pool, if someone did.
    fn asker(&self, entry: &PoolEntry) -> Option<Peer> {
        self.asked_by
            .filter(|(generation, _)| *generation == entry.generation)
            .map(|(_, peer)| peer)
    }

    fn note_end(&mut self, known: &KnownPool) {
        let generation = known.entry.generation;
        tracing::info!(pool = known.pool.name, generation, "pool ended");
        self.past.insert(generation, known.place());
        while self.past.len() > PAST {
            self.past.pop_first();
        }
        let body = self.pool_body(PoolChange::Ended, known);
        self.write(Body::Pool(body));
        self.overrides.released.remove(&generation);
        self.close_leases(LeaseChange::Ended, |lease| lease.generation == generation);
        if let Err(error) = self.maps.forget_pool(generation) {
            tracing::warn!(error = chain(&error), "counters of an ended pool stay");
        }
    }

    fn pool_body(&self, change: PoolChange, known: &KnownPool) -> PoolBody {
        PoolBody {
            change,
            place: known.place(),
            device: device_text(known.pool.dev),
            filesystem: known.pool.fs_type.clone(),
            source: known.pool.source.clone(),
            mode: Some(Name(known.mode)),
        }
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
