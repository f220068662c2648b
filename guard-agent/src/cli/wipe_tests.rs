//! Refusals of a wipe, and the plan that an operator reads.

use super::super::fake::{self, FakeAgent};
use super::super::wipe_plan::{Obstacle, Plan, size};
use super::*;
use crate::host::wipe::instances::{Instance, InstanceKind};
use crate::host::wipe::local_pools::LocalPool;
use crate::host::wipe::{Census, InTheWay, Part};
use crate::model::control::{Reply, Request};
use crate::model::join::Daemon;

fn asked(
    state: &'static str,
    host: &Path,
    arguments: &[&str],
) -> (Result<(), CliError>, Vec<&'static str>) {
    let node = fake::node_in(host);
    let mut pool = fake::pool("shared", guard_common::Mode::Sealed);
    pool.root = Some(node.root.display().to_string());
    let agent = FakeAgent::start(move |request| match request {
        Request::Pools => Reply::Pools(vec![pool.clone()]),
        Request::RollbackStatus { .. } => fake::rollback_status(state),
        other => panic!("{other:?}"),
    });
    let args = fake::wipe_args(arguments);
    (may_wipe(&agent.global(), &args, &node), agent.asked())
}

#[test]
fn a_wipe_is_refused_before_anything_is_stopped() {
    let host = || tempfile::tempdir().unwrap();
    let (result, requests) = asked("joined", host().path(), &[]);
    assert_eq!(result.unwrap_err().exit(), Exit::Refused);
    assert_eq!(requests, ["pools", "rollback-status"]);
    asked("join-failed", host().path(), &[]).0.unwrap();
}

#[test]
fn a_local_pool_is_in_the_way_unless_the_operator_says_otherwise() {
    let with_image = || {
        let host = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(host.path().join("incus/disks")).unwrap();
        std::fs::write(host.path().join("incus/disks/tank.img"), "x").unwrap();
        host
    };
    let error = asked("join-failed", with_image().path(), &[]).0.unwrap_err();
    assert!(error.to_string().contains("disks/tank.img"), "{error}");
    assert_eq!(error.exit(), Exit::Refused);
    asked("join-failed", with_image().path(), &["--despite-local-pools"]).0.unwrap();
}

#[test]
fn the_plan_names_every_step_and_what_is_in_the_way() {
    let part = Part { files: 3, directories: 1, bytes: 5 << 20 };
    let census = Census {
        all: part,
        parts: [("storage-pools".to_owned(), part)].into(),
        stopped_at: Some(PathBuf::from("/var/lib/incus/storage-pools/shared")),
        ..Census::default()
    };
    let plan = Plan {
        root: PathBuf::from("/var/lib/incus"),
        unit: Some("incus.service".to_owned()),
        daemon: Daemon::Stopped,
        pools: vec!["shared at /var/lib/incus/storage-pools/shared".to_owned()],
        unmounts: vec![OwnMount {
            mount_id: 4,
            dev: 51,
            mountpoint: PathBuf::from("/var/lib/incus/devices"),
            fs_type: "tmpfs".to_owned(),
        }],
        obstacles: vec![
            Obstacle::Mount(InTheWay {
                mountpoint: PathBuf::from("/var/lib/incus/x"),
                fs_type: "ext4".to_owned(),
                source: "/dev/vdb".to_owned(),
                device: "8:17".to_owned(),
            }),
            Obstacle::Instance(Instance {
                name: "v1".to_owned(),
                kind: InstanceKind::VirtualMachine,
                pid: 60,
                command: "qemu-kvm".to_owned(),
                uses: PathBuf::from("/run/incus/v1/qemu.monitor"),
            }),
            Obstacle::LocalPool(LocalPool::Zfs { name: "tank".to_owned() }),
        ],
        census,
    };
    let text = render(&plan);
    for part in [
        "1. keep incus.service from starting, stop it and its sockets (Incus does not run)",
        "2. roll back pools: shared at",
        "3. unmount Incus's own: /var/lib/incus/devices (tmpfs)",
        "4. delete 3 files and 1 directories, 5.0 MiB",
        "counted up to the mountpoint /var/lib/incus/storage-pools/shared",
        "IN THE WAY: /var/lib/incus/x (ext4 /dev/vdb)",
        "IN THE WAY: virtual machine v1 (process 60, qemu-kvm) uses /run/incus/v1/qemu.monitor",
        "IN THE WAY: the ZFS pool tank is imported",
        "--despite-local-pools",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn sizes() {
    for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 40, "3.0 TiB")] {
        assert_eq!(size(bytes), text);
    }
}

#[test]
fn obstacles_are_told_apart_in_json() {
    let pool = LocalPool::Lvm { group: "data".to_owned(), volumes: 2 };
    let value = serde_json::to_value(Obstacle::LocalPool(pool)).unwrap();
    let expected =
        serde_json::json!({"obstacle": "local-pool", "pool": "lvm", "group": "data", "volumes": 2});
    assert_eq!(value, expected);
}

#[test]
fn a_root_that_is_a_link_hides_no_local_pool() {
    let host = tempfile::tempdir().unwrap();
    let mut node = fake::node_in(host.path());
    std::fs::create_dir_all(host.path().join("incus/disks")).unwrap();
    std::fs::write(host.path().join("incus/disks/tank.img"), "x").unwrap();
    let link = host.path().join("link");
    std::os::unix::fs::symlink(host.path().join("incus"), &link).unwrap();
    node.root = link;
    let found = local_pools(&node).unwrap();
    let real = std::fs::canonicalize(host.path()).unwrap().join("incus/disks/tank.img");
    assert!(matches!(&found[..], [LocalPool::Image { path, .. }] if *path == real), "{found:?}");
}
