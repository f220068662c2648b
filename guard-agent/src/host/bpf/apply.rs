//! Carries out a plan, and reads back the content of the maps.

use guard_common::{Config, Counter, KindEntry, Meta, PoolCounters, PoolEntry};

use super::maps::{MapAccessError, Maps, Write};
use crate::model::plan;
use crate::model::plan::{MapOperation, Observed, Plan};

impl Maps {
    /// Everything that a plan is made against.
    pub fn observed(&self) -> Result<Observed, MapAccessError> {
        Ok(Observed {
            config: self.config.read()?,
            magics: self.magics()?,
            pools: self.pools.sorted()?,
            namespaces: self
                .namespaces
                .entries()?
                .into_iter()
                .map(|(namespace, _)| namespace)
                .collect(),
            roots: self.roots.sorted()?,
            filesystems: self
                .filesystems
                .entries()?
                .into_iter()
                .map(|(key, kind)| (key, kind.bit))
                .collect(),
            actor_cgroups: self.actor_cgroups.sorted()?,
            actor_executables: self.actor_executables.sorted()?,
            leases: self.leases.any()?,
        })
    }

    /// Carries out a plan up to the first operation that fails: no prefix of a plan is weaker than
    /// the state before, so stopping is safe and going on is not.
    ///
    /// While it goes on `Config::generation` is odd, and afterwards another even number than
    /// before: so the kernel program uses no answer that it has kept from before. An agent that
    /// dies in between leaves it odd, and the next plan, of however few operations, ends that.
    pub fn apply(&mut self, plan: &Plan) -> Result<(), MapAccessError> {
        let meta = self.meta.read()?;
        if meta.next_generation != plan.next_generation {
            // First: a generation must never be given out twice, not even by an agent that dies
            // here.
            self.meta.write(Meta { next_generation: plan.next_generation, ..meta })?;
        }
        let before = self.config.read()?;
        if plan.operations.is_empty() && before.generation & 1 == 0 {
            return Ok(());
        }
        let changing = before.generation | 1;
        self.config.write(Config { generation: changing, ..before })?;
        let done = plan.operations.iter().try_for_each(|operation| match *operation {
            MapOperation::PutConfig(config) => {
                self.config.write(Config { generation: changing, ..config })
            }
            _ => self.carry_out(operation),
        });
        let after = self.config.read()?;
        self.config.write(Config { generation: changing.wrapping_add(1), ..after })?;
        done
    }

    fn carry_out(&mut self, operation: &MapOperation) -> Result<(), MapAccessError> {
        use MapOperation as Op;
        match *operation {
            Op::PutConfig(config) => self.config.write(config),
            Op::PutMagic { slot, magic } => self.put_magic(slot, magic),
            Op::PutNamespace(namespace) => self.namespaces.write(namespace, 1, Write::Put),
            Op::RemoveNamespace(namespace) => self.namespaces.remove(&namespace),
            Op::PutFilesystem(key, bit) => {
                self.filesystems.write(key, KindEntry { bit, ..KindEntry::default() }, Write::Put)
            }
            Op::RemoveFilesystem(key) => self.filesystems.remove(&key),
            Op::PutRoot(key, entry) => self.roots.write(key, entry, Write::Put),
            Op::RemoveRoot(key) => self.roots.remove(&key),
            Op::PutActorCgroup(key, mask) => self.actor_cgroups.write(key, mask, Write::Put),
            Op::RemoveActorCgroup(key) => self.actor_cgroups.remove(&key),
            Op::PutActorExecutable(key, mask) => {
                self.actor_executables.write(key, mask, Write::Put)
            }
            Op::RemoveActorExecutable(key) => self.actor_executables.remove(&key),
            Op::CreatePool { key, entry } => {
                self.provide_counters(entry);
                self.pools.write(key, entry, Write::Create)
            }
            Op::UpdatePool { key, entry } => {
                // The entry may speak for another superblock from now on.
                self.provide_counters(entry);
                match self.pools.write(key, entry, Write::Update) {
                    // The superblock has just ended, and the kernel removed its entry.
                    Err(_) if self.pools.get(&key)?.is_none() => Ok(()),
                    result => result,
                }
            }
            Op::RemovePool { key } => self.pools.remove(&key),
        }
    }

    /// Makes a pool's counters, if there are none. Without them the pool is protected all the same.
    fn provide_counters(&mut self, entry: PoolEntry) {
        let generation = entry.generation;
        if plan::is_pool(&entry)
            && let Ok(None) = self.pool_counters.get(&generation)
            && let Err(error) =
                self.pool_counters.write(generation, PoolCounters::default(), Write::Put)
        {
            tracing::warn!(%error, generation, "a pool has no counters");
        }
    }

    /// Removes the counters of pools that ended while no agent ran.
    pub fn sweep_counters(&mut self, pools: &Observed) -> Result<(), MapAccessError> {
        for (generation, _) in self.pool_counters.entries()? {
            if pools.pools.values().all(|entry| entry.generation != generation) {
                self.forget_pool(generation)?;
            }
        }
        Ok(())
    }

    /// Number of superblocks of guarded kinds that have ended since the maps were made.
    pub fn superblocks_ended(&self) -> Result<u64, MapAccessError> {
        Ok(self.counters()?.get(&Counter::SuperblocksEnded).copied().unwrap_or(0))
    }
}
