//! The book of a host with two pools.

use std::path::Path;

use guard_common::policy::CEPH_SUPER_MAGIC;

use super::*;
use crate::model::classify::classify;
use crate::model::classify::clusters::Clusters;
use crate::model::mounts::Snapshot;
use crate::model::policy::parse;

const POLICY: &str = "version = 1\n[[root]]\npreset = \"incus\"\n";
const ONE: &str = "61 31 0:43 / /var/lib/incus/storage-pools/one rw - ceph u@f.c=/one rw\n";
const TWO: &str = "62 31 0:44 / /var/lib/incus/storage-pools/two rw - ceph u@f.c=/two rw\n";

/// A pool that the kernel has had an entry for, and whose mount is gone.
pub(in crate::daemon) fn known(generation: u64, pool_id: u64) -> KnownPool {
    let key = PoolKey::superblock(43);
    let entry = PoolEntry { generation, pool_id, ..PoolEntry::default() };
    let pool = detached(key, &entry);
    let (root, mode, cause) = (PathBuf::new(), Mode::Guarded, ModeCause::Policy);
    KnownPool { pool, key, root, entry, mode, cause }
}

pub(in crate::daemon) fn peer(uid: u32) -> Peer {
    Peer { pid: Some(7), uid, gid: uid, login_uid: Some(1000), start_ticks: Some(1) }
}

/// A host with two pools, and the kernel's entries for them.
struct Host {
    policy: Policy,
    classification: Classification,
    overrides: Overrides,
    entries: BTreeMap<PoolKey, PoolEntry>,
    book: PoolBook,
}

impl Host {
    fn new() -> Self {
        let policy = parse(POLICY, Path::new("policy.toml")).unwrap();
        let table = Snapshot::parse(format!("{ONE}{TWO}").as_bytes());
        let classification = classify(&table, &policy, &Clusters::default());
        let actor_set = policy.roots()[0].actor_set();
        let entry = |(index, pool): (usize, &Pool)| {
            let entry = PoolEntry {
                generation: index as u64 + 1,
                pool_id: pool.pool_id,
                magic: CEPH_SUPER_MAGIC,
                mode: Mode::Guarded as u32,
                actor_set,
                ..PoolEntry::default()
            };
            (PoolKey::superblock(pool.dev), entry)
        };
        let entries = classification.pools.iter().enumerate().map(entry).collect();
        Self {
            policy,
            classification,
            overrides: Overrides::default(),
            entries,
            book: PoolBook::default(),
        }
    }

    fn set_modes(&mut self, modes: [Mode; 2]) {
        for (entry, mode) in self.entries.values_mut().zip(modes) {
            entry.mode = mode as u32;
        }
    }

    fn update(&mut self, asked: Option<Asked>) -> BookChanges {
        let sources = BookSources {
            policy: &self.policy,
            classification: &self.classification,
            overrides: &self.overrides,
            asked,
        };
        self.book.update(&self.entries, sources)
    }
}

fn modes(changes: &BookChanges) -> Vec<(Option<String>, ModeCause, Option<u32>)> {
    let mode = |body: &Body| match body {
        Body::Mode(mode) => Some((mode.place.pool.clone(), mode.cause, mode.uid)),
        _ => None,
    };
    changes.records.iter().filter_map(mode).collect()
}

#[test]
fn a_pool_is_told_once_and_its_end_too() {
    let mut host = Host::new();
    let first = host.update(None);
    let names = ["one", "two"].map(str::to_owned);
    let appeared = first.records.iter().map(|body| match body {
        Body::Pool(pool) if pool.change == PoolChange::Appeared => pool.place.pool.clone(),
        other => panic!("{other:?}"),
    });
    assert_eq!(appeared.collect::<Vec<_>>(), names.clone().map(Some));
    assert_eq!((host.update(None).records.len(), first.ended.len()), (0, 0));

    host.entries.remove(&PoolKey::superblock(43));
    let last = host.update(None);
    assert_eq!(last.ended, [1]);
    assert!(matches!(&last.records[..], [Body::Pool(pool)] if pool.change == PoolChange::Ended));
    assert!(host.book.get(1).is_none() && host.book.get(2).is_some());
    assert_eq!(host.book.place(1).pool.as_ref(), Some(&names[0]), "for records that come late");
    assert_eq!(host.book.place(99), Place::default());
}

#[test]
fn who_asked_is_named_for_the_pool_asked_about_alone() {
    let mut host = Host::new();
    host.update(None);
    host.set_modes([Mode::Sealed; 2]);
    let asked = Some(Asked { generation: 1, peer: peer(0) });
    let changes = host.update(asked);
    assert_eq!(
        modes(&changes),
        [
            (Some("one".to_owned()), ModeCause::Operator, Some(0)),
            (Some("two".to_owned()), ModeCause::Policy, None)
        ]
    );
}

#[test]
fn a_release_that_nobody_ended_has_expired() {
    let mut host = Host::new();
    host.set_modes([Mode::Released; 2]);
    host.update(None);
    host.set_modes([Mode::Guarded; 2]);
    let changes = host.update(Some(Asked { generation: 2, peer: peer(0) }));
    let causes: Vec<ModeCause> = modes(&changes).into_iter().map(|(_, cause, _)| cause).collect();
    assert_eq!(causes, [ModeCause::Expiry, ModeCause::Operator]);
}

#[test]
fn a_pool_whose_mount_is_gone_keeps_its_name_while_its_superblock_lives() {
    let mut host = Host::new();
    host.update(None);
    host.classification = Classification::default();
    host.update(None);
    assert_eq!(host.book.get(1).unwrap().pool.name, "one");
    // To an agent that starts now it has only its number.
    host.book = PoolBook::default();
    host.update(None);
    assert_ne!(host.book.get(1).unwrap().pool.name, "one");
}

#[test]
fn a_hosts_own_filesystem_is_no_pool_of_a_join() {
    let mut host = Host::new();
    let actor_set = host.policy.roots()[0].actor_set();
    host.entries.get_mut(&PoolKey::superblock(44)).unwrap().flags |=
        guard_common::policy::POOL_VISITOR;
    host.update(None);
    let own: Vec<u64> =
        host.book.own_pools(actor_set).map(|known| known.entry.generation).collect();
    assert_eq!(own, [1]);
    assert_eq!(host.book.alive(actor_set).len(), 1);
    assert_eq!(host.book.own_pools(actor_set + 1).count(), 0);
}
