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
    let generation = maps.pools[&43].generation;
    let held = PoolModes { mode: NodeMode::Held, others: NodeMode::Held, confirmed: [generation].into() };
    host.overrides.nodes.insert(actor_set, held);
    host.apply(&mut maps);
    assert_eq!(mode(&maps, 43), Some(Mode::Held));
    assert_eq!((alias_actors(&maps), exempt(&maps)), (actors(&maps, actor_set), [51].into()));
    // An operator's release of the only pool goes before.
    host.overrides.released.insert(generation, 5000);
    host.apply(&mut maps);
    assert!(alias_actors(&maps).is_empty());
}
