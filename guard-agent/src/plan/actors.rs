//! Which cgroups and executables may delete, one set for each root.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use guard_common::{ActorMask, CgroupKey, ExecutableKey};

use super::{Desired, MapOperation, Observed};
use crate::policy::Root;

/// Operations on `ACTOR_CGROUPS` and `ACTOR_EXES`, by when they are due.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) put: Vec<MapOperation>,
    pub(super) removed: Vec<MapOperation>,
}

/// Keys of one map, sortable.
type Masks<K> = BTreeMap<K, ActorMask>;
type Cgroup = (u32, u64);
type Executable = (u32, u32, u64);

pub(super) fn changes(desired: &Desired<'_>, observed: &Observed) -> Changes {
    let (mut cgroups, mut executables) = (Masks::new(), Masks::new());
    for root in desired.policy.roots() {
        set(desired, root, observed, &mut cgroups, &mut executables);
    }
    let mut changes = Changes::default();
    let cgroups: Vec<_> = cgroups.into_iter().map(|(key, mask)| (cgroup_key(key), mask)).collect();
    let executables: Vec<_> =
        executables.into_iter().map(|(key, mask)| (executable_key(key), mask)).collect();
    changes.put.extend(
        different(&cgroups, &observed.actor_cgroups)
            .map(|(key, mask)| MapOperation::PutActorCgroup(key, mask)),
    );
    changes.put.extend(
        different(&executables, &observed.actor_executables)
            .map(|(key, mask)| MapOperation::PutActorExecutable(key, mask)),
    );
    let gone = gone(&cgroups, &observed.actor_cgroups, |key| (key.actor_set, key.cgroup_id));
    changes.removed.extend(gone.into_iter().map(MapOperation::RemoveActorCgroup));
    let gone = self::gone(&executables, &observed.actor_executables, |key| (key.actor_set, key.ino));
    changes.removed.extend(gone.into_iter().map(MapOperation::RemoveActorExecutable));
    changes
}

/// The masks of one root's actors. An actor whose path is not there now is left out.
fn set(
    desired: &Desired<'_>,
    root: &Root,
    observed: &Observed,
    cgroups: &mut Masks<Cgroup>,
    executables: &mut Masks<Executable>,
) {
    let set = root.actor_set();
    let cgroup = |path: &str| desired.resolved.cgroups.get(path).map(|id| (set, *id));
    let executable = |path| desired.resolved.executables.get(path).map(|(dev, ino)| (set, *dev, *ino));
    let mut pairs: BTreeSet<(Cgroup, Executable)> = BTreeSet::new();
    for actor in root.actors() {
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
    for ((cgroup, executable), bit) in pair_bits(&pairs, observed, set) {
        cgroups.entry(cgroup).or_default().combined |= 1 << bit;
        executables.entry(executable).or_default().combined |= 1 << bit;
    }
}

/// The bit of each pair. A pair keeps the bit that stands for it alone in the maps, and a new pair gets
/// one that stands for nothing: so no cgroup ever meets the executable of another pair half-way.
/// (Only where an edit replaces more than 64 pairs at once do bits have to change hands.)
fn pair_bits(
    pairs: &BTreeSet<(Cgroup, Executable)>,
    observed: &Observed,
    set: u32,
) -> Vec<((Cgroup, Executable), u32)> {
    let holders = |bit: u32| {
        let has = |mask: &ActorMask| mask.combined & (1 << bit) != 0;
        let groups = observed.actor_cgroups.iter().filter(|(key, mask)| key.actor_set == set && has(mask));
        let programs =
            observed.actor_executables.iter().filter(|(key, mask)| key.actor_set == set && has(mask));
        (groups.map(|(key, _)| (set, key.cgroup_id)).collect::<Vec<_>>(),
         programs.map(|(key, _)| (set, key.dev, key.ino)).collect::<Vec<_>>())
    };
    let (mut bits, mut used): (BTreeMap<_, u32>, u64) = (BTreeMap::new(), 0);
    for bit in 0..u64::BITS {
        let (groups, programs) = holders(bit);
        if let ([group], [program]) = (&groups[..], &programs[..])
            && pairs.contains(&(*group, *program))
            && !bits.contains_key(&(*group, *program))
        {
            bits.insert((*group, *program), bit);
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
        let free = (0..u64::BITS).find(|bit| (used | kept) & (1 << bit) == 0);
        if let Some(bit) = free.or_else(|| (0..u64::BITS).find(|bit| kept & (1 << bit) == 0)) {
            kept |= 1 << bit;
            bits.insert(*pair, bit);
        }
    }
    bits.into_iter().collect()
}

/// Entries that the map does not hold so.
fn different<'a, K: Copy + Eq + Hash>(
    wanted: &'a [(K, ActorMask)],
    observed: &'a HashMap<K, ActorMask>,
) -> impl Iterator<Item = (K, ActorMask)> + 'a {
    wanted.iter().copied().filter(|(key, mask)| observed.get(key) != Some(mask))
}

fn gone<K: Copy + Eq + Hash, O: Ord>(
    wanted: &[(K, ActorMask)],
    observed: &HashMap<K, ActorMask>,
    order: impl Fn(&K) -> O,
) -> Vec<K> {
    let mut keys: Vec<K> =
        observed.keys().copied().filter(|key| wanted.iter().all(|(other, _)| other != key)).collect();
    keys.sort_by_key(order);
    keys
}

fn cgroup_key((actor_set, cgroup_id): Cgroup) -> CgroupKey {
    CgroupKey { cgroup_id, actor_set, reserved: 0 }
}

fn executable_key((actor_set, dev, ino): Executable) -> ExecutableKey {
    ExecutableKey { ino, dev, actor_set }
}
