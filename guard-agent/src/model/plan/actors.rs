//! The cgroups and executables that may delete, one set for each root, and the actors that may not
//! delete on aliases.

use std::collections::{BTreeMap, BTreeSet};

use guard_common::policy::{ACTOR_GENERATION, ACTOR_GUEST, ALIAS_ACTORS, COMBINED_ACTORS};
use guard_common::{ActorMask, CgroupKey, ExecutableKey};

use super::content::{MapOperation, Observed, Resolved};
use super::desired::Desired;
use crate::model::policy::{Actor, Root};

/// Operations on `ACTOR_CGROUPS` and `ACTOR_EXES`, by when they are due.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) put: Vec<MapOperation>,
    pub(super) removed: Vec<MapOperation>,
}

impl Changes {
    /// The actor sets that get actors, or others than they have.
    pub(super) fn sets_with_new(&self) -> BTreeSet<u32> {
        let set = |operation: &MapOperation| match operation {
            MapOperation::PutActorCgroup(key, _) => Some(key.actor_set),
            MapOperation::PutActorExecutable(key, _) => Some(key.actor_set),
            _ => None,
        };
        self.put.iter().filter_map(set).collect()
    }
}

type Pair = (CgroupKey, ExecutableKey);

/// `sealed` are the actor sets of the roots that have a sealed pool.
pub(super) fn changes(
    desired: &Desired<'_>,
    observed: &Observed,
    sealed: &BTreeSet<u32>,
) -> Changes {
    let (mut cgroups, mut executables) = (BTreeMap::new(), BTreeMap::new());
    let roots = desired.policy.roots();
    for root in roots {
        let actors = root.actors().iter();
        set(desired, root.actor_set(), actors, observed, &mut cgroups, &mut executables);
        for id in root.guests().iter().filter_map(|path| desired.resolved.cgroups.get(path)) {
            let key = CgroupKey { cgroup_id: *id, actor_set: root.actor_set(), reserved: 0 };
            cgroups.entry(key).or_default().flags |= ACTOR_GUEST;
        }
    }
    let sealed = roots.iter().filter(|root| sealed.contains(&root.actor_set()));
    let actors = sealed.flat_map(Root::actors);
    set(desired, ALIAS_ACTORS, actors, observed, &mut cgroups, &mut executables);
    for (key, mask) in &mut executables {
        if let Some(generation) = desired.resolved.generations.get(&(key.dev, key.ino)) {
            (mask.generation, mask.flags) = (*generation, mask.flags | ACTOR_GENERATION);
        }
    }
    let mut changes = Changes::default();
    let new = different(&cgroups, &observed.actor_cgroups);
    changes.put.extend(new.map(|(key, mask)| MapOperation::PutActorCgroup(key, mask)));
    let new = different(&executables, &observed.actor_executables);
    changes.put.extend(new.map(|(key, mask)| MapOperation::PutActorExecutable(key, mask)));
    let gone = observed.actor_cgroups.keys().filter(|key| !cgroups.contains_key(key));
    changes.removed.extend(gone.copied().map(MapOperation::RemoveActorCgroup));
    let gone = observed.actor_executables.keys().filter(|key| !executables.contains_key(key));
    changes.removed.extend(gone.copied().map(MapOperation::RemoveActorExecutable));
    changes
}

/// The actors of a root none of which is there now, if policy names any: the storage daemon may be
/// denied.
pub fn absent<'p>(root: &'p Root, resolved: &Resolved) -> Option<Vec<&'p Actor>> {
    let is_there = |actor: &Actor| {
        let cgroup = actor.cgroup().is_none_or(|path| resolved.cgroups.contains_key(path));
        let executable =
            actor.executable().is_none_or(|path| resolved.executables.contains_key(path));
        cgroup && executable
    };
    let actors: Vec<&Actor> = root.actors().iter().collect();
    (!actors.is_empty() && !actors.iter().any(|actor| is_there(actor))).then_some(actors)
}

/// The masks of one set's actors. An actor whose path is not there now is left out.
fn set<'p>(
    desired: &Desired<'_>,
    actor_set: u32,
    actors: impl Iterator<Item = &'p Actor>,
    observed: &Observed,
    cgroups: &mut BTreeMap<CgroupKey, ActorMask>,
    executables: &mut BTreeMap<ExecutableKey, ActorMask>,
) {
    let cgroup = |path: &str| {
        let id = desired.resolved.cgroups.get(path)?;
        Some(CgroupKey { cgroup_id: *id, actor_set, reserved: 0 })
    };
    let executable = |path| {
        let (dev, ino) = desired.resolved.executables.get(path)?;
        Some(ExecutableKey { ino: *ino, dev: *dev, actor_set })
    };
    let mut pairs: BTreeSet<Pair> = BTreeSet::new();
    for actor in actors {
        match (actor.cgroup(), actor.executable()) {
            (Some(path), None) => {
                if let Some(key) = cgroup(path) {
                    cgroups.entry(key).or_default().alone = 1;
                }
            }
            (None, Some(path)) => {
                if let Some(key) = executable(path) {
                    executables.entry(key).or_default().alone = 1;
                }
            }
            (Some(group), Some(program)) => pairs.extend(cgroup(group).zip(executable(program))),
            (None, None) => {}
        }
    }
    let bits = pair_bits(&pairs, observed, actor_set);
    if actor_set == ALIAS_ACTORS && bits.len() < pairs.len() {
        // Policy bounds each root's pairs, not those of all roots together: the set denies, so the
        // rest are denied in any cgroup.
        let with_bits: BTreeSet<Pair> = bits.iter().map(|(pair, _)| *pair).collect();
        for (_, executable) in pairs.difference(&with_bits) {
            executables.entry(*executable).or_default().alone = 1;
        }
    }
    for ((cgroup, executable), bit) in bits {
        cgroups.entry(cgroup).or_default().combined |= 1 << bit;
        executables.entry(executable).or_default().combined |= 1 << bit;
    }
}

/// The bit of each pair. A pair keeps the bit that stands for it alone in the maps, and a new pair
/// gets one that stands for nothing: so no cgroup ever meets the executable of another pair
/// half-way. (Only where an edit replaces more than 63 pairs at once do bits have to change hands.)
fn pair_bits(pairs: &BTreeSet<Pair>, observed: &Observed, set: u32) -> Vec<(Pair, u32)> {
    let (mut bits, mut used): (BTreeMap<Pair, u32>, u64) = (BTreeMap::new(), 0);
    for bit in 0..COMBINED_ACTORS {
        let has = |mask: &ActorMask| mask.combined & (1 << bit) != 0;
        let groups =
            observed.actor_cgroups.iter().filter(|(key, mask)| key.actor_set == set && has(mask));
        let programs = observed
            .actor_executables
            .iter()
            .filter(|(key, mask)| key.actor_set == set && has(mask));
        let groups: Vec<&CgroupKey> = groups.map(|(key, _)| key).collect();
        let programs: Vec<&ExecutableKey> = programs.map(|(key, _)| key).collect();
        if let ([group], [program]) = (&groups[..], &programs[..])
            && pairs.contains(&(**group, **program))
        {
            bits.entry((**group, **program)).or_insert(bit);
        }
        if !groups.is_empty() || !programs.is_empty() {
            used |= 1 << bit;
        }
    }
    let mut kept = bits.values().fold(0_u64, |kept, bit| kept | 1 << bit);
    for pair in pairs {
        if bits.contains_key(pair) {
            continue;
        }
        let free = (0..COMBINED_ACTORS).find(|bit| (used | kept) & (1 << bit) == 0);
        if let Some(bit) = free.or_else(|| (0..COMBINED_ACTORS).find(|bit| kept & (1 << bit) == 0))
        {
            kept |= 1 << bit;
            bits.insert(*pair, bit);
        }
    }
    bits.into_iter().collect()
}

/// Entries that the map does not hold so.
fn different<'a, K: Copy + Ord>(
    wanted: &'a BTreeMap<K, ActorMask>,
    observed: &'a BTreeMap<K, ActorMask>,
) -> impl Iterator<Item = (K, ActorMask)> + 'a {
    let differ = wanted.iter().filter(|(key, mask)| observed.get(key) != Some(mask));
    differ.map(|(key, mask)| (*key, *mask))
}
