//! Desired map content × what the maps hold → the map operations between them. Pure.
//!
//! No prefix of the list leaves a pool weaker than the weaker of before and after, so that an agent
//! may die anywhere in it: first everything that strengthens, additions before removals, and the
//! filter by magic (the map `MAGICS`) covers every pool, the one by device (`Config::root_devices`)
//! every root, at all times.
//!
//! A pool that is gone from the mount table stays: after a lazy unmount open directories still
//! reach its data, and the kernel removes the entry when the superblock ends. A pool whose mount
//! was moved out of its root (`mv /var/lib/incus /var/lib/incus.old`) stays too. Only policy itself
//! takes a pool out.

mod actors;
mod aliases;
mod entries;
mod kinds;
mod magics;
mod parts;
mod pools;

pub use actors::absent as absent_actors;
pub use entries::{is_own, is_pool, is_visitor};
pub use pools::seals_to_keep;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use guard_common::policy::{
    CONFIG_ALIASES_BY_INODE, CONFIG_LEASES, CONFIG_STRICT, POOL_OPERATOR, ROOT_GENERATION,
    ROOT_OBSERVED, ROOT_SEALED, device_bit,
};
use guard_common::{
    ActorMask, CgroupKey, Config, ExecutableKey, FilesystemKey, Mode, PoolEntry, PoolKey,
    RootEntry, RootKey,
};

use crate::classify::Classification;
use crate::join::{NodeMode, PoolModes};
use crate::policy::{DefaultMode, Policy};

/// One change of one map entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapOperation {
    PutConfig(Config),
    /// The word in one place of the map of guarded magics.
    PutMagic {
        slot: u32,
        magic: u64,
    },
    PutNamespace(u32),
    RemoveNamespace(u32),
    PutFilesystem(FilesystemKey, u32),
    RemoveFilesystem(FilesystemKey),
    PutRoot(RootKey, RootEntry),
    RemoveRoot(RootKey),
    PutActorCgroup(CgroupKey, ActorMask),
    RemoveActorCgroup(CgroupKey),
    PutActorExecutable(ExecutableKey, ActorMask),
    RemoveActorExecutable(ExecutableKey),
    /// Only if there is no entry (`BPF_NOEXIST`).
    CreatePool {
        key: PoolKey,
        entry: PoolEntry,
    },
    /// Only if there is an entry (`BPF_EXIST`): the superblock may just have ended.
    UpdatePool {
        key: PoolKey,
        entry: PoolEntry,
    },
    RemovePool {
        key: PoolKey,
    },
}

/// Operations in the order to apply them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub operations: Vec<MapOperation>,
    /// Goes to `Meta::next_generation` before the first operation is applied.
    pub next_generation: u64,
}

/// What the maps hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub config: Config,
    /// By `magic_slot`; empty stands for zeros.
    pub magics: Vec<u64>,
    pub pools: BTreeMap<PoolKey, PoolEntry>,
    /// Mount namespaces that are the host's view beside PID 1's.
    pub namespaces: BTreeSet<u32>,
    pub roots: BTreeMap<RootKey, RootEntry>,
    pub filesystems: BTreeMap<FilesystemKey, u32>,
    pub actor_cgroups: BTreeMap<CgroupKey, ActorMask>,
    pub actor_executables: BTreeMap<ExecutableKey, ActorMask>,
    /// Whether there is any lease of a command.
    pub leases: bool,
}

/// What the paths in the policy are on this host. Made by `roots`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// In the order of the policy's roots; `None` where the directory is absent or cannot be looked
    /// at.
    pub roots: Vec<Option<RootKey>>,
    /// Inodes of the mount namespaces that roots name.
    pub namespaces: BTreeSet<u32>,
    /// `i_generation` of roots and executables, by `s_dev` and inode, where the filesystem tells
    /// it.
    pub generations: BTreeMap<(u32, u64), u32>,
    /// Cgroup ids, by path.
    pub cgroups: BTreeMap<String, u64>,
    /// `s_dev` and inode, by path.
    pub executables: BTreeMap<PathBuf, (u32, u64)>,
    /// Inodes of the roots of CephFS pools, by `s_dev`; only while something is sealed.
    pub pool_roots: BTreeMap<u32, u64>,
}

/// What operators decided about single pools, and what nodes' states make of their pools, beside
/// the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Pool ids that an operator has sealed, also after a remount.
    pub sealed: BTreeSet<u64>,
    /// Pool ids that a starting agent found sealed without a reason that it knows: sealed until an
    /// operator says otherwise, or the next boot.
    pub found_sealed: BTreeSet<u64>,
    /// Releases: generation → end on the boot clock in nanoseconds. A release dies with its
    /// superblock, and goes before a seal while it lasts.
    pub released: BTreeMap<u64, u64>,
    /// By the actor set of the node's root. A root without an entry is no node.
    pub nodes: BTreeMap<u32, PoolModes>,
}

/// The mode of a node's pools by policy and state. A root that is only observed denies nothing: its
/// operator is trying the barrier.
pub fn node_mode(policy: DefaultMode, state: NodeMode) -> Mode {
    match (policy, state) {
        (DefaultMode::Observed, _) | (_, NodeMode::Policy) => policy.mode(),
        (DefaultMode::Sealed, NodeMode::Held) | (_, NodeMode::Sealed) => Mode::Sealed,
        (DefaultMode::Guarded, NodeMode::Held) => Mode::Held,
    }
}

impl Overrides {
    /// Whether a pool is sealed beside what policy and its node's state say.
    pub fn is_sealed(&self, pool_id: u64) -> bool {
        self.sealed.contains(&pool_id) || self.found_sealed.contains(&pool_id)
    }

    /// Whether some pool may be sealed or held: else nobody need know what else shows it.
    pub fn may_seal(&self, policy: &Policy) -> bool {
        !self.sealed.is_empty()
            || !self.found_sealed.is_empty()
            || self
                .nodes
                .values()
                .any(|modes| modes.mode != NodeMode::Policy || modes.others != NodeMode::Policy)
            || policy.roots().iter().any(|root| root.default_mode() == DefaultMode::Sealed)
            || !self.released.is_empty()
    }

    /// What a starting agent finds in force. Releases go on until they end, an operator's seal
    /// holds whatever became of the state file, and a pool that is sealed although policy says
    /// otherwise stays sealed: weakening needs an operator, not a restart. (Where an Incus is
    /// followed, its state says whether it stays sealed.)
    pub fn adopt(observed: &Observed, policy: &Policy, now_boot_ns: u64) -> Self {
        let mut overrides = Self::default();
        for entry in observed.pools.values().filter(|entry| is_pool(entry)) {
            let root = policy.root_of_actor_set(entry.actor_set);
            let by_operator = entry.flags & POOL_OPERATOR != 0;
            if by_operator {
                overrides.sealed.insert(entry.pool_id);
            }
            match Mode::from_u32(entry.mode) {
                Some(Mode::Released) if entry.expires_boot_ns > now_boot_ns => {
                    overrides.released.insert(entry.generation, entry.expires_boot_ns);
                }
                Some(Mode::Sealed)
                    if !by_operator
                        && root.is_some_and(|root| {
                            root.default_mode() != DefaultMode::Sealed && root.incus().is_none()
                        }) =>
                {
                    overrides.found_sealed.insert(entry.pool_id);
                }
                _ => {}
            }
        }
        overrides
    }
}

/// Everything that the desired content follows from.
#[derive(Clone, Copy, Debug)]
pub struct Desired<'a> {
    pub policy: &'a Policy,
    pub classification: &'a Classification,
    pub resolved: &'a Resolved,
    pub overrides: &'a Overrides,
    /// Inode of the mount namespace of PID 1.
    pub host_mnt_ns: u32,
    pub now_boot_ns: u64,
    /// `Meta::next_generation`, at least 1.
    pub next_generation: u64,
}

/// The operations that turn `observed` into `desired`. Empty if nothing differs.
pub fn plan(desired: &Desired<'_>, observed: &Observed) -> Plan {
    let bits = kinds::bits(desired.policy, &observed.filesystems);
    let roots = roots(desired, observed, &bits);
    let mut pools = pools::changes(desired, observed);
    let aliases = aliases::changes(desired, observed, &mut pools, roots.len());
    let actors = actors::changes(desired, observed, &aliases.sealed);
    let strict = pools.after.values().any(pools::is_strict);
    let config = Config {
        host_mnt_ns: desired.host_mnt_ns,
        full_records: desired.policy.full_records(),
        flags: aliases.flags() | flag(strict, CONFIG_STRICT) | flag(observed.leases, CONFIG_LEASES),
        root_devices: root_devices(roots.keys()),
        ..observed.config
    };
    let magics = magics::changes(desired, observed, &pools.kept_magics);

    let mut operations = magics.widened;
    // From here on every superblock that is guarded before or after comes past the filter.
    let by_inode = config.flags & observed.config.flags & CONFIG_ALIASES_BY_INODE;
    let wide = Config {
        // While the pools' inodes change, whatever may show a pool is denied.
        flags: (config.flags
            | observed.config.flags
            | flag(pools.seals_for_a_moment(), CONFIG_STRICT))
            & !CONFIG_ALIASES_BY_INODE
            | if aliases.inodes_change() { 0 } else { by_inode },
        // By the roots themselves: an agent that knew no such filter may have written them.
        root_devices: root_devices(observed.roots.keys().chain(roots.keys())),
        ..config
    };
    if wide != observed.config {
        operations.push(MapOperation::PutConfig(wide));
    }
    operations.extend(pools.strengthened);
    // More of the host's view, fewer guests.
    let namespaces = &desired.resolved.namespaces;
    operations.extend(
        namespaces.difference(&observed.namespaces).copied().map(MapOperation::PutNamespace),
    );
    operations.extend(aliases.ended);
    operations.extend(aliases.inodes_gone);
    // A filesystem's number may only be given away when no root refers to it any more: see `kinds`.
    operations.extend(bits.narrow(observed));
    operations.extend(bits.added(observed));
    // Before pools are created and roots begin to deny: nobody who may delete is denied in between.
    operations.extend(actors.put);
    // Before any pool comes to a set: nobody deletes in it who may neither before nor after.
    operations.extend(actors.removed);
    operations.extend(pools.created);
    operations.extend(changed_roots(&roots, observed));
    operations.extend(pools.weakened);
    operations.extend(
        observed.namespaces.difference(namespaces).copied().map(MapOperation::RemoveNamespace),
    );
    operations.extend(removed_roots(&roots, observed));
    operations.extend(bits.removed(observed));
    operations.extend(pools.removed);
    operations.extend(aliases.exempted);
    operations.extend(aliases.inodes_new);
    if wide != config {
        operations.push(MapOperation::PutConfig(config));
    }
    operations.extend(magics.narrowed);
    Plan { operations, next_generation: pools.next_generation }
}

fn flag(set: bool, flag: u32) -> u32 {
    if set { flag } else { 0 }
}

fn root_devices<'a>(roots: impl Iterator<Item = &'a RootKey>) -> u32 {
    roots.filter(|root| !root.is_alias()).fold(0, |bloom, root| bloom | device_bit(root.dev))
}

/// The roots to be in the map. `RootEntry::reserved`, which the kernel does not read, names the
/// policy's root: a root that cannot be looked at now keeps the directory that was found before.
fn roots(
    desired: &Desired<'_>,
    observed: &Observed,
    bits: &kinds::Bits,
) -> BTreeMap<RootKey, RootEntry> {
    let mut roots: BTreeMap<RootKey, RootEntry> = BTreeMap::new();
    for (index, root) in desired.policy.roots().iter().enumerate() {
        let found = desired.resolved.roots.get(index).copied().flatten();
        let before = observed.roots.iter().filter(|(key, _)| !key.is_alias());
        let before = before.filter(|(_, entry)| entry.reserved == root.actor_set());
        let keys: Vec<RootKey> = match found {
            Some(key) => vec![key],
            None => before.map(|(key, _)| *key).collect(),
        };
        let observed_only = flag(root.default_mode() == DefaultMode::Observed, ROOT_OBSERVED);
        let sealed = flag(pools::mode_of_new(desired, root) == Mode::Sealed, ROOT_SEALED);
        for key in keys {
            // Of a root that cannot be looked at now, what was known stays.
            let generation = match found {
                Some(_) => desired.resolved.generations.get(&(key.dev, key.ino)).copied(),
                None => observed.roots.get(&key).and_then(|before| {
                    (before.flags & ROOT_GENERATION != 0).then_some(before.generation)
                }),
            };
            let known = flag(generation.is_some(), ROOT_GENERATION);
            // Two paths may lead to one directory: then the stronger of both holds.
            let entry = roots.entry(key).or_insert(RootEntry {
                filesystems: 0,
                flags: observed_only,
                reserved: root.actor_set(),
                generation: generation.unwrap_or(0),
                ..RootEntry::default()
            });
            entry.filesystems |= bits.mask(root);
            entry.flags =
                entry.flags & observed_only | (entry.flags | sealed) & ROOT_SEALED | known;
        }
    }
    roots
}

fn changed_roots(roots: &BTreeMap<RootKey, RootEntry>, observed: &Observed) -> Vec<MapOperation> {
    let changed = roots.iter().filter(|(key, entry)| observed.roots.get(key) != Some(entry));
    changed.map(|(key, entry)| MapOperation::PutRoot(*key, *entry)).collect()
}

fn removed_roots(roots: &BTreeMap<RootKey, RootEntry>, observed: &Observed) -> Vec<MapOperation> {
    let gone = observed.roots.keys().filter(|key| !key.is_alias() && !roots.contains_key(key));
    gone.copied().map(MapOperation::RemoveRoot).collect()
}

#[cfg(test)]
mod tests;
