//! Restarts, other versions, and damage.

use guard_common::Tier;

use super::*;
use crate::model::audit::record::LeaseKind;
use crate::model::events::Name;
use crate::model::time::Time;

fn lease() -> Lease {
    let time: Time = serde_json::from_str("\"2026-01-02T03:04:05Z\"").unwrap();
    Lease {
        id: "lease-1".into(),
        kind: LeaseKind::Release,
        generation: 7,
        pool_id: 9,
        pool: "shared".into(),
        mountpoint: "/var/lib/incus/storage-pools/shared".into(),
        reason: "test".into(),
        uid: 0,
        login_uid: Some(1000),
        granted: time,
        ends: time,
        ends_boot_ns: 5,
        ttl_seconds: 600,
        command: None,
    }
}

#[test]
fn seals_outlive_a_reboot_and_leases_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let (mut file, _) = StateFile::open(directory.path(), "boot-1").unwrap();
    file.state.sealed.insert(9);
    file.state.leases.push(lease());
    file.save().unwrap();
    let (same_boot, problem) = StateFile::open(directory.path(), "boot-1").unwrap();
    assert_eq!((same_boot.state.leases.len(), problem), (1, None));
    let (next_boot, _) = StateFile::open(directory.path(), "boot-2").unwrap();
    assert!(next_boot.state.leases.is_empty());
    assert!(next_boot.state.sealed.contains(&9));
}

#[test]
fn a_damaged_file_is_kept_aside_and_told() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(NAME), b"{\"version\":1,\"boo").unwrap();
    let (file, problem) = StateFile::open(directory.path(), "boot-1").unwrap();
    assert!(file.state.sealed.is_empty() && file.is_unsaved());
    assert!(problem.unwrap().contains("state.json.unreadable"));
    assert!(directory.path().join("state.json.unreadable").exists());
}

#[test]
fn leases_are_read_without_touching_the_file() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(read_leases(directory.path(), "boot-1", 0).unwrap(), []);
    let (mut file, _) = StateFile::open(directory.path(), "boot-1").unwrap();
    file.state.leases.push(lease());
    file.save().unwrap();
    let ids = |boot: &str, now| read_leases(directory.path(), boot, now).unwrap().len();
    assert_eq!((ids("boot-1", 4), ids("boot-1", 5), ids("boot-2", 4)), (1, 0, 0));
    fs::write(directory.path().join(NAME), "{").unwrap();
    assert_eq!(ids("boot-1", 4), 1, "the copy has it");
    fs::write(directory.path().join(COPY), "{").unwrap();
    assert!(read_leases(directory.path(), "boot-1", 4).is_err());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "nothing was set aside");
}

#[test]
fn a_save_that_fails_leaves_the_old_file() {
    let directory = tempfile::tempdir().unwrap();
    let (mut file, _) = StateFile::open(directory.path(), "boot-1").unwrap();
    file.state.sealed.insert(1);
    file.save().unwrap();
    fs::create_dir(directory.path().join("state.json.new")).unwrap();
    file.state.sealed.insert(2);
    assert!(file.save().is_err() && file.is_unsaved());
    let (old, _) = StateFile::open(directory.path(), "boot-1").unwrap();
    assert_eq!(old.state.sealed.len(), 1);
    fs::remove_dir(directory.path().join("state.json.new")).unwrap();
    file.save().unwrap();
    assert!(!file.is_unsaved());
    let (new, _) = StateFile::open(directory.path(), "boot-1").unwrap();
    assert_eq!(new.state.sealed.len(), 2);
}

/// A state with a seal, a lease and a tier, as it is on disk.
fn on_disk() -> Vec<u8> {
    let mut state = SavedState::empty("boot-1");
    state.sealed.extend([9, 17_446_744_073_709_551_615]);
    state.leases.push(lease());
    state.tier = Some(Name(Tier::BpfLsm));
    state.saved = 7;
    text::write(&state)
}

fn found(file: &[u8], copy: &[u8]) -> SavedState {
    let texts = vec![(PathBuf::from(NAME), file.to_vec()), (PathBuf::from(COPY), copy.to_vec())];
    understand(texts, "boot-1").state.unwrap()
}

/// The same file as a later version of the agent might write it.
fn of_a_later_version() -> serde_json::Value {
    let mut value: serde_json::Value = serde_json::from_slice(&on_disk()).unwrap();
    value["version"] = 2.into();
    value["holds"] = serde_json::json!({"9": "because"});
    value["sealed"].as_array_mut().unwrap().push(serde_json::json!({"pool_id": 11, "reason": "x"}));
    value["leases"][0]["ticket"] = "T-1".into();
    value["leases"]
        .as_array_mut()
        .unwrap()
        .push(serde_json::json!({"id": "lease-9", "kind": "other"}));
    value["tier"] = "a-better-one".into();
    value
}

#[test]
fn a_downgrade_keeps_seals_and_whatever_it_does_not_know() {
    let directory = tempfile::tempdir().unwrap();
    let newer = of_a_later_version();
    fs::write(directory.path().join(NAME), newer.to_string()).unwrap();
    let (mut older, lost) = StateFile::open(directory.path(), "boot-1").unwrap();
    assert_eq!(older.state.sealed.len(), 2);
    assert_eq!((older.state.leases.len(), older.state.tier), (1, None));
    assert!(lost.unwrap().contains("\"pool_id\":11"), "a seal that is not in force is told");
    older.state.sealed.insert(3);
    older.save().unwrap();

    for name in [NAME, COPY] {
        let text = fs::read(directory.path().join(name)).unwrap();
        let upgraded: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(upgraded["holds"], newer["holds"]);
        assert_eq!(upgraded["tier"], newer["tier"]);
        assert_eq!(upgraded["leases"][1], newer["leases"][1]);
        let seals = upgraded["sealed"].as_array().unwrap();
        assert_eq!(seals.len(), 4);
        assert!(seals.contains(&newer["sealed"][2]) && seals.contains(&3.into()));
    }
    let (next_boot, _) = StateFile::open(directory.path(), "boot-2").unwrap();
    assert!(!String::from_utf8(text::write(&next_boot.state)).unwrap().contains("lease-9"));
}

#[test]
fn an_upgrade_reads_the_first_form_of_the_file() {
    let first =
        br#"{"version": 1, "boot_id": "boot-1", "sealed": [9], "leases": [], "next_lease": 4}"#;
    let state = text::read(first).unwrap();
    assert_eq!((state.sealed.len(), state.next_lease, state.saved), (1, 4, 0));
}

#[test]
fn no_damage_of_one_file_costs_a_seal() {
    let good = on_disk();
    let seals = text::read(&good).unwrap().sealed;
    for at in 0..good.len() {
        let flipped = |bits: u8| {
            let mut bytes = good.clone();
            bytes[at] ^= bits;
            bytes
        };
        for damaged in
            [good[..at].to_vec(), good[at..].to_vec(), flipped(1), flipped(0x80), flipped(0x10)]
        {
            for state in [found(&damaged, &good), found(&good, &damaged)] {
                let shown = String::from_utf8_lossy(&damaged);
                assert!(state.sealed.is_superset(&seals), "byte {at}: {:?}: {shown}", state.sealed);
                let leases: Vec<u64> = state.leases.iter().map(|lease| lease.generation).collect();
                assert!(leases.contains(&7) || text::read(&damaged).is_ok(), "byte {at}: {shown}");
            }
        }
    }
}

#[test]
fn what_is_left_of_two_damaged_files_is_used_and_told() {
    let good = on_disk();
    let end_of_seals = good.iter().position(|byte| *byte == b']').unwrap();
    for length in 1..good.len() {
        let directory = tempfile::tempdir().unwrap();
        for name in [NAME, COPY] {
            fs::write(directory.path().join(name), &good[..length]).unwrap();
        }
        let (file, lost) = StateFile::open(directory.path(), "boot-1").unwrap();
        assert!(lost.unwrap().contains("state.json.copy.unreadable"), "{length}");
        assert!(file.state.sealed.is_subset(&text::read(&good).unwrap().sealed), "{length}");
        if length > end_of_seals {
            assert_eq!(file.state.sealed.len(), 2, "{length}");
        }
    }
}

#[test]
fn a_lost_file_is_made_again_of_its_copy_and_of_the_kernels_maps() {
    let directory = tempfile::tempdir().unwrap();
    let (mut file, _) = StateFile::open(directory.path(), "boot-1").unwrap();
    file.state.sealed.insert(9);
    file.save().unwrap();
    fs::remove_file(directory.path().join(NAME)).unwrap();
    let (mut file, lost) = StateFile::open(directory.path(), "boot-1").unwrap();
    assert_eq!((file.state.sealed.len(), lost), (1, None));
    assert!(!file.is_unsaved());
    file.adopt_seals(&BTreeSet::from([9]));
    assert!(!file.is_unsaved(), "nothing new");
    file.adopt_seals(&BTreeSet::from([9, 12]));
    assert!(file.is_unsaved() && file.state.sealed.contains(&12));
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_only_if_the_other_one_does_not_do() {
    for (unreadable, other) in [(NAME, COPY), (COPY, NAME)] {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(unreadable)).unwrap();
        assert!(StateFile::open(directory.path(), "boot-1").is_err());
        fs::write(directory.path().join(other), on_disk()).unwrap();
        let (file, lost) = StateFile::open(directory.path(), "boot-1").unwrap();
        assert_eq!((file.state.sealed.len(), lost), (2, None));
    }
}

#[test]
fn of_two_good_files_the_newer_one_holds() {
    let older = on_disk();
    let mut state = text::read(&older).unwrap();
    state.sealed.remove(&9);
    state.saved += 1;
    let newer = text::write(&state);
    assert_eq!(
        found(&newer, &older).sealed.len(),
        1,
        "an unseal, and a copy that was not written any more"
    );
    assert_eq!(found(&older, &newer).sealed.len(), 1);
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_a_state_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = text::read(&bytes);
        let _ = text::salvage(&bytes);
    }
}
