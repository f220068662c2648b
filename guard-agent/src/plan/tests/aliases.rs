//! Who is denied outside the roots while pools are sealed.

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
