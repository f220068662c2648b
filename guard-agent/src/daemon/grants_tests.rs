//! Grants over a state directory of each test's own.

use std::path::Path;

use guard_common::policy::POOL_OPERATOR;
use guard_common::{Mode, PoolEntry, PoolKey};

use super::*;
use crate::daemon::pool_book::tests::{known, peer};
use crate::host::clock;
use crate::model::policy::parse;

const POLICY: &str = "version = 1\n[[root]]\npath = \"/r\"\nfilesystems = [\"ceph\"]\n";

/// No grants, and no file that could be written.
fn grants() -> Grants {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path(), "boot", &Observed::default())
}

fn open(directory: &Path, boot_id: &str, observed: &Observed) -> Grants {
    let (file, problem) = StateFile::open(directory, boot_id).unwrap();
    assert_eq!(problem, None);
    let policy = parse(POLICY, Path::new("policy.toml")).unwrap();
    Grants::open(file, observed, &policy, 1000)
}

/// Maps with one pool, sealed (`flags`: cause of the seal) or released until 5000.
fn observed(mode: Mode, flags: u32) -> Observed {
    let policy = parse(POLICY, Path::new("policy.toml")).unwrap();
    let entry = PoolEntry {
        generation: 3,
        pool_id: 33,
        mode: mode as u32,
        flags,
        actor_set: policy.roots()[0].actor_set(),
        expires_boot_ns: 5000,
        ..PoolEntry::default()
    };
    Observed { pools: [(PoolKey::superblock(43), entry)].into(), ..Observed::default() }
}

fn release(grants: &mut Grants, generation: u64) -> Lease {
    let (offset, now) = clock::read();
    let (ttl, peer) = (Duration::from_secs(60), peer(0));
    let terms = LeaseTerms { kind: LeaseKind::Release, ttl, reason: " wipe ", peer: &peer };
    let lease = grants.new_lease(&known(generation, 33), terms, now, offset);
    grants.add(lease.clone());
    lease
}

fn released(grants: &Grants) -> BTreeMap<u64, u64> {
    grants.overrides(BTreeMap::new()).released
}

#[test]
fn a_seal_is_one_set_for_the_plan_the_file_and_the_next_boot() {
    let directory = tempfile::tempdir().unwrap();
    let mut grants = open(directory.path(), "first", &Observed::default());
    grants.seal(33, 3);
    assert_eq!(grants.overrides(BTreeMap::new()).sealed, BTreeSet::from([33]));
    assert!(grants.is_sealed(33) && !grants.is_sealed(34));
    grants.save().unwrap();
    let mut grants = open(directory.path(), "second", &Observed::default());
    assert!(grants.is_sealed(33));
    grants.unseal(33);
    grants.save().unwrap();
    assert!(!open(directory.path(), "second", &Observed::default()).is_sealed(33));
}

#[test]
fn what_a_starting_agent_finds_sealed_stays_until_an_operator_says_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let mut grants = open(directory.path(), "boot", &observed(Mode::Sealed, 0));
    let overrides = grants.overrides(BTreeMap::new());
    assert!(overrides.is_sealed(33) && overrides.sealed.is_empty(), "nobody said so");
    grants.unseal(33);
    assert!(!grants.is_sealed(33));

    // By the mark of an operator's word it is an operator's, even against the file.
    let grants = open(directory.path(), "boot", &observed(Mode::Sealed, POOL_OPERATOR));
    assert_eq!(grants.overrides(BTreeMap::new()).sealed, BTreeSet::from([33]));
    assert!(grants.is_unsaved(), "it is to be written");
}

#[test]
fn a_release_is_in_force_as_long_as_its_lease() {
    let mut grants = grants();
    let lease = release(&mut grants, 3);
    assert_eq!(released(&grants), BTreeMap::from([(3, lease.ends_boot_ns)]));
    assert_eq!((lease.reason.as_str(), lease.ttl_seconds), ("wipe", 60));
    let other = release(&mut grants, 4);
    assert_eq!(grants.close(|known| known.id == lease.id), [lease]);
    assert_eq!(released(&grants), BTreeMap::from([(4, other.ends_boot_ns)]), "the other's stays");
    grants.seal(33, 4);
    assert_eq!(released(&grants), BTreeMap::new(), "a seal ends it");
}

#[test]
fn a_release_found_in_the_kernel_ends_by_its_time() {
    let directory = tempfile::tempdir().unwrap();
    let mut grants = open(directory.path(), "boot", &observed(Mode::Released, 0));
    assert_eq!(released(&grants), BTreeMap::from([(3, 5000)]));
    assert!(!grants.expire_releases(4999));
    assert!(grants.expire_releases(5000));
    assert_eq!((released(&grants), grants.expire_releases(5001)), (BTreeMap::new(), false));
}

#[test]
fn a_leases_number_is_never_given_out_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut grants = open(directory.path(), "boot", &Observed::default());
    let first = release(&mut grants, 3);
    grants.close(|_| true);
    grants.save().unwrap();
    let mut grants = open(directory.path(), "boot", &Observed::default());
    assert_ne!(release(&mut grants, 3).id, first.id);
    assert_eq!(grants.leases().len(), 1);
}

#[test]
fn a_seal_goes_along_with_a_pools_new_id() {
    let mut grants = grants();
    assert!(grants.keep_seal(34) && grants.is_sealed(34));
    assert!(!grants.keep_seal(34), "it is no news the second time");
}
