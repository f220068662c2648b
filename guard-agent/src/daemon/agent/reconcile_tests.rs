//! Reconciliation over maps in memory.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use guard_common::Mode;

use super::*;
use crate::model::plan::tests::apply;
use crate::model::policy::parse;

/// Maps in memory.
#[derive(Default)]
struct FakeMaps {
    observed: Observed,
    next_generation: u64,
    /// Number of superblocks that have ended.
    ended: u64,
    /// One ends while the plan is applied.
    one_ends_meanwhile: bool,
    /// Number of operations that fit.
    room: Option<usize>,
}

impl PolicyMaps for FakeMaps {
    fn superblocks_ended(&self) -> Result<u64, MapAccessError> {
        Ok(self.ended)
    }

    fn next_generation(&self) -> Result<u64, MapAccessError> {
        Ok(self.next_generation.max(1))
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), MapAccessError> {
        self.next_generation = plan.next_generation;
        self.ended += u64::from(self.one_ends_meanwhile);
        let fits = self.room.unwrap_or(usize::MAX);
        plan.operations.iter().take(fits).for_each(|one| apply(&mut self.observed, one));
        if plan.operations.len() > fits { Err(MapAccessError::full("POOLS")) } else { Ok(()) }
    }

    fn remove_pool(&mut self, key: &PoolKey) -> Result<(), MapAccessError> {
        self.observed.pools.remove(key);
        Ok(())
    }
}

/// A host whose guarded root is a directory of the test's own.
struct Host {
    directory: tempfile::TempDir,
    policy: Policy,
    view: MountView,
    maps: FakeMaps,
    /// Number of times that the mount table was read again.
    read_again: Cell<usize>,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display();
        let text = format!("version = 1\n[[root]]\npath = \"{path}\"\nfilesystems = [\"ceph\"]\n");
        let policy = parse(&text, Path::new("policy.toml")).unwrap();
        let (view, maps) = (MountView::default(), FakeMaps::default());
        Self { directory, policy, view, maps, read_again: Cell::new(0) }
    }

    /// A mount table with these pools: device number and name.
    fn table(&self, pools: &[(u32, &str)]) -> Snapshot {
        let root: PathBuf = self.directory.path().to_owned();
        let line = |(dev, name): &(u32, &str)| {
            let place = root.join(name);
            format!("{} 1 0:{dev} / {} rw - ceph u@f.c=/{name} rw\n", dev + 100, place.display())
        };
        let lines: String = pools.iter().map(line).collect();
        Snapshot::parse(format!("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n{lines}").as_bytes())
    }

    /// `first`: the mount table of the plan. `then`: the mount table when it is read again.
    fn reconcile(
        &mut self,
        first: &[(u32, &str)],
        then: io::Result<Snapshot>,
    ) -> Result<MapChanges, ReconcileError> {
        let snapshot = self.table(first);
        let ended_before = self.maps.ended;
        self.view.observe(&self.policy, snapshot);
        let observed = self.maps.observed.clone();
        let then = Cell::new(Some(then));
        let read_table = || {
            self.read_again.set(self.read_again.get() + 1);
            then.take().expect("it is read again once")
        };
        let wanted = MapSources {
            policy: &self.policy,
            view: &self.view,
            overrides: &Overrides::default(),
            host_mnt_ns: 1,
            now_boot_ns: 1000,
            ended_before,
            read_table: &read_table,
        };
        write_maps(&mut self.maps, &wanted, &observed)
    }

    fn modes(&self) -> BTreeMap<u32, Option<Mode>> {
        let pools = self.maps.observed.pools.iter();
        pools.map(|(key, entry)| (key.dev, Mode::from_u32(entry.mode))).collect()
    }
}

const ONE: (u32, &str) = (43, "one");
const TWO: (u32, &str) = (44, "two");

#[test]
fn a_mounted_pool_gets_an_entry_and_the_next_plan_is_empty() {
    let mut host = Host::new();
    let changes = host.reconcile(&[ONE], Ok(host.table(&[]))).unwrap();
    assert_eq!(changes.created, [PoolKey::superblock(43)]);
    assert_eq!(host.modes(), BTreeMap::from([(43, Some(Mode::Guarded))]));
    assert_eq!(host.read_again.get(), 0, "no superblock has ended meanwhile");
    let changes = host.reconcile(&[ONE], Ok(host.table(&[]))).unwrap();
    assert_eq!(changes, MapChanges::default());
}

#[test]
fn a_number_that_changed_hands_keeps_no_entry_and_others_keep_theirs() {
    let mut host = Host::new();
    host.maps.one_ends_meanwhile = true;
    let then = Ok(host.table(&[TWO, (43, "three")]));
    let changes = host.reconcile(&[ONE, TWO], then).unwrap();
    assert_eq!(changes.created, [PoolKey::superblock(44)]);
    assert_eq!(host.modes(), BTreeMap::from([(44, Some(Mode::Guarded))]));
    assert_eq!(host.read_again.get(), 1);
}

#[test]
fn a_table_that_cannot_be_read_again_leaves_the_pool_protected() {
    let mut host = Host::new();
    host.maps.one_ends_meanwhile = true;
    let error = host.reconcile(&[ONE], Err(io::Error::other("gone"))).unwrap_err();
    assert!(matches!(error, ReconcileError::MountTable(_)), "{error:?}");
    assert_eq!(host.modes(), BTreeMap::from([(43, Some(Mode::Guarded))]));
}

#[test]
fn full_maps_are_an_error_of_its_kind_and_the_next_round_goes_on() {
    let mut host = Host::new();
    host.maps.room = Some(1);
    let error = host.reconcile(&[ONE], Ok(host.table(&[]))).unwrap_err();
    assert!(matches!(&error, ReconcileError::Maps(error) if error.is_full()), "{error:?}");
    assert!(chain(&error).contains("POOLS"), "{}", chain(&error));
    host.maps.room = None;
    let changes = host.reconcile(&[ONE], Ok(host.table(&[]))).unwrap();
    assert_eq!(changes.created, [PoolKey::superblock(43)]);
}
