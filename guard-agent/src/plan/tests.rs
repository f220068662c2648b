//! Plans step by step, and what must hold in every step of every plan.

use std::path::Path;

use guard_common::policy::{ALIAS_ACTORS, CEPH_SUPER_MAGIC, POOL_CANARY, POOL_NO_ALIAS};
use proptest::prelude::*;

use super::*;
use crate::classify::classify;
use crate::mounts::Snapshot;
use crate::policy::parse;

const INCUS: &str = "version = 1\n[[root]]\npreset = \"incus\"\n";
const POOL: &str = "78 31 0:43 / /var/lib/incus/pool rw - ceph m:/a rw\n";

/// Applies one operation, with the kernel's flags.
fn apply(maps: &mut Observed, operation: &MapOperation) {
    use MapOperation::*;
    match *operation {
        PutConfig(config) => maps.config = config,
        PutFilesystem(key, bit) => drop(maps.filesystems.insert(key, bit)),
        RemoveFilesystem(key) => assert!(maps.filesystems.remove(&key).is_some()),
        PutRoot(key, entry) => drop(maps.roots.insert(key, entry)),
        RemoveRoot(key) => assert!(maps.roots.remove(&key).is_some()),
        PutActorCgroup(key, mask) => drop(maps.actor_cgroups.insert(key, mask)),
        RemoveActorCgroup(key) => assert!(maps.actor_cgroups.remove(&key).is_some()),
        PutActorExecutable(key, mask) => drop(maps.actor_executables.insert(key, mask)),
        RemoveActorExecutable(key) => assert!(maps.actor_executables.remove(&key).is_some()),
        CreatePool { dev, entry } => assert!(maps.pools.insert(dev, entry).is_none()),
        UpdatePool { dev, entry } => assert!(maps.pools.insert(dev, entry).is_some()),
        RemovePool { dev } => assert!(maps.pools.remove(&dev).is_some()),
    }
}

/// Any number that differs by path.
fn number(path: &str) -> u64 {
    path.bytes().fold(0, |number: u64, byte| number.wrapping_mul(31).wrapping_add(byte.into()))
}

/// A host: policy, mount table, and what was decided about its pools.
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
        let policy = parse(policy, Path::new("policy.toml")).unwrap_or_else(|errors| panic!("{errors}"));
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
        let classification = classify(&Snapshot::parse(self.table.as_bytes()), &self.policy);
        let desired = Desired {
            policy: &self.policy,
            classification: &classification,
            resolved: &self.resolved,
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

fn mode(maps: &Observed, dev: u32) -> Option<Mode> {
    Mode::from_u32(maps.pools.get(&dev)?.mode)
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
            "PutConfig",
            "PutFilesystem",
            "PutActorCgroup",
            "PutActorExecutable",
            "PutActorExecutable",
            "CreatePool",
            "PutRoot"
        ]
    );
    let entry = maps.pools[&43];
    assert_eq!((entry.generation, entry.magic, entry.flags), (1, CEPH_SUPER_MAGIC, 0));
    assert_eq!(mode(&maps, 43), Some(Mode::Guarded));
    assert_ne!(maps.config.magic_bloom & magic_bit(RAMFS_MAGIC), 0);
    assert_eq!(host.next_generation, 2);
}

#[test]
fn seal_release_and_expiry() {
    let (mut host, mut maps) = started(&format!("{INCUS}join = \"none\"\n"), POOL);
    let PoolEntry { generation, pool_id, .. } = maps.pools[&43];
    host.overrides.sealed.insert(pool_id);
    host.apply(&mut maps);
    assert_eq!(mode(&maps, 43), Some(Mode::Sealed));
    host.overrides.released.insert(generation, 5000);
    host.apply(&mut maps);
    assert_eq!((mode(&maps, 43), maps.pools[&43].expires_boot_ns), (Some(Mode::Released), 5000));
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
    assert_eq!(maps.pools[&43].generation, generation);
}

#[test]
fn a_nodes_state_seals_below_operators_and_releases() {
    let (mut host, mut maps) = started(INCUS, POOL);
    let PoolEntry { generation, pool_id, actor_set, .. } = maps.pools[&43];
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

fn confirmed(generations: impl IntoIterator<Item = u64>) -> PoolModes {
    PoolModes { mode: NodeMode::Policy, confirmed: generations.into_iter().collect() }
}

#[test]
fn a_nodes_new_pool_is_sealed_and_its_others_are_not() {
    let (mut host, mut maps) = started(INCUS, "");
    let actor_set = host.policy.roots()[0].actor_set();
    host.overrides.nodes.insert(actor_set, confirmed([]));
    host.table = POOL.to_owned();
    host.apply(&mut maps);
    assert_eq!(mode(&maps, 43), Some(Mode::Sealed));
    host.overrides.nodes.insert(actor_set, confirmed([maps.pools[&43].generation]));
    host.table += &POOL.replace("0:43", "0:44").replace("/pool", "/other").replace(":/a", ":/b");
    host.apply(&mut maps);
    assert_eq!((mode(&maps, 43), mode(&maps, 44)), (Some(Mode::Guarded), Some(Mode::Sealed)));
}

#[test]
fn a_root_that_is_only_observed_is_not_sealed_by_a_node() {
    assert_eq!(node_mode(DefaultMode::Observed, NodeMode::Sealed), Mode::Observed);
    assert_eq!(node_mode(DefaultMode::Guarded, NodeMode::Sealed), Mode::Sealed);
    assert_eq!(node_mode(DefaultMode::Sealed, NodeMode::Policy), Mode::Sealed);
    assert_eq!(node_mode(DefaultMode::Guarded, NodeMode::Policy), Mode::Guarded);
}

#[test]
fn a_release_dies_with_its_superblock() {
    let (mut host, mut maps) = started(INCUS, POOL);
    host.overrides.released.insert(1, 5000);
    host.apply(&mut maps);
    // The kernel program removes the entry; then the pool is mounted again.
    maps.pools.remove(&43);
    host.apply(&mut maps);
    assert_eq!((mode(&maps, 43), maps.pools[&43].generation), (Some(Mode::Guarded), 2));
}

#[test]
fn another_superblock_with_a_stale_entry_is_replaced_in_one_step() {
    let (mut host, mut maps) = started(INCUS, POOL);
    host.overrides.released.insert(1, 5000);
    host.apply(&mut maps);
    host.table = POOL.replace("m:/a", "m:/other");
    let operations = host.apply(&mut maps);
    assert!(matches!(operations[..], [MapOperation::UpdatePool { dev: 43, entry }] if entry.generation == 2));
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
    assert_ne!(maps.config.magic_bloom & magic_bit(CEPH_SUPER_MAGIC), 0);
}

#[test]
fn the_canary_is_left_alone() {
    let (mut host, mut maps) = started(INCUS, POOL);
    let canary = PoolEntry { flags: POOL_CANARY, magic: RAMFS_MAGIC, mode: 1, ..PoolEntry::default() };
    maps.pools.insert(77, canary);
    host.table = format!("{POOL}79 31 0:77 / /run/canary rw - ramfs none rw\n");
    assert_eq!(host.apply(&mut maps), []);
    assert_eq!(maps.pools[&77], canary);
}

#[test]
fn combined_actors_share_a_bit_and_keep_it() {
    let policy = |actors: &str| format!("version = 1\n[[root]]\npath = \"/a\"\nactors = [{actors}]");
    let (host, mut maps) = started(&policy("{cgroup=\"/c1\",executable=\"/e1\"},{cgroup=\"/c1\"}"), "");
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

#[test]
fn while_a_pool_is_sealed_its_actors_are_denied_on_whatever_may_show_it() {
    let sealed = |maps: &Observed| (alias_actors(maps), exempt(maps));
    // The filesystem's root, a path beside the pool, one below it, and a kind that tells nothing.
    let table = format!(
        "{POOL}80 31 0:50 / /tmp/x rw - ceph m:/ rw\n81 31 0:51 / /mnt rw - ceph m:/b rw\n\
         82 31 0:52 / /mnt2 rw - ceph m:/a/below rw\n"
    );
    let (mut host, mut maps) = started(INCUS, &table);
    let actor_set = maps.pools[&43].actor_set;
    assert_eq!(sealed(&maps), (BTreeSet::new(), BTreeSet::new()));
    host.overrides.sealed.insert(maps.pools[&43].pool_id);
    host.apply(&mut maps);
    assert_eq!(sealed(&maps), (actors(&maps, actor_set), [51].into()));
    assert!(!alias_actors(&maps).is_empty());
    // What was exempt becomes a pool; what was a pool stays one.
    let bound = format!("{table}83 31 0:51 / /var/lib/incus/other rw - ceph m:/b rw\n");
    host.table.clone_from(&bound);
    host.apply(&mut maps);
    assert_eq!((mode(&maps, 51), exempt(&maps)), (Some(Mode::Guarded), [].into()));
    // Mounted no more: what the sealed pool shows is not known to a starting agent.
    host.table = table.replace(POOL, "").replace("0:51", "0:53");
    host.apply(&mut maps);
    assert_eq!(exempt(&maps), [].into());
    host.overrides.sealed.clear();
    host.apply(&mut maps);
    assert_eq!(sealed(&maps), (BTreeSet::new(), BTreeSet::new()));
    assert!(maps.actor_cgroups.keys().all(|key| key.actor_set == actor_set));
}

#[test]
fn a_sealed_nodes_pools_may_be_anywhere_even_before_they_are_mounted() {
    let (mut host, mut maps) = started(INCUS, "81 31 0:51 / /mnt rw - ceph m:/b rw\n");
    let actor_set = host.policy.roots()[0].actor_set();
    host.overrides.nodes.insert(actor_set, PoolModes::default());
    host.apply(&mut maps);
    assert_eq!((alias_actors(&maps), exempt(&maps)), (actors(&maps, actor_set), [].into()));
    host.table += POOL;
    host.apply(&mut maps);
    assert_eq!(exempt(&maps), [].into(), "another pool may follow");
    // An operator's release of the only pool goes before.
    host.overrides.released.insert(maps.pools[&43].generation, 5000);
    host.apply(&mut maps);
    assert!(alias_actors(&maps).is_empty());
}

/// Names of kinds guarded below a root's directory, as the kernel sees them.
fn guarded_kinds(maps: &Observed, key: &RootKey) -> BTreeSet<FilesystemKey> {
    let mask = maps.roots.get(key).map_or(0, |entry| entry.filesystems);
    let kinds = maps.filesystems.iter().filter(|(_, bit)| mask & (1 << **bit) != 0);
    kinds
        .filter(|(key, _)| maps.config.magic_bloom & magic_bit(key.magic) != 0)
        .map(|(key, _)| *key)
        .collect()
}

/// Who could delete in a guarded pool of a set: pairs of cgroup and executable, or one alone.
fn actors(maps: &Observed, set: u32) -> BTreeSet<(u64, u64)> {
    let groups: Vec<_> = maps.actor_cgroups.iter().filter(|(key, _)| key.actor_set == set).collect();
    let programs: Vec<_> = maps.actor_executables.iter().filter(|(key, _)| key.actor_set == set).collect();
    let mut actors = BTreeSet::new();
    actors.extend(groups.iter().filter(|(_, mask)| mask.alone != 0).map(|(key, _)| (key.cgroup_id, 0)));
    actors.extend(programs.iter().filter(|(_, mask)| mask.alone != 0).map(|(key, _)| (0, key.ino)));
    for (group, left) in &groups {
        let both = programs.iter().filter(|(_, right)| left.combined & right.combined != 0);
        actors.extend(both.map(|(program, _)| (group.cgroup_id, program.ino)));
    }
    actors
}

/// Who is denied outside the roots, on a superblock that has no entry.
fn alias_actors(maps: &Observed) -> BTreeSet<(u64, u64)> {
    if maps.config.flags & CONFIG_ALIASES == 0 { BTreeSet::new() } else { actors(maps, ALIAS_ACTORS) }
}

fn exempt(maps: &Observed) -> BTreeSet<u32> {
    maps.pools.iter().filter(|(_, entry)| entry.flags & POOL_NO_ALIAS != 0).map(|(dev, _)| *dev).collect()
}

fn check_aliases(before: &Observed, after: &Observed, now: &Observed, operation: &MapOperation) {
    let (old, new, denied) = (alias_actors(before), alias_actors(after), alias_actors(now));
    let both: BTreeSet<_> = old.intersection(&new).copied().collect();
    assert!(denied.is_superset(&both), "aliases opened at {operation:?}");
    let either: BTreeSet<_> = old.union(&new).copied().collect();
    assert!(denied.is_subset(&either), "aliases closed to others at {operation:?}");
    let either: BTreeSet<_> = exempt(before).union(&exempt(after)).copied().collect();
    assert!(exempt(now).is_subset(&either), "an alias exempt at {operation:?}");
}

fn check_steps(before: &Observed, after: &Observed, operations: &[MapOperation]) {
    let mut maps = before.clone();
    for operation in operations {
        apply(&mut maps, operation);
        check_aliases(before, after, &maps, operation);
        for (dev, entry) in &maps.pools {
            assert_ne!(maps.config.magic_bloom & magic_bit(entry.magic), 0, "the filter hides {dev}");
        }
        for (dev, old) in &before.pools {
            let Some(new) = after.pools.get(dev) else { continue };
            let now = maps.pools.get(dev).unwrap_or_else(|| panic!("pool {dev} without entry"));
            let weaker = pools::strength(old.mode).min(pools::strength(new.mode));
            assert!(pools::strength(now.mode) >= weaker, "pool {dev} weaker at {operation:?}");
            if now.mode != Mode::Guarded as u32 || !is_pool(now) {
                continue;
            }
            let allowed: BTreeSet<_> =
                actors(before, old.actor_set).union(&actors(after, new.actor_set)).copied().collect();
            assert!(actors(&maps, now.actor_set).is_subset(&allowed), "new actors at {operation:?}");
        }
        for key in before.roots.keys().filter(|key| after.roots.contains_key(*key)) {
            let (old, new) = (guarded_kinds(before, key), guarded_kinds(after, key));
            let both: BTreeSet<_> = old.intersection(&new).copied().collect();
            assert!(guarded_kinds(&maps, key).is_superset(&both), "root opened at {operation:?}");
        }
    }
}

fn any_policy() -> impl Strategy<Value = String> {
    let kinds =
        proptest::sample::subsequence(vec!["ceph", "nfs", "cifs", "fuse.a", "fuse.b", "tmpfs"], 1..=4);
    let actor = (0..4_usize, 0..4_usize).prop_map(|(group, program)| match (group, program) {
        (0, 0) => "{cgroup=\"/g\"}".to_owned(),
        (group, 0) => format!("{{cgroup=\"/g{group}\"}}"),
        (0, program) => format!("{{executable=\"/p{program}\"}}"),
        (group, program) => format!("{{cgroup=\"/g{group}\",executable=\"/p{program}\"}}"),
    });
    let root = (
        proptest::sample::select(vec!["/a", "/a/b", "/c"]),
        kinds.prop_shuffle(),
        proptest::sample::select(vec!["sealed", "guarded", "observed"]),
        proptest::collection::vec(actor, 0..4),
        any::<bool>(),
    );
    let roots = proptest::collection::vec(root, 1..4);
    roots.prop_map(|roots| {
        let mut text = "version = 1\n".to_owned();
        let mut seen = BTreeSet::new();
        for (path, kinds, mode, actors, flag) in roots.into_iter().filter(|root| seen.insert(root.0)) {
            let kinds = format!("{kinds:?}");
            text += &format!(
                "[[root]]\npath = \"{path}\"\nfilesystems = {kinds}\nmode = \"{mode}\"\nexported = {flag}\n\
                 actors = [{}]\n",
                actors.join(",")
            );
        }
        text
    })
}

fn any_table() -> impl Strategy<Value = String> {
    let mount = (
        0..6_u32,
        proptest::sample::select(vec!["/a/x", "/a/b/x", "/a/b/y", "/c/z", "/elsewhere"]),
        proptest::sample::select(vec!["ceph", "nfs4", "fuse.a", "fuse.b", "tmpfs", "ext4"]),
    );
    proptest::collection::vec(mount, 0..6).prop_map(|mounts| {
        let line = |(dev, place, kind): (u32, &str, &str)| {
            // The first shows what all others of its kind do; the others lie beside each other.
            let path = if dev == 0 { String::new() } else { dev.to_string() };
            format!("{dev} 1 0:{dev} / {place} rw - {kind} s:/{path} rw\n")
        };
        let mut seen = BTreeSet::new();
        mounts.into_iter().filter(|mount| seen.insert(mount.0)).map(line).collect()
    })
}

proptest! {
    #[test]
    fn no_step_of_any_plan_is_weaker_than_both_ends(
        hosts in proptest::collection::vec((any_policy(), any_table(), any::<u64>(), 0..3_u64), 1..5),
    ) {
        let (mut maps, mut next_generation) = (Observed::default(), 1);
        for (policy, table, choice, now) in hosts {
            let mut host = Host { next_generation, now, ..Host::new(&policy, &table) };
            for (index, entry) in maps.pools.values().enumerate() {
                match choice >> (2 * index) & 3 {
                    0 => drop(host.overrides.sealed.insert(entry.pool_id)),
                    1 => drop(host.overrides.released.insert(entry.generation, 2)),
                    _ => {}
                }
            }
            for (index, root) in host.policy.roots().iter().enumerate() {
                match choice >> (2 * index + 40) & 3 {
                    0 => drop(host.overrides.nodes.insert(root.actor_set(), PoolModes::default())),
                    1 => drop(host.overrides.nodes.insert(root.actor_set(), confirmed(now..now + 3))),
                    _ => {}
                }
            }
            if choice >> 60 == 0 {
                host.resolved.roots[0] = None;
            }
            let before = maps.clone();
            let operations = host.apply(&mut maps);
            next_generation = host.next_generation;
            check_steps(&before, &maps, &operations);
            prop_assert!(maps.pools.values().all(|entry| entry.generation < next_generation));
            let generations: BTreeSet<_> = maps.pools.values().map(|entry| entry.generation).collect();
            prop_assert_eq!(generations.len(), maps.pools.len());
        }
    }
}
