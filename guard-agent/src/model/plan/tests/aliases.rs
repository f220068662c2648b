//! Denials outside the roots while pools are sealed.

use super::*;

#[test]
fn while_a_pool_is_sealed_its_actors_are_denied_on_whatever_may_show_it() {
    let sealed = |maps: &Observed| (alias_actors(maps), exempt(maps));
    // The filesystem's root, a path beside the pool, one below it, and a kind that tells nothing.
    let table = format!(
        "{POOL}80 31 0:50 / /tmp/x rw - ceph m:/ rw\n81 31 0:51 / /mnt rw - ceph m:/b rw\n\
         82 31 0:52 / /mnt2 rw - ceph m:/a/below rw\n"
    );
    let (mut host, mut maps) = started(INCUS, &table);
    let actor_set = maps.pools[&whole(43)].actor_set;
    assert_eq!(sealed(&maps), (BTreeSet::new(), BTreeSet::new()));
    host.overrides.sealed.insert(maps.pools[&whole(43)].pool_id);
    host.apply(&mut maps);
    assert_eq!(sealed(&maps), (actors(&maps, actor_set), [51].into()));
    assert!(!alias_actors(&maps).is_empty());
    // The exempt superblock becomes a pool, and the pool stays one.
    let bound = format!("{table}83 31 0:51 / /var/lib/incus/other rw - ceph m:/b rw\n");
    host.table.clone_from(&bound);
    host.apply(&mut maps);
    assert_eq!((mode(&maps, 51), exempt(&maps)), (Some(Mode::Guarded), [].into()));
    // Mounted no more: a starting agent does not know the sealed pool's content.
    host.table = table.replace(POOL, "").replace("0:51", "0:53");
    host.apply(&mut maps);
    assert_eq!(exempt(&maps), [].into());
    host.overrides.sealed.clear();
    host.apply(&mut maps);
    assert_eq!(sealed(&maps), (BTreeSet::new(), BTreeSet::new()));
    assert!(maps.actor_cgroups.keys().all(|key| key.actor_set == actor_set));
}

#[test]
fn a_node_without_a_pool_is_no_danger_and_one_with_a_sealed_pool_may_get_more() {
    let (mut host, mut maps) = started(INCUS, "81 31 0:51 / /mnt rw - ceph m:/b rw\n");
    let actor_set = host.policy.roots()[0].actor_set();
    host.overrides.nodes.insert(actor_set, PoolModes::default());
    host.apply(&mut maps);
    assert_eq!((alias_actors(&maps), exempt(&maps)), (BTreeSet::new(), [].into()));
    host.table += POOL;
    host.apply(&mut maps);
    assert_eq!(alias_actors(&maps), actors(&maps, actor_set));
    assert_eq!(exempt(&maps), [].into(), "another pool may follow");
    // A member that does not answer has all the pools that it will have.
    let generation = maps.pools[&whole(43)].generation;
    let held =
        PoolModes { mode: NodeMode::Held, others: NodeMode::Held, confirmed: [generation].into() };
    host.overrides.nodes.insert(actor_set, held);
    host.apply(&mut maps);
    assert_eq!(mode(&maps, 43), Some(Mode::Held));
    assert_eq!((alias_actors(&maps), exempt(&maps)), (actors(&maps, actor_set), [51].into()));
    // An operator's release of the only pool goes before.
    host.overrides.released.insert(generation, 5000);
    host.apply(&mut maps);
    assert!(alias_actors(&maps).is_empty());
}

fn by_inode(maps: &Observed) -> Option<BTreeSet<u64>> {
    let keys = maps.roots.keys().filter(|key| key.is_alias());
    let inodes: BTreeSet<u64> = keys.map(|key| key.ino).collect();
    assert!(
        maps.config.flags & CONFIG_ALIASES_BY_INODE == 0 || maps.config.flags & CONFIG_ALIASES != 0
    );
    (maps.config.flags & CONFIG_ALIASES_BY_INODE != 0).then_some(inodes)
}

#[test]
fn names_tell_where_the_root_of_every_sealed_pool_is_known() {
    let other = "79 31 0:44 / /var/lib/incus/other rw - ceph m:/b rw\n";
    let (mut host, mut maps) = started(INCUS, &format!("{POOL}{other}"));
    let actor_set = maps.pools[&whole(43)].actor_set;
    assert_eq!(by_inode(&maps), None);
    // By an operator: the node is well, and has all the pools that it will have.
    host.overrides.sealed.insert(maps.pools[&whole(43)].pool_id);
    host.apply(&mut maps);
    assert_eq!(by_inode(&maps), Some([pool_root(43)].into()));
    host.overrides.sealed.insert(maps.pools[&whole(44)].pool_id);
    host.apply(&mut maps);
    assert_eq!(by_inode(&maps), Some([pool_root(43), pool_root(44)].into()));
    // On the way into a cluster another pool may come at any moment.
    host.overrides.nodes.insert(actor_set, PoolModes::default());
    host.apply(&mut maps);
    assert_eq!(by_inode(&maps), None);
    assert!(maps.roots.keys().all(|key| !key.is_alias()));
    host.overrides.nodes.clear();
    // Mounted no more: every mount that shows it is denied.
    host.table = other.to_owned();
    host.apply(&mut maps);
    assert_eq!(by_inode(&maps), None);
    host.overrides.sealed.clear();
    host.apply(&mut maps);
    assert_eq!((by_inode(&maps), alias_actors(&maps)), (None, BTreeSet::new()));
}

#[test]
fn a_map_of_roots_that_is_full_leaves_names_untold() {
    let mounts = |count: u32| {
        let line = |number: u32| {
            format!(
                "{} 31 0:{number} / /var/lib/incus/p{number} rw - ceph m:/{number} \
                 rw\n",
                number + 100
            )
        };
        (100..100 + count).map(line).collect::<String>()
    };
    let room = guard_common::names::capacity::ROOTS - 1;
    for (count, told) in [(room, true), (room + 1, false)] {
        let (mut host, mut maps) = started(INCUS, &mounts(count));
        host.overrides.sealed.extend(maps.pools.values().map(|entry| entry.pool_id));
        host.apply(&mut maps);
        assert_eq!(by_inode(&maps).map(|inodes| inodes.len()), told.then_some(count as usize));
        assert!(!alias_actors(&maps).is_empty());
    }
}
