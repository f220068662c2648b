//! Tables of mounts, and the unmounts that are planned for them.

use super::*;
use crate::model::mounts::Snapshot;

const ROOT: &str = "/var/lib/incus";

fn table(namespace: u64, is_host: bool, lines: &[&str]) -> NamespaceTable {
    let mounts = Snapshot::parse(lines.join("\n").as_bytes());
    assert_eq!(mounts.problems(), []);
    NamespaceTable { namespace, is_host, pid: 1, mounts }
}

fn targets() -> Vec<Target> {
    vec![
        Target { dev: 43, generation: 7, name: "shared".to_owned() },
        Target { dev: 44, generation: 8, name: "other".to_owned() },
    ]
}

fn steps(plan: &UnmountPlan) -> Vec<(u64, u32)> {
    plan.steps.iter().map(|step| (step.namespace, step.mount_id)).collect()
}

fn planned(lines: &[&str]) -> UnmountPlan {
    plan(&[table(1, true, lines)], &targets(), Path::new(ROOT))
}

const HOST: &str = "1 0 8:1 / / rw - ext4 /dev/vda rw";
const POOL: &str = "78 1 0:43 / /var/lib/incus/storage-pools/shared rw - ceph a rw";

#[test]
fn what_is_on_top_goes_first() {
    let cases: [(&str, &[&str], &[u32]); 6] = [
        ("nothing of ours", &[HOST, "79 1 0:45 / /mnt rw - ceph a rw"], &[]),
        ("a pool", &[HOST, POOL], &[78]),
        (
            "stacked on itself",
            &[HOST, POOL, "80 78 0:43 / /var/lib/incus/storage-pools/shared rw - ceph a rw"],
            &[80, 78],
        ),
        (
            "a pool on a pool, and a bind of it elsewhere",
            &[
                HOST,
                POOL,
                "81 78 0:44 / /var/lib/incus/storage-pools/shared/b rw - ceph b rw",
                "82 1 0:43 /v /srv/v rw - ceph a rw",
            ],
            &[82, 81, 78],
        ),
        (
            "the daemon's own on it: a tmpfs, and a bind of the root's filesystem",
            &[
                HOST,
                POOL,
                "83 78 0:50 / /var/lib/incus/storage-pools/shared/t rw - tmpfs t rw",
                "84 83 8:1 /x /var/lib/incus/storage-pools/shared/t/x rw - ext4 /dev/vda rw",
            ],
            &[84, 83, 78],
        ),
        (
            "a pool in the daemon's tmpfs: the tmpfs stays",
            &[
                HOST,
                "85 1 0:51 / /var/lib/incus/devices rw - tmpfs t rw",
                "86 85 0:43 /v /var/lib/incus/devices/v rw - ceph a rw",
            ],
            &[86],
        ),
    ];
    for (name, lines, expected) in cases {
        let plan = planned(lines);
        let found: Vec<u32> = steps(&plan).iter().map(|step| step.1).collect();
        assert_eq!(found, expected, "{name}");
        assert_eq!(plan.obstacles, [], "{name}");
    }
}

#[test]
fn what_is_not_incus_own_is_named_and_everything_below_it_stays() {
    let disk = "90 78 8:17 / /var/lib/incus/storage-pools/shared/disk rw - ext4 /dev/vdb rw";
    let above = "91 90 0:43 /v /var/lib/incus/storage-pools/shared/disk/v rw - ceph a rw";
    let plan = planned(&[HOST, POOL, disk, above, "92 1 0:44 / /srv/b rw - ceph b rw"]);
    // The mounts on the stranger can go, and so can the other pool.
    assert_eq!(steps(&plan), [(1, 92), (1, 91)]);
    let [Obstacle::Foreign { mountpoint, on, fs_type, .. }] = &plan.obstacles[..] else {
        panic!("{:?}", plan.obstacles)
    };
    assert_eq!(mountpoint, Path::new("/var/lib/incus/storage-pools/shared/disk"));
    assert_eq!(
        (on.as_path(), fs_type.as_str()),
        (Path::new("/var/lib/incus/storage-pools/shared"), "ext4")
    );
    // Outside the root a tmpfs is somebody's.
    let plan = planned(&[
        HOST,
        "92 1 0:44 / /srv/b rw - ceph b rw",
        "93 92 0:52 / /srv/b/t rw - tmpfs t rw",
    ]);
    assert_eq!((steps(&plan).len(), plan.obstacles.len()), (0, 1));
}

#[test]
fn a_hidden_mount_waits_for_what_hides_it() {
    let below = "78 1 0:43 / /var/lib/incus/a/b rw - ceph a rw";
    let own = planned(&[HOST, below, "79 1 0:50 / /var/lib/incus/a rw - tmpfs t rw"]);
    assert_eq!(steps(&own), [(1, 79), (1, 78)]);
    let pools = planned(&[HOST, below, "79 1 0:44 / /var/lib/incus/a rw - ceph b rw"]);
    assert_eq!(steps(&pools), [(1, 79), (1, 78)]);
    let strange = planned(&[HOST, below, "79 1 8:17 / /var/lib rw - ext4 /dev/vdb rw"]);
    assert_eq!(steps(&strange), []);
    assert!(
        matches!(&strange.obstacles[..], [Obstacle::Hidden { by, .. }] if by == Path::new("/var/lib"))
    );
    // Hidden through the mount that it is mounted on.
    let deep = planned(&[
        HOST,
        "70 1 0:60 / /var/lib/incus/x rw - tmpfs t rw",
        "78 70 0:43 / /var/lib/incus/x/p rw - ceph a rw",
        "79 1 8:17 / /var/lib/incus rw - ext4 /dev/vdb rw",
    ]);
    assert_eq!((steps(&deep).len(), deep.obstacles.len()), (0, 1));
}

#[test]
fn the_hosts_namespace_comes_first_and_all_of_them_come() {
    let guest = table(
        2,
        false,
        &["50 0 8:9 / / rw - ext4 /dev/vdc rw", "51 50 0:43 /v /data rw - ceph a rw"],
    );
    let copy = table(
        3,
        false,
        &[
            "60 0 8:1 / / rw - ext4 /dev/vda rw",
            "61 60 0:43 / /var/lib/incus/storage-pools/shared rw - ceph a rw",
        ],
    );
    let plan = plan(&[guest, copy, table(9, true, &[HOST, POOL])], &targets(), Path::new(ROOT));
    assert_eq!(steps(&plan), [(9, 78), (2, 51), (3, 61)]);
}

#[test]
fn a_table_that_contradicts_itself_ends() {
    let plan = planned(&[
        "1 2 0:43 / /a rw - ceph a rw",
        "2 1 0:43 / /a/b rw - ceph a rw",
        "3 3 0:43 / /c rw - ceph a rw",
    ]);
    assert_eq!(steps(&plan), [(1, 3)]);
}
