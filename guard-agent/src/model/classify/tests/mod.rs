//! Mount tables as they are seen on hosts.

mod names;

use super::*;
use crate::model::policy::parse;

const POLICY: &str = r#"
version = 1
[[root]]
path = "/var/lib/incus"
filesystems = ["ceph", "nfs"]
[[root]]
path = "/var/lib/incus/inner"
filesystems = ["ceph"]
[[root]]
path = "/srv/trial"
filesystems = ["tmpfs"]
"#;

fn policy() -> Policy {
    parse(POLICY, Path::new("policy.toml")).unwrap()
}

fn table(lines: &[&str]) -> Classification {
    classify(&Snapshot::parse(lines.join("\n").as_bytes()), &policy(), &Clusters::default())
}

const POOL: &str = "78 31 0:43 / /var/lib/incus/storage-pools/shared rw shared:20 - ceph \
                    admin@f0.fs=/pool-a rw,mon_addr=10.0.0.1:3300";

#[test]
fn a_pool_and_its_aliases() {
    let found = table(&[
        "27 1 254:0 / / rw - ext4 /dev/vda rw",
        "70 31 0:43 /custom/v /var/lib/incus/devices/p_i/disk.v rw - ceph admin@f0.fs=/pool-a rw",
        POOL,
        "79 31 0:43 / /mnt/alias rw - ceph admin@f0.fs=/pool-a rw",
        "80 31 0:44 / /mnt/elsewhere rw - ceph admin@f0.fs=/ rw",
        "81 31 0:45 / /var/lib/incus/devices rw - tmpfs none rw",
    ]);
    let [pool] = &found.pools[..] else { panic!("one pool: {found:?}") };
    assert_eq!((pool.dev, pool.name.as_str(), pool.magic), (43, "shared", 0x00c3_6400));
    assert_eq!(pool.mountpoint, Path::new("/var/lib/incus/storage-pools/shared"));
    assert_eq!(pool.mountpoints.len(), 3);
    let reasons: Vec<_> =
        found.ignored.iter().map(|ignored| (ignored.dev & 0xff, ignored.reason)).collect();
    assert_eq!(
        reasons,
        [
            (0, IgnoredReason::OtherFilesystem),
            (44, IgnoredReason::OutsideRoots),
            (45, IgnoredReason::NotGuardedHere)
        ]
    );
}

#[test]
fn only_a_bind_below_the_root() {
    let found = table(&[
        "70 31 0:43 / /mnt/ceph rw - ceph admin@f0.fs=/ rw",
        "71 31 0:43 /custom/v /var/lib/incus/devices/p_i/disk.v rw - ceph admin@f0.fs=/ rw",
    ]);
    assert_eq!(found.pools[0].name, "v");
    assert!(found.ignored.is_empty());
}

#[test]
fn roots_are_compared_by_component_and_the_innermost_wins() {
    let found = table(&[
        "1 0 0:1 / /var/lib/incus rw - ceph m:/a rw",
        "2 0 0:2 / /var/lib/incus-backup rw - ceph m:/b rw",
        "3 0 0:3 / /var/lib/incus/inner/p rw - ceph m:/c rw",
        "4 0 0:4 / /var/lib/incus/inner/q rw - nfs4 s:/d rw",
        "5 0 0:5 / /var/lib/incus/n rw - nfs4 s:/d rw",
        "6 0 0:6 / /srv/trial/t rw - tmpfs none rw",
        "7 0 0:7 / /srv/trial/u rw - ceph m:/u rw",
    ]);
    let pools: Vec<_> = found.pools.iter().map(|pool| (pool.dev, pool.root)).collect();
    assert_eq!(pools, [(1, 0), (3, 1), (4, 0), (5, 0), (6, 2)]);
    let reasons: Vec<_> =
        found.ignored.iter().map(|ignored| (ignored.dev, ignored.reason)).collect();
    assert_eq!(reasons, [(2, IgnoredReason::OutsideRoots), (7, IgnoredReason::NotGuardedHere)]);
}

#[test]
fn pool_ids_outlive_a_remount_and_tell_pools_apart() {
    let id = |line: &str| table(&[line]).pools[0].pool_id;
    let first = id(POOL);
    assert_eq!(first, id(&POOL.replace("0:43", "0:99").replace("78 31", "200 31")));
    assert_eq!(first, id(&POOL.replace("/pool-a rw", "/pool-a/ rw")));
    assert_ne!(first, id(&POOL.replace("pool-a", "pool-b")));
    assert_ne!(first, id(&POOL.replace("f0.fs", "f1.fs")));
    let trial = "6 0 0:6 / /srv/trial/t rw - tmpfs none rw";
    assert_ne!(id(trial), id(&trial.replace("trial/t", "trial/u")));
}

#[test]
fn a_mountpoint_that_is_not_utf8_is_a_pool() {
    let snapshot = Snapshot::parse(b"1 0 0:1 / /var/lib/incus/\xff rw - ceph m:/a rw\n");
    assert_eq!(classify(&snapshot, &policy(), &Clusters::default()).pools[0].name, "a");
}

#[test]
fn exports_that_share_a_superblock_are_told_apart_and_their_directories_are_not() {
    let nfs = |id: u32, place: &str, source: &str| {
        format!("{id} 31 0:50 / {place} rw - nfs4 {source} rw,addr=10.0.0.9")
    };
    let lines = [
        nfs(70, "/home", "nas:/export/home"),
        nfs(71, "/var/lib/incus/one", "nas:/export/one/"),
        nfs(72, "/var/lib/incus/two", "nas:/export/two"),
        // Binds of directories: of a pool, of the home directory, and of a name that only begins
        // alike.
        nfs(73, "/srv/volume", "nas:/export/one/volume"),
        nfs(74, "/srv/me", "nas:/export/home/me"),
        nfs(75, "/srv/other", "nas:/export/twofold"),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let found = table(&lines);
    let mounts: Vec<Vec<u32>> =
        found.pools.iter().map(|pool| pool.mounts.iter().copied().collect()).collect();
    assert_eq!(mounts, [vec![71, 73], vec![72]]);
    assert!(found.pools.iter().all(|pool| pool.shared && !pool.visitor), "{:?}", found.pools);
    let outside: Vec<u32> = found.outsiders.iter().map(|outsider| outsider.head).collect();
    assert_eq!(outside, [70, 74, 75]);
    let own = PoolKey { dev: 50, head: 71 };
    assert_eq!(found.pool(own).map(|pool| pool.head), Some(71));
    assert!(found.pool(PoolKey::superblock(50)).is_none());

    // Alone, or with none but its own directories, it has the superblock for itself.
    let found = table(&[lines[1], lines[3]]);
    assert!(!found.pools[0].shared && found.pools[0].mountpoints.len() == 2, "{:?}", found.pools);
    assert!(found.pool(PoolKey::superblock(50)).is_some());

    // A directory of an export that was mounted elsewhere before.
    let found = table(&[
        &nfs(70, "/mnt", "nas:/export"),
        &nfs(71, "/var/lib/incus/disk", "nas:/export/disk"),
    ]);
    assert_eq!((found.pools.len(), found.outsiders.len()), (1, 1));
}

#[test]
fn a_cephfs_superblock_is_one_pool_whatever_monitors_its_mounts_name() {
    let found = table(&[
        "78 31 0:43 / /var/lib/incus/storage-pools/shared rw - ceph 10.0.0.1,10.0.0.2:/pool \
         rw,mds_namespace=fs",
        "79 31 0:43 / /mnt rw - ceph 10.0.0.2,10.0.0.1:/pool rw,mds_namespace=fs",
    ]);
    let [pool] = &found.pools[..] else { panic!("one pool: {found:?}") };
    assert!(!pool.shared && pool.mountpoints.len() == 2, "a node follows it: {pool:?}");
    assert_eq!(found.outsiders, []);
}
