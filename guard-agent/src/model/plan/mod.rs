//! Desired map content × actual map content → the map operations between them. Pure.
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
mod content;
mod desired;
mod entries;
mod kinds;
mod magics;
mod parts;
mod pools;

pub use actors::absent as absent_actors;
pub use content::{MapOperation, Observed, Plan, Resolved};
pub use desired::{Desired, Overrides, node_mode};
pub use entries::{is_own, is_pool, is_visitor};
pub use pools::seals_to_keep;

use std::collections::BTreeMap;

use content::flag;
use guard_common::policy::{
    CONFIG_ALIASES_BY_INODE, CONFIG_LEASES, CONFIG_STRICT, ROOT_GENERATION, ROOT_OBSERVED,
    ROOT_SEALED, device_bit,
};
use guard_common::{Config, Mode, RootEntry, RootKey};

use crate::model::policy::DefaultMode;

/// The operations that turn `observed` into `desired`. Empty if nothing differs.
pub fn plan(desired: &Desired<'_>, observed: &Observed) -> Plan {
    let bits = kinds::bits(desired.policy, &observed.filesystems);
    let roots = roots(desired, observed, &bits);
    let mut pools = pools::changes(desired, observed);
    let aliases = aliases::changes(desired, observed, &mut pools, roots.len());
    let actors = actors::changes(desired, observed, &aliases.sealed);
    pools.seal_on_the_way(&actors.sets_with_new());
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
        // While the pools' inodes change, every mount that may show a pool is denied.
        flags: (config.flags
            | observed.config.flags
            | flag(pools.seals_on_the_way(), CONFIG_STRICT))
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
    // Before pools are created and roots begin to deny: no permitted actor is denied in between.
    operations.extend(actors.put);
    // Before any pool comes to a set: no process deletes in it that may neither before nor after.
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
            // Of a root that cannot be looked at now, the known facts stay.
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
pub(crate) mod tests;
