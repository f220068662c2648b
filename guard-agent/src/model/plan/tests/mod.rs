//! Plans step by step.

mod aliases;
mod parts;
mod steps;

use std::collections::BTreeSet;
use std::path::Path;

use guard_common::names::capacity;
use guard_common::policy::{
    ACTOR_GENERATION, ACTOR_GUEST, ALIAS_ACTORS, CEPH_SUPER_MAGIC, CONFIG_ALIASES,
    FUSE_SUPER_MAGIC, POOL_CANARY, POOL_NO_ALIAS, POOL_OPERATOR, POOL_OUTSIDE, POOL_PARTS,
    RAMFS_MAGIC, SEVERAL_MAGICS, magic_slot,
};
use guard_common::{FilesystemKey, PoolEntry, PoolKey};

use super::*;
use crate::model::classify::classify;
use crate::model::classify::clusters::Clusters;
use crate::model::join::{NodeMode, PoolModes};
use crate::model::mounts::Snapshot;
use crate::model::policy::{Policy, parse};

const INCUS: &str = "version = 1\n[[root]]\npreset = \"incus\"\n";
const POOL: &str = "78 31 0:43 / /var/lib/incus/pool rw - ceph m:/a rw\n";

/// Applies one operation, with the kernel's flags.
/// Applies one operation, as the kernel would.
pub(crate) fn apply(maps: &mut Observed, operation: &MapOperation) {
    use MapOperation::*;
    match *operation {
        PutConfig(config) => maps.config = config,
        PutMagic { slot, magic } => {
            maps.magics.resize(capacity::MAGICS as usize, 0);
            maps.magics[slot as usize] = magic;
        }
        PutNamespace(namespace) => assert!(maps.namespaces.insert(namespace)),
        RemoveNamespace(namespace) => assert!(maps.namespaces.remove(&namespace)),
        PutFilesystem(key, bit) => drop(maps.filesystems.insert(key, bit)),
        RemoveFilesystem(key) => assert!(maps.filesystems.remove(&key).is_some()),
        PutRoot(key, entry) => drop(maps.roots.insert(key, entry)),
        RemoveRoot(key) => assert!(maps.roots.remove(&key).is_some()),
        PutActorCgroup(key, mask) => drop(maps.actor_cgroups.insert(key, mask)),
        RemoveActorCgroup(key) => assert!(maps.actor_cgroups.remove(&key).is_some()),
        PutActorExecutable(key, mask) => drop(maps.actor_executables.insert(key, mask)),
        RemoveActorExecutable(key) => assert!(maps.actor_executables.remove(&key).is_some()),
        CreatePool { key, entry } => assert!(maps.pools.insert(key, entry).is_none()),
        UpdatePool { key, entry } => assert!(maps.pools.insert(key, entry).is_some()),
        RemovePool { key } => assert!(maps.pools.remove(&key).is_some()),
    }
}

/// Whether the kernel program looks at superblocks of a magic at all.
fn passes_filter(maps: &Observed, magic: u64) -> bool {
    let place = maps.magics.get(magic_slot(magic) as usize).copied().unwrap_or(0);
    place == magic || place == SEVERAL_MAGICS
}

/// Any number that differs by path.
fn number(path: &str) -> u64 {
    path.bytes().fold(0, |number: u64, byte| number.wrapping_mul(31).wrapping_add(byte.into()))
}

/// The inode of a CephFS pool's root.
fn pool_root(dev: u32) -> u64 {
    u64::from(dev) + (1 << 40)
}

/// A host: policy, mount table, and the decisions about its pools.
#[derive(Clone, Debug)]
struct Host {
    policy: Policy,
    table: String,
    resolved: Resolved,
    overrides: Overrides,
    now: u64,
    next_generation: u64,
}

impl Host {
    fn new(policy: &str, table: &str) -> Self {
        let policy =
            parse(policy, Path::new("policy.toml")).unwrap_or_else(|errors| panic!("{errors}"));
        let roots = policy.roots().iter().map(|root| {
            // Any number that differs by path.
            Some(RootKey { ino: u64::from(root.actor_set()), dev: 1, reserved: 0 })
        });
        let mut resolved = Resolved { roots: roots.collect(), ..Resolved::default() };
        for actor in policy.roots().iter().flat_map(|root| root.actors()) {
            if let Some(path) = actor.cgroup() {
                resolved.cgroups.insert(path.to_owned(), number(path));
            }
            if let Some(path) = actor.executable() {
                resolved.executables.insert(path.to_owned(), (1, number(&path.to_string_lossy())));
            }
        }
        Self {
            policy,
            table: table.to_owned(),
            resolved,
            overrides: Overrides::default(),
            now: 1000,
            next_generation: 1,
        }
    }

    fn plan(&self, maps: &Observed) -> Plan {
        let classification =
            classify(&Snapshot::parse(self.table.as_bytes()), &self.policy, &Clusters::default());
        let mut resolved = self.resolved.clone();
        let of_ceph = classification.pools.iter().filter(|pool| pool.ceph.is_some());
        resolved.pool_roots = of_ceph.map(|pool| (pool.dev, pool_root(pool.dev))).collect();
        let desired = Desired {
            policy: &self.policy,
            classification: &classification,
            resolved: &resolved,
            overrides: &self.overrides,
            host_mnt_ns: 4_026_531_841,
            now_boot_ns: self.now,
            next_generation: self.next_generation,
        };
        plan(&desired, maps)
    }

    fn apply(&mut self, maps: &mut Observed) -> Vec<MapOperation> {
        let plan = self.plan(maps);
        self.next_generation = plan.next_generation;
        plan.operations.iter().for_each(|operation| apply(maps, operation));
        assert_eq!(self.plan(maps).operations, [], "the next plan is empty");
        plan.operations
    }
}

fn started(policy: &str, table: &str) -> (Host, Observed) {
    let (mut host, mut maps) = (Host::new(policy, table), Observed::default());
    host.apply(&mut maps);
    (host, maps)
}

fn whole(dev: u32) -> PoolKey {
    PoolKey::superblock(dev)
}

fn mode(maps: &Observed, dev: u32) -> Option<Mode> {
    Mode::from_u32(maps.pools.get(&whole(dev))?.mode)
}

#[test]
fn a_first_start_in_order() {
    let (mut host, mut maps) = (Host::new(INCUS, POOL), Observed::default());
    let names: Vec<String> = host
        .apply(&mut maps)
        .iter()
        .map(|operation| format!("{operation:?}").split(['(', ' ']).next().unwrap().to_owned())
        .collect();
    assert_eq!(
        names,
        [
            "PutMagic",
            "PutMagic",
            "PutConfig",
            "PutFilesystem",
            "PutActorCgroup",
            "PutActorExecutable",
            "PutActorExecutable",
            "PutActorExecutable",
            "CreatePool",
            "PutRoot"
        ]
    );
    let entry = maps.pools[&whole(43)];
    assert_eq!((entry.generation, entry.magic, entry.flags), (1, CEPH_SUPER_MAGIC, 0));
    assert_eq!(mode(&maps, 43), Some(Mode::Guarded));
    assert!(passes_filter(&maps, RAMFS_MAGIC) && passes_filter(&maps, CEPH_SUPER_MAGIC));
    assert!(!passes_filter(&maps, FUSE_SUPER_MAGIC));
    assert_eq!(host.next_generation, 2);
}

#[test]
fn seal_release_and_expiry() {
    let (mut host, mut maps) = started(&format!("{INCUS}join = \"none\"\n"), POOL);
    let PoolEntry { generation, pool_id, .. } = maps.pools[&whole(43)];
    host.overrides.sealed.insert(pool_id);
    host.apply(&mut maps);
    assert_eq!(mode(&maps, 43), Some(Mode::Sealed));
    host.overrides.released.insert(generation, 5000);
    host.apply(&mut maps);
    assert_eq!(
        (mode(&maps, 43), maps.pools[&whole(43)].expires_boot_ns),
        (Some(Mode::Released), 5000)
    );
    assert_eq!(Overrides::adopt(&maps, &host.policy, 4999).released, host.overrides.released);
    host.now = 5000;
    host.apply(&mut maps);
    assert_eq!(mode(&maps, 43), Some(Mode::Sealed));
    assert_eq!(
        Overrides::adopt(&maps, &host.policy, 5000),
        Overrides { sealed: [pool_id].into(), ..Overrides::default() }
    );
    host.overrides.sealed.clear();
    host.apply(&mut maps);
    assert_eq!(mode(&maps, 43), Some(Mode::Guarded));
    assert_eq!(maps.pools[&whole(43)].generation, generation);
}

#[test]
fn a_nodes_state_seals_below_operators_and_releases() {
    let (mut host, mut maps) = started(INCUS, POOL);
    let PoolEntry { generation, pool_id, actor_set, .. } = maps.pools[&whole(43)];
    host.overrides.nodes.insert(actor_set, PoolModes::default());
    host.apply(&mut maps);
    assert_eq!(mode(&maps, 43), Some(Mode::Sealed));
    // Not an operator's seal: a starting agent leaves it to the node's journal.
    assert!(Overrides::adopt(&maps, &host.policy, 0).sealed.is_empty());
    host.overrides.released.insert(generation, 5000);
    host.apply(&mut maps);
    assert_eq!(mode(&maps, 43), Some(Mode::Released));
    host.overrides.released.clear();
    host.overrides.sealed.insert(pool_id);
    host.overrides.nodes.insert(actor_set, confirmed([generation]));
    host.apply(&mut maps);
    assert_eq!(mode(&maps, 43), Some(Mode::Sealed), "the operator's seal stays");
    host.overrides.sealed.clear();
    // Lazily unmounted: the state still counts.
    host.table = String::new();
    host.apply(&mut maps);
    assert_eq!(mode(&maps, 43), Some(Mode::Guarded));
    host.overrides.nodes.insert(actor_set, PoolModes::default());
    host.apply(&mut maps);
    assert_eq!(mode(&maps, 43), Some(Mode::Sealed));
}

#[test]
fn an_operators_seal_is_found_in_the_maps_without_a_state_file() {
    let (mut host, mut maps) = started(INCUS, POOL);
    let PoolEntry { generation, pool_id, actor_set, .. } = maps.pools[&whole(43)];
    for modes in [PoolModes::default(), confirmed([generation])] {
        host.overrides.nodes.insert(actor_set, modes);
        host.overrides.sealed.insert(pool_id);
        host.apply(&mut maps);
        // A followed node, whose state may seal as well, a release that runs, and a pool that is
        // not mounted.
        for (released, table) in [(None, POOL), (Some(5000), POOL), (None, "")] {
            host.overrides.released = released.map(|ends| (generation, ends)).into_iter().collect();
            host.table = table.to_owned();
            host.apply(&mut maps);
            assert!(Overrides::adopt(&maps, &host.policy, 0).sealed.contains(&pool_id));
        }
        host.overrides.sealed.clear();
        host.apply(&mut maps);
        assert!(Overrides::adopt(&maps, &host.policy, 0).sealed.is_empty(), "taken back");
        host.table = POOL.to_owned();
    }
}

#[test]
fn a_seal_without_a_known_reason_is_kept_and_is_no_operators() {
    let text = format!("{INCUS}join = \"none\"\nmode = \"sealed\"\n");
    let (mut host, mut maps) = started(&text, POOL);
    assert_eq!(mode(&maps, 43), Some(Mode::Sealed));
    // Policy was edited while no agent ran.
    host.policy = parse(&format!("{INCUS}join = \"none\"\n"), Path::new("policy.toml")).unwrap();
    let adopted = Overrides::adopt(&maps, &host.policy, 0);
    assert_eq!(adopted.sealed, BTreeSet::new());
    host.overrides = adopted;
    host.apply(&mut maps);
    assert_eq!(mode(&maps, 43), Some(Mode::Sealed));
    assert_eq!(maps.pools[&whole(43)].flags & POOL_OPERATOR, 0, "the state file is not told of it");
    host.overrides.found_sealed.clear();
    host.apply(&mut maps);
    assert_eq!(mode(&maps, 43), Some(Mode::Guarded));
}

fn confirmed(generations: impl IntoIterator<Item = u64>) -> PoolModes {
    let confirmed = generations.into_iter().collect();
    PoolModes { mode: NodeMode::Policy, confirmed, others: NodeMode::Sealed }
}

#[test]
fn a_nodes_new_pool_is_sealed_and_its_others_are_not() {
    let (mut host, mut maps) = started(INCUS, "");
    let actor_set = host.policy.roots()[0].actor_set();
    host.overrides.nodes.insert(actor_set, confirmed([]));
    host.table = POOL.to_owned();
    host.apply(&mut maps);
    assert_eq!(mode(&maps, 43), Some(Mode::Sealed));
    host.overrides.nodes.insert(actor_set, confirmed([maps.pools[&whole(43)].generation]));
    host.table += &POOL.replace("0:43", "0:44").replace("/pool", "/other").replace(":/a", ":/b");
    host.apply(&mut maps);
    assert_eq!((mode(&maps, 43), mode(&maps, 44)), (Some(Mode::Guarded), Some(Mode::Sealed)));
}

#[test]
fn a_root_that_is_only_observed_is_not_sealed_by_a_node() {
    assert_eq!(node_mode(DefaultMode::Observed, NodeMode::Sealed), Mode::Observed);
    assert_eq!(node_mode(DefaultMode::Guarded, NodeMode::Sealed), Mode::Sealed);
    assert_eq!(node_mode(DefaultMode::Guarded, NodeMode::Held), Mode::Held);
    assert_eq!(node_mode(DefaultMode::Sealed, NodeMode::Held), Mode::Sealed);
    assert_eq!(node_mode(DefaultMode::Observed, NodeMode::Held), Mode::Observed);
    assert_eq!(node_mode(DefaultMode::Sealed, NodeMode::Policy), Mode::Sealed);
    assert_eq!(node_mode(DefaultMode::Guarded, NodeMode::Policy), Mode::Guarded);
}

#[test]
fn a_release_dies_with_its_superblock() {
    let (mut host, mut maps) = started(INCUS, POOL);
    host.overrides.released.insert(1, 5000);
    host.apply(&mut maps);
    // The kernel program removes the entry; then the pool is mounted again.
    maps.pools.remove(&whole(43));
    host.apply(&mut maps);
    assert_eq!((mode(&maps, 43), maps.pools[&whole(43)].generation), (Some(Mode::Guarded), 2));
}

#[test]
fn another_superblock_with_a_stale_entry_is_replaced_in_one_step() {
    let (mut host, mut maps) = started(INCUS, POOL);
    host.overrides.released.insert(1, 5000);
    host.apply(&mut maps);
    host.table = POOL.replace("m:/a", "m:/other");
    let operations = host.apply(&mut maps);
    let on_pools: Vec<_> = operations
        .iter()
        .filter(|operation| !matches!(operation, MapOperation::PutConfig(_)))
        .collect();
    assert!(
        matches!(on_pools[..], [MapOperation::UpdatePool { key: PoolKey { dev: 43, head: 0 }, entry }] if entry.generation == 2),
        "{on_pools:?}"
    );
    assert_eq!(mode(&maps, 43), Some(Mode::Guarded));
}

#[test]
fn only_policy_takes_a_pool_out() {
    let (mut host, mut maps) = started(INCUS, POOL);
    // Lazily unmounted; then its root renamed, and made anew.
    host.table = String::new();
    assert_eq!(host.apply(&mut maps), []);
    host.table = POOL.replace("/var/lib/incus/", "/var/lib/incus.old/");
    assert_eq!(host.apply(&mut maps), []);
    host.resolved.roots = vec![None];
    assert_eq!(host.apply(&mut maps), [], "the known directory of an absent root stays");
    host.resolved.roots = vec![Some(RootKey { ino: 7, dev: 1, reserved: 0 })];
    assert_eq!(host.apply(&mut maps).len(), 2);
    assert_eq!(mode(&maps, 43), Some(Mode::Guarded));
    // Another policy: still mounted, guarded no more.
    let next_generation = host.next_generation;
    let mut other = Host {
        next_generation,
        ..Host::new("version = 1\n[[root]]\npath = \"/srv\"\nfilesystems = [\"nfs\"]", &host.table)
    };
    other.apply(&mut maps);
    assert_eq!(mode(&maps, 43), None);
    assert!(maps.actor_cgroups.is_empty() && maps.actor_executables.is_empty());
    assert_eq!((maps.roots.len(), maps.filesystems.len()), (1, 1));
}

#[test]
fn a_lazily_unmounted_pool_stays_when_policy_drops_it() {
    let (host, mut maps) = started(INCUS, POOL);
    let mut other = Host {
        next_generation: host.next_generation,
        ..Host::new("version = 1\n[[root]]\npath = \"/srv\"\nfilesystems = [\"nfs\"]", "")
    };
    other.apply(&mut maps);
    assert_eq!(mode(&maps, 43), Some(Mode::Guarded));
    assert!(passes_filter(&maps, CEPH_SUPER_MAGIC));
}

#[test]
fn the_canary_is_left_alone() {
    let (mut host, mut maps) = started(INCUS, POOL);
    let canary =
        PoolEntry { flags: POOL_CANARY, magic: RAMFS_MAGIC, mode: 1, ..PoolEntry::default() };
    maps.pools.insert(whole(77), canary);
    host.table = format!("{POOL}79 31 0:77 / /run/canary rw - ramfs none rw\n");
    assert_eq!(host.apply(&mut maps), []);
    assert_eq!(maps.pools[&whole(77)], canary);
}

#[test]
fn combined_actors_share_a_bit_and_keep_it() {
    let policy = |actors: &str| {
        format!(
            "version = 1\n[[root]]\npath = \"/a\"\nactors = \
             [{actors}]"
        )
    };
    let (host, mut maps) =
        started(&policy("{cgroup=\"/c1\",executable=\"/e1\"},{cgroup=\"/c1\"}"), "");
    let group = *maps.actor_cgroups.values().next().unwrap();
    assert_eq!((group.alone, group.combined), (1, 1));
    // The old pair's bit is not given to the new one in the same step.
    let mut next = Host {
        next_generation: host.next_generation,
        ..Host::new(&policy("{cgroup=\"/c2\",executable=\"/e2\"}"), "")
    };
    next.apply(&mut maps);
    assert_eq!(
        maps.actor_cgroups.values().map(|mask| (mask.alone, mask.combined)).collect::<Vec<_>>(),
        [(0, 2)]
    );
    assert_eq!(maps.actor_executables.values().next().unwrap().combined, 2);
}

#[test]
fn unresolved_actors_are_left_out() {
    let mut host = Host::new(INCUS, POOL);
    host.resolved.cgroups.clear();
    host.resolved.executables.clear();
    let mut maps = Observed::default();
    host.apply(&mut maps);
    assert!(maps.actor_cgroups.is_empty() && maps.actor_executables.is_empty());
}

/// The actors of a set: pairs of cgroup and executable, or one alone.
fn actors(maps: &Observed, set: u32) -> BTreeSet<(u64, u64)> {
    let groups: Vec<_> =
        maps.actor_cgroups.iter().filter(|(key, _)| key.actor_set == set).collect();
    let programs: Vec<_> =
        maps.actor_executables.iter().filter(|(key, _)| key.actor_set == set).collect();
    let mut actors = BTreeSet::new();
    actors.extend(
        groups.iter().filter(|(_, mask)| mask.alone != 0).map(|(key, _)| (key.cgroup_id, 0)),
    );
    actors.extend(programs.iter().filter(|(_, mask)| mask.alone != 0).map(|(key, _)| (0, key.ino)));
    for (group, left) in &groups {
        let both = programs.iter().filter(|(_, right)| left.combined & right.combined != 0);
        actors.extend(both.map(|(program, _)| (group.cgroup_id, program.ino)));
    }
    actors
}

/// Actors that are denied outside the roots, on a superblock that has no entry.
fn alias_actors(maps: &Observed) -> BTreeSet<(u64, u64)> {
    if maps.config.flags & CONFIG_ALIASES == 0 {
        BTreeSet::new()
    } else {
        actors(maps, ALIAS_ACTORS)
    }
}

fn exempt(maps: &Observed) -> BTreeSet<u32> {
    maps.pools
        .iter()
        .filter(|(_, entry)| entry.flags & POOL_NO_ALIAS != 0)
        .map(|(key, _)| key.dev)
        .collect()
}

/// The host's own CephFS, of which a container has a directory.
const HOME: &str = "70 31 0:60 / /mnt/cephfs rw - ceph m:/ rw\n";
const DISK: &str = "71 31 0:60 /media /var/lib/incus/devices/c/disk rw - ceph m:/ rw\n";

#[test]
fn a_visitor_is_one_from_the_beginning_and_goes_with_its_last_mount_below_a_root() {
    let (mut host, mut maps) = started(INCUS, &format!("{HOME}{DISK}"));
    let entry = maps.pools[&whole(60)];
    assert!(is_visitor(&entry) && is_pool(&entry));
    let root = host.policy.roots()[0].actor_set();
    let sealed = |mode| PoolModes { mode, others: mode, ..PoolModes::default() };
    host.overrides.nodes.insert(root, sealed(NodeMode::Sealed));
    host.apply(&mut maps);
    assert_eq!(mode(&maps, 60), Some(Mode::Sealed));
    assert!(
        is_visitor(&maps.pools[&whole(60)]) && alias_actors(&maps).is_empty(),
        "nobody else is in the way"
    );
    HOME.clone_into(&mut host.table);
    host.apply(&mut maps);
    assert!(maps.pools.is_empty(), "the host's own mount is free");

    // A pool stays one, even if its oldest mount is another by now.
    let bound = "72 31 0:43 / /srv/bound rw - ceph m:/a rw\n";
    let again = "73 31 0:43 / /var/lib/incus/again rw - ceph m:/a rw\n";
    let (mut host, mut maps) = started(INCUS, &format!("{POOL}{bound}{again}"));
    host.table = format!("{bound}{again}");
    host.apply(&mut maps);
    assert!(!is_visitor(&maps.pools[&whole(43)]));
}

#[test]
fn guests_namespaces_and_generations_come_into_the_maps() {
    let policy = "version = 1\n[[root]]\npath = \"/srv\"\nfilesystems = [\"ceph\"]\nguests = \
                  [\"/kubepods\"]\n[[root.actors]]\nexecutable = \"/usr/bin/d\"\n";
    let mut host = Host::new(policy, "");
    let key = host.resolved.roots[0].unwrap();
    host.resolved.cgroups.insert("/kubepods".to_owned(), 77);
    host.resolved.namespaces.insert(4_026_532_512);
    let (_, ino) = host.resolved.executables[Path::new("/usr/bin/d")];
    host.resolved.generations.extend([((key.dev, key.ino), 5), ((1, ino), 6)]);
    let mut maps = Observed::default();
    host.apply(&mut maps);
    let root = &maps.roots[&key];
    assert_eq!((root.flags, root.generation), (ROOT_GENERATION, 5));
    let (_, executable) = maps.actor_executables.first_key_value().unwrap();
    assert_eq!(
        (executable.alone, executable.flags, executable.generation),
        (1, ACTOR_GENERATION, 6)
    );
    let (guest, mask) = maps.actor_cgroups.first_key_value().unwrap();
    assert_eq!((guest.cgroup_id, mask.alone, mask.flags), (77, 0, ACTOR_GUEST));
    assert_eq!(maps.namespaces, BTreeSet::from([4_026_532_512]));
    host.resolved.namespaces.clear();
    // The root's directory is not seen now: the known facts about it stay.
    host.resolved.roots[0] = None;
    host.apply(&mut maps);
    assert!(maps.namespaces.is_empty());
    assert_eq!(maps.roots[&key].generation, 5);
}

#[test]
fn an_operators_seal_follows_a_pool_whose_id_changes() {
    let classified = |table: &str| {
        let host = Host::new(INCUS, table);
        classify(&Snapshot::parse(table.as_bytes()), &host.policy, &Clusters::default())
    };
    let (before, after) = (classified(POOL), classified(&POOL.replace("m:/a", "m:/b")));
    let (mut host, mut maps) = started(INCUS, POOL);
    let kept = |maps: &Observed| -> Vec<u64> {
        seals_to_keep(&after, maps).map(|pool| pool.pool_id).collect()
    };
    assert!(kept(&maps).is_empty(), "nobody has sealed it");
    host.overrides.sealed.insert(before.pools[0].pool_id);
    host.apply(&mut maps);
    assert_eq!(kept(&maps), [after.pools[0].pool_id]);
    assert_eq!(seals_to_keep(&before, &maps).count(), 0, "its id is the same");
}
