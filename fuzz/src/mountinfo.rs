//! The text of `/proc/PID/mountinfo`. An empty line, which the kernel never writes, divides the
//! input into the table before and the table after a change.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::LazyLock;

use guard_agent::model::classify::classify;
use guard_agent::model::classify::clusters::Clusters;
use guard_agent::model::mounts::{MountEntry, Snapshot, parse};
use guard_agent::model::policy::Policy;

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let text = "version = 1\n[[root]]\npreset = \"incus\"\n[[root]]\npath = \
                \"/var/lib/incus/storage-pools/inner\"\nfilesystems = [\"nfs\", \
                \"fuse.ceph-fuse\", \"tmpfs\"]\n";
    guard_agent::model::policy::parse(text, Path::new("policy.toml")).expect("the policy is right")
});

pub fn check(text: &[u8]) {
    no_line_is_lost(text);
    let middle = text.windows(2).position(|pair| pair == b"\n\n").unwrap_or(text.len());
    let (before, after) = (Snapshot::parse(&text[..middle]), Snapshot::parse(&text[middle..]));
    a_difference_leads_from_one_to_the_other(&before, &after);
    for snapshot in [&before, &after] {
        entries_come_back_from_their_text(snapshot.entries());
        lookups_find_what_is_above(snapshot);
        other_views_have_the_same_mounts(snapshot);
        every_mount_is_classified(snapshot);
    }
}

fn no_line_is_lost(text: &[u8]) {
    let (entries, problems) = parse(text);
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    assert_eq!(
        entries.len() + problems.len(),
        lines.iter().filter(|line| !line.is_empty()).count()
    );
    assert!(problems.is_sorted_by(|one, next| one.line < next.line), "{problems:?}");
    for problem in &problems {
        assert_eq!(problem.text, String::from_utf8_lossy(lines[problem.line - 1]));
    }
}

fn entries_come_back_from_their_text(entries: &[MountEntry]) {
    let table: Vec<u8> = entries.iter().flat_map(print).collect();
    assert_eq!(parse(&table), (entries.to_vec(), Vec::new()));
}

/// As the kernel writes it, but with every byte escaped that could mean something.
fn print(entry: &MountEntry) -> Vec<u8> {
    let MountEntry { mount_id, parent_id, major, minor, .. } = entry;
    let mut line = format!("{mount_id} {parent_id} {major}:{minor}").into_bytes();
    let mut field = |bytes: &[u8]| {
        line.push(b' ');
        for byte in bytes {
            match byte {
                b'/' | b':' | b'=' | b',' | b'a'..=b'z' | b'0'..=b'9' => line.push(*byte),
                other => line.extend(format!("\\{other:03o}").bytes()),
            }
        }
    };
    field(entry.root.as_os_str().as_bytes());
    field(entry.mountpoint.as_os_str().as_bytes());
    field(entry.options.as_bytes());
    entry.propagation.iter().for_each(|tag| field(tag.as_bytes()));
    line.extend(b" -");
    let mut field = |bytes: &[u8]| {
        line.push(b' ');
        line.extend(bytes.iter().flat_map(|byte| format!("\\{byte:03o}").into_bytes()));
    };
    field(entry.fs_type.as_bytes());
    field(entry.source.as_bytes());
    field(entry.super_options.as_bytes());
    line.push(b'\n');
    line
}

fn a_difference_leads_from_one_to_the_other(before: &Snapshot, after: &Snapshot) {
    let diff = before.diff(after);
    // The kernel gives no id twice at one time.
    let (Some(mut mounts), Some(expected)) = (by_identity(before), by_identity(after)) else {
        return;
    };
    for entry in diff.removed {
        assert_eq!(mounts.remove(&identity(&entry)), Some(entry));
    }
    for (old, new) in diff.changed {
        assert_ne!(old, new);
        assert_eq!(mounts.insert(identity(&new), new), Some(old));
    }
    for entry in diff.added {
        assert_eq!(mounts.insert(identity(&entry), entry), None);
    }
    assert_eq!(mounts, expected);
    assert!(before.diff(before).is_empty() && after.diff(after).is_empty());
}

fn identity(entry: &MountEntry) -> (u32, u32) {
    (entry.mount_id, entry.dev())
}

fn by_identity(snapshot: &Snapshot) -> Option<BTreeMap<(u32, u32), MountEntry>> {
    let ids: BTreeSet<u32> = snapshot.entries().iter().map(|entry| entry.mount_id).collect();
    let unique = ids.len() == snapshot.entries().len();
    unique
        .then(|| snapshot.entries().iter().map(|entry| (identity(entry), entry.clone())).collect())
}

fn lookups_find_what_is_above(snapshot: &Snapshot) {
    for entry in snapshot.entries() {
        assert!(
            snapshot.mount(entry.mount_id).is_some_and(|found| found.mount_id == entry.mount_id)
        );
        let path = entry.mountpoint.join("x");
        if let Some(found) = snapshot.mount_of(&path) {
            assert!(path.starts_with(&found.mountpoint), "{path:?} does not lie on {found:?}");
        }
    }
}

fn other_views_have_the_same_mounts(snapshot: &Snapshot) {
    let below = snapshot.below(Path::new("/proc/7/root"));
    let ids = |snapshot: &Snapshot| snapshot.entries().iter().map(identity).collect::<Vec<_>>();
    assert_eq!(ids(&below), ids(snapshot));
    for entry in below.entries().iter().filter(|entry| !entry.mountpoint.is_relative()) {
        assert!(entry.mountpoint.starts_with("/proc/7/root"), "{entry:?}");
    }
    assert_eq!(ids(&snapshot.joined(&below)), ids(snapshot));
}

fn every_mount_is_classified(snapshot: &Snapshot) {
    let classification = classify(snapshot, &POLICY, &Clusters::default());
    // Exports that share a superblock are pools and places outside side by side.
    let shared: HashSet<u32> =
        classification.pools.iter().filter(|pool| pool.shared).map(|pool| pool.dev).collect();
    let is_shared = |dev: &u32| shared.contains(dev);
    assert!(classification.pools.is_sorted_by(|one, next| {
        one.dev < next.dev || one.dev == next.dev && is_shared(&one.dev)
    }));
    assert!(classification.outsiders.is_sorted_by(|one, next| {
        one.dev < next.dev || one.dev == next.dev && is_shared(&one.dev)
    }));
    let pools: HashSet<u32> = classification.pools.iter().map(|pool| pool.dev).collect();
    for pool in &classification.pools {
        assert!(
            pool.pool_id != 0 && pool.mountpoint.starts_with(POLICY.roots()[pool.root].path()),
            "{pool:?}"
        );
    }
    let both = |dev: &u32| pools.contains(dev) && !is_shared(dev);
    assert!(!classification.outsiders.iter().any(|outsider| both(&outsider.dev)));
    let others = snapshot.entries().iter().map(MountEntry::dev).filter(|dev| !pools.contains(dev));
    let ignored = classification.ignored.iter().map(|ignored| ignored.dev);
    assert!(others.eq(ignored.filter(|dev| !is_shared(dev))));
}
