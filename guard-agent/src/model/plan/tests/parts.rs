//! Superblocks that several sources' mounts share.

use super::*;

const POLICY: &str = "version = 1\n[[root]]\npath = \"/r\"\nfilesystems = [\"nfs\"]\n";
const HOME: &str = "70 1 0:50 / /home rw - nfs4 nas:/export/home rw,addr=10.0.0.9\n";
const FIRST: &str = "71 1 0:50 / /r/one rw - nfs4 nas:/export/one rw,addr=10.0.0.9\n";
const SECOND: &str = "72 1 0:50 / /r/two rw - nfs4 nas:/export/two rw,addr=10.0.0.9\n";
const AGAIN: &str = "79 1 0:50 / /r/one rw - nfs4 nas:/export/one rw,addr=10.0.0.9\n";

fn part(head: u32) -> PoolKey {
    PoolKey { dev: 50, head }
}

fn flags(maps: &Observed, key: PoolKey) -> u32 {
    maps.pools[&key].flags
}

/// Brings the maps in line with these lines.
fn at(maps: &mut Observed, host: &mut Host, lines: &[&str]) {
    let mut next = Host::new(POLICY, &lines.concat());
    next.next_generation = host.next_generation;
    std::mem::swap(&mut next.overrides, &mut host.overrides);
    *host = next;
    host.apply(maps);
}

#[test]
fn each_export_of_a_server_is_its_own() {
    let (mut maps, mut host) = (Observed::default(), Host::new(POLICY, ""));
    at(&mut maps, &mut host, &[HOME, FIRST, SECOND]);
    assert_ne!(flags(&maps, whole(50)) & POOL_PARTS, 0);
    assert_ne!(flags(&maps, part(70)) & POOL_OUTSIDE, 0, "the home directory is free");
    let (one, two) = (maps.pools[&part(71)], maps.pools[&part(72)]);
    assert!(one.pool_id != two.pool_id && one.generation != two.generation);
    host.overrides.sealed.insert(one.pool_id);
    host.apply(&mut maps);
    let modes = [71, 72].map(|mount| Mode::from_u32(maps.pools[&part(mount)].mode));
    assert_eq!(modes, [Some(Mode::Sealed), Some(Mode::Guarded)], "a seal is one export's");
}

#[test]
fn a_pool_goes_on_when_another_export_comes_to_its_superblock() {
    let (mut maps, mut host) = (Observed::default(), Host::new(POLICY, ""));
    at(&mut maps, &mut host, &[FIRST]);
    let before = maps.pools[&whole(50)];
    assert!(is_pool(&before));
    host.overrides.sealed.insert(before.pool_id);
    at(&mut maps, &mut host, &[FIRST, HOME]);
    let after = maps.pools[&part(71)];
    assert_eq!(
        (after.generation, after.pool_id),
        (before.generation, before.pool_id),
        "leases go on"
    );
    assert_eq!(Mode::from_u32(after.mode), Some(Mode::Sealed));
    assert_ne!(flags(&maps, whole(50)) & POOL_PARTS, 0);

    // The home directory goes, and the superblock keeps its parts.
    at(&mut maps, &mut host, &[FIRST]);
    assert_eq!(maps.pools[&part(71)], after);
    assert!(!maps.pools.contains_key(&part(70)) && flags(&maps, whole(50)) & POOL_PARTS != 0);
}

#[test]
fn a_part_that_is_unmounted_stays_until_it_is_mounted_again_or_its_number_is_anothers() {
    let (mut maps, mut host) = (Observed::default(), Host::new(POLICY, ""));
    at(&mut maps, &mut host, &[HOME, FIRST, SECOND]);
    let one = maps.pools[&part(71)];
    at(&mut maps, &mut host, &[HOME, SECOND]);
    assert_eq!(maps.pools[&part(71)], one, "open directories may still reach it");
    at(&mut maps, &mut host, &[HOME, SECOND, AGAIN]);
    assert!(!maps.pools.contains_key(&part(71)));
    assert_eq!(maps.pools[&part(79)].pool_id, one.pool_id);

    at(&mut maps, &mut host, &[HOME, SECOND]);
    assert!(maps.pools.contains_key(&part(79)));
    let bind = "79 1 0:50 /me /elsewhere rw - nfs4 nas:/export/home rw,addr=10.0.0.9\n";
    at(&mut maps, &mut host, &[HOME, SECOND, bind]);
    assert!(!maps.pools.contains_key(&part(79)), "the number is a mount's of the home directory");

    // The kernel removes the superblock's entry at its end, and the agent the rest of its parts.
    maps.pools.remove(&whole(50));
    at(&mut maps, &mut host, &[]);
    assert!(maps.pools.is_empty(), "{:?}", maps.pools);
}

#[test]
fn parts_are_no_joins_pools() {
    let (mut maps, mut host) = (Observed::default(), Host::new(POLICY, ""));
    at(&mut maps, &mut host, &[HOME, FIRST]);
    assert!(!is_own(part(71), &maps.pools[&part(71)]));
    at(&mut maps, &mut host, &[]);
    let mut alone = Observed::default();
    at(&mut alone, &mut host, &[FIRST]);
    assert!(is_own(whole(50), &alone.pools[&whole(50)]));
}

/// The modes that the whole superblock goes through.
fn modes_of_the_whole(operations: &[MapOperation]) -> Vec<Mode> {
    let mode = |operation: &MapOperation| match operation {
        MapOperation::UpdatePool { key, entry } if *key == whole(50) && is_pool(entry) => {
            Mode::from_u32(entry.mode)
        }
        _ => None,
    };
    operations.iter().filter_map(mode).collect()
}

#[test]
fn a_part_of_another_root_never_meets_new_actors_of_the_whole() {
    let policy = |actors: &str| {
        format!(
            "version = 1\n[[root]]\npath = \"/r\"\nfilesystems = [\"nfs\"]\nactors = [{actors}]\n\
             [[root]]\npath = \"/s\"\nfilesystems = [\"nfs\"]\n"
        )
    };
    let other = SECOND.replace("/r/two", "/s/two");
    let both = format!("{FIRST}{other}");
    let (mut host, started_maps) = started(&policy(""), FIRST);
    let (next_generation, mut maps) = (host.next_generation, started_maps.clone());
    host = Host { next_generation, ..Host::new(&policy("{cgroup=\"/g\"}"), &both) };
    let operations = host.apply(&mut maps);
    assert_eq!(modes_of_the_whole(&operations), [Mode::Sealed], "until the part has its entry");
    let modes = [71, 72].map(|mount| Mode::from_u32(maps.pools[&part(mount)].mode));
    assert_eq!(modes, [Some(Mode::Guarded); 2]);

    // If no actor is new, nobody is denied in between.
    let mut maps = started_maps;
    host = Host { next_generation, ..Host::new(&policy(""), &both) };
    assert_eq!(modes_of_the_whole(&host.apply(&mut maps)), []);
}
