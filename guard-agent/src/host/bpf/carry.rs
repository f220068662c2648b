//! Carries over into this agent's maps the enforced state of another layout's maps, and their
//! counters.

use std::collections::BTreeMap;

use guard_common::{CarriedKey, Config, Counter, Meta, PoolCounters, PoolEntry, PoolKey};

use super::foreign::{Estate, Totals};
use super::maps::{MapAccessError, Maps, Write};

impl Maps {
    /// Empties the entries of an agent that died before these maps spoke. Counters stay.
    pub fn clear_entries(&mut self) -> Result<(), MapAccessError> {
        self.pools.clear()?;
        self.namespaces.clear()?;
        self.roots.clear()?;
        self.filesystems.clear()?;
        self.actor_cgroups.clear()?;
        self.actor_executables.clear()?;
        self.leases.clear()?;
        self.clear_magics()?;
        // A reader of these maps keeps answers by this number, so no earlier one may come again.
        let generation = (self.config.read()?.generation | 1).wrapping_add(1);
        self.config.write(Config { generation, ..Config::default() })
    }

    /// Takes over the state that enforcement depends on. Nothing may be attached to these maps yet.
    pub fn carry(&mut self, estate: &Estate) -> Result<(), MapAccessError> {
        let meta = self.meta.read()?;
        // First, as with a plan: no generation is given twice.
        let next_generation = meta.next_generation.max(estate.next_generation);
        self.meta.write(Meta { next_generation, ..meta })?;
        for (key, kind) in &estate.filesystems {
            self.filesystems.write(*key, *kind, Write::Put)?;
        }
        for (key, entry) in &estate.roots {
            self.roots.write(*key, *entry, Write::Put)?;
        }
        for (key, entry) in &estate.pools {
            self.pool_counters.write(entry.generation, PoolCounters::default(), Write::Put)?;
            self.pools.write(*key, *entry, Write::Put)?;
        }
        estate.leases.iter().try_for_each(|(key, lease)| self.grant(*key, *lease))
    }

    /// Removes carried entries of superblocks that have ended since: `left` are the pools that the
    /// old maps, whose programs saw the end, still hold. The new programs must be attached by now.
    pub fn remove_ended(
        &mut self,
        estate: &Estate,
        left: &BTreeMap<PoolKey, PoolEntry>,
    ) -> Result<(), MapAccessError> {
        for (key, entry) in &estate.pools {
            let is_it = |found: Option<&PoolEntry>| {
                found.is_some_and(|found| found.generation == entry.generation)
            };
            if !is_it(left.get(key)) && is_it(self.pools.get(key)?.as_ref()) {
                self.pools.remove(key)?;
            }
        }
        Ok(())
    }

    /// Adds the counters of the maps with this token. Done twice, it counts once.
    pub fn carry_totals(
        &mut self,
        source: u64,
        totals: &Totals,
        audited: &[String],
    ) -> Result<(), MapAccessError> {
        self.carried.write(source, counts(totals, audited), Write::Put)?;
        for (generation, counters) in &totals.pools {
            let lives = self.pool_counters.get(generation)?.is_some();
            if lives && *counters != PoolCounters::default() {
                self.carried_pools.write(
                    CarriedKey { source, generation: *generation },
                    *counters,
                    Write::Put,
                )?;
            }
        }
        Ok(())
    }

    /// A pool's counters, with those from maps that these have replaced.
    pub fn pool_totals(&self, generation: u64) -> Result<PoolCounters, MapAccessError> {
        let mut totals = self.pool_counters.get(&generation)?.unwrap_or_default();
        for (source, _) in self.carried.entries()? {
            if let Some(more) = self.carried_pools.get(&CarriedKey { source, generation })? {
                totals.add(&more);
            }
        }
        Ok(totals)
    }

    /// Removes the counters of a pool that has ended.
    pub fn forget_pool(&mut self, generation: u64) -> Result<(), MapAccessError> {
        self.pool_counters.remove(&generation)?;
        for (source, _) in self.carried.entries()? {
            self.carried_pools.remove(&CarriedKey { source, generation })?;
        }
        Ok(())
    }
}

/// By our counters' numbers. The count of an unknown counter of the other layout is kept apart if
/// decisions are in it: else decisions and records would no longer reconcile.
fn counts(totals: &Totals, audited: &[String]) -> [u64; Counter::COUNT as usize] {
    let mut counts = [0; Counter::COUNT as usize];
    for (name, count) in &totals.counters {
        let known = Counter::ALL.iter().find(|counter| counter.name() == name);
        match known {
            Some(counter) => counts[*counter as usize] += count,
            None if audited.contains(name) => counts[Counter::CarriedOther as usize] += count,
            None => {}
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_that_only_the_other_layout_has_a_name_for_stay_counted() {
        let named = |name: &str, count| (name.to_owned(), count);
        let counters = [
            named("denied_sealed", 3),
            named("denied_otherwise", 4),
            named("records_emitted", 7),
            named("error_otherwise", 9),
        ];
        let totals = Totals { counters: counters.into(), ..Totals::default() };
        let counts = counts(&totals, &["denied_sealed".into(), "denied_otherwise".into()]);
        let decisions: u64 = Counter::ALL
            .iter()
            .filter(|counter| counter.is_audited())
            .map(|counter| counts[*counter as usize])
            .sum();
        assert_eq!((decisions, counts[Counter::RecordsEmitted as usize]), (7, 7));
        assert_eq!(counts.iter().sum::<u64>(), 14, "an error that has no name here is left out");
    }
}
