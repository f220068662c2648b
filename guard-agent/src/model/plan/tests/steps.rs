//! Properties that hold in every step of every plan.

use proptest::prelude::*;

use super::*;

/// Names of kinds guarded below a root's directory, as the kernel sees them.
fn guarded_kinds(maps: &Observed, key: &RootKey) -> BTreeSet<FilesystemKey> {
    let mask = maps.roots.get(key).map_or(0, |entry| entry.filesystems);
    let kinds = maps.filesystems.iter().filter(|(_, bit)| mask & (1 << **bit) != 0);
    kinds.filter(|(key, _)| passes_filter(maps, key.magic)).map(|(key, _)| *key).collect()
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

/// No process deletes in a guarded pool that may neither before nor after.
fn check_actors(
    maps: &Observed,
    now: &PoolEntry,
    (before, old): (&Observed, &PoolEntry),
    (after, new): (&Observed, &PoolEntry),
    operation: &MapOperation,
) {
    if now.mode != Mode::Guarded as u32 || !is_pool(now) {
        return;
    }
    let (old, new) = (actors(before, old.actor_set), actors(after, new.actor_set));
    let allowed: BTreeSet<_> = old.union(&new).copied().collect();
    assert!(actors(maps, now.actor_set).is_subset(&allowed), "new actors at {operation:?}");
}

fn check_steps(before: &Observed, after: &Observed, operations: &[MapOperation]) {
    let mut maps = before.clone();
    for operation in operations {
        apply(&mut maps, operation);
        check_aliases(before, after, &maps, operation);
        for (key, entry) in &maps.pools {
            assert!(passes_filter(&maps, entry.magic), "the filter hides {key:?}");
            let strict = maps.config.flags & CONFIG_STRICT != 0;
            assert!(
                strict || !is_pool(entry) || !pools::is_strict(entry),
                "{key:?} is sealed, and not everybody is told"
            );
        }
        if maps.config.flags & CONFIG_ALIASES_BY_INODE != 0 {
            // A visitor's data is its host's own: other mounts of it are no aliases.
            let sealed = |entry: &PoolEntry| {
                pools::strength(entry.mode) >= pools::strength(Mode::Held as u32)
                    && !is_visitor(entry)
            };
            for (pool, _) in maps.pools.iter().filter(|(_, entry)| sealed(entry)) {
                let key = RootKey::alias(pool_root(pool.dev));
                assert!(
                    maps.roots.contains_key(&key),
                    "the names do not tell {pool:?} at {operation:?}"
                );
            }
        }
        for key in maps.roots.keys().filter(|key| !key.is_alias()) {
            let devices = maps.config.root_devices;
            assert!(devices == 0 || devices & device_bit(key.dev) != 0, "the filter hides {key:?}");
        }
        for (key, old) in &before.pools {
            let Some(new) = after.pools.get(key) else { continue };
            let now = maps.pools.get(key).unwrap_or_else(|| panic!("{key:?} without entry"));
            let weaker = pools::strength(old.mode).min(pools::strength(new.mode));
            assert!(pools::strength(now.mode) >= weaker, "{key:?} weaker at {operation:?}");
            if is_pool(new) {
                check_actors(&maps, now, (before, old), (after, new), operation);
            }
        }
        for (key, new) in after.pools.iter().filter(|(key, entry)| key.is_part() && is_pool(entry))
        {
            // A mount of the part meets the part's own entry, or the whole superblock's while that
            // has no parts.
            let met = |maps: &Observed| {
                let whole = maps.pools.get(&whole(key.dev)).copied()?;
                if whole.flags & POOL_PARTS != 0 {
                    maps.pools.get(key).copied()
                } else {
                    Some(whole)
                }
            };
            let Some(old) = met(before).filter(is_pool) else { continue };
            let now =
                met(&maps).unwrap_or_else(|| panic!("{key:?} without entry at {operation:?}"));
            let weaker = pools::strength(old.mode).min(pools::strength(new.mode));
            assert!(pools::strength(now.mode) >= weaker, "{key:?} weaker at {operation:?}");
            check_actors(&maps, &now, (before, &old), (after, new), operation);
        }
        for key in before.roots.keys().filter(|key| after.roots.contains_key(*key)) {
            let (old, new) = (guarded_kinds(before, key), guarded_kinds(after, key));
            let both: BTreeSet<_> = old.intersection(&new).copied().collect();
            assert!(guarded_kinds(&maps, key).is_superset(&both), "root opened at {operation:?}");
        }
    }
}

fn any_policy() -> impl Strategy<Value = String> {
    let kinds = proptest::sample::subsequence(
        vec!["ceph", "nfs", "cifs", "fuse.a", "fuse.b", "tmpfs"],
        1..=4,
    );
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
        for (path, kinds, mode, actors, flag) in
            roots.into_iter().filter(|root| seen.insert(root.0))
        {
            let kinds = format!("{kinds:?}");
            text += &format!(
                "[[root]]\npath = \"{path}\"\nfilesystems = {kinds}\nmode = \"{mode}\"\nexported = \
                 {flag}\nactors = [{}]\n",
                actors.join(",")
            );
        }
        text
    })
}

fn any_table() -> impl Strategy<Value = String> {
    let mount = (
        0..8_u32,
        proptest::sample::select(vec!["/a/x", "/a/b/x", "/a/b/y", "/c/z", "/elsewhere"]),
        proptest::sample::select(vec!["ceph", "nfs4", "fuse.a", "fuse.b", "tmpfs", "ext4"]),
    );
    proptest::collection::vec(mount, 0..6).prop_map(|mounts| {
        // Two of some numbers share a superblock, which is of one kind.
        let mut kinds: BTreeMap<u32, &str> = BTreeMap::new();
        let line = move |(number, place, kind): (u32, &str, &'static str)| {
            // The first contains all others of its kind; the others lie beside each other.
            let path = if number == 0 { String::new() } else { number.to_string() };
            let dev = if number < 6 { number } else { number - 4 };
            let kind = kinds.entry(dev).or_insert(kind);
            format!("{} 1 0:{dev} / {place} rw - {kind} s:/{path} rw\n", 100 + number)
        };
        let mut seen = BTreeSet::new();
        let mounts = mounts.into_iter().filter(|mount| seen.insert(mount.0));
        mounts.map(line).collect()
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
