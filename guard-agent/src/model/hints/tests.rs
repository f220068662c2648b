//! Policies that are valid and hardly meant, beside ones that are meant so.

use super::*;
use crate::model::policy::parse;

fn policy(root: &str) -> Policy {
    parse(&format!("version = 1\n[[root]]\n{root}\n"), Path::new("policy.toml")).unwrap()
}

fn codes(hints: &[Hint]) -> Vec<&str> {
    hints.iter().map(|hint| hint.code.as_str()).collect()
}

#[test]
fn what_is_hardly_meant() {
    for (root, code, told) in [
        ("filesystems = [\"ceph\", \"fuse.*\"]", "glob-in-filesystems", "`fuse.*`"),
        ("actors = [{ cgroup = \"/system.slice/docker-*.scope\" }]", "glob-in-cgroup", "docker-*"),
        ("guests = [\"/lxc.payload.*\"]", "glob-in-cgroup", "of a guest"),
        (
            "actors = [{ cgroup = \"/sys/fs/cgroup/system.slice/a.service\" }]",
            "cgroup-below-sysfs",
            "`/sys/fs/cgroup/system.slice/a.service`",
        ),
        ("guests = [\"/sys/fs/cgroup/kubepods\"]", "cgroup-below-sysfs", "of a guest"),
        ("actors = [{ cgroup = \"/system.slice\" }]", "wide-actor", "`/system.slice`"),
        ("actors = [{ cgroup = \"/user.slice\" }]", "wide-actor", "`/user.slice`"),
        ("actors = [{ cgroup = \"/kubepods\" }]", "wide-actor", "`/kubepods`"),
        (
            "actors = [{ cgroup = \"/kubepods.slice/kubepods-burstable.slice\" }]",
            "wide-actor",
            "kubepods-b",
        ),
        ("actors = [{ executable = \"/bin/bash\" }]", "wide-actor", "`bash`"),
        ("actors = [{ executable = \"/usr/bin/python3.11\" }]", "wide-actor", "`python3.11`"),
        (
            "actors = [{ cgroup = \"/system.slice\", executable = \"/bin/rm\" }]",
            "wide-actor",
            "`/system.slice`",
        ),
    ] {
        let hints = lint(&policy(&format!("path = \"/a\"\n{root}")));
        assert_eq!(codes(&hints), [code], "{root}");
        assert!(
            hints[0].what.contains(told) && hints[0].what.starts_with("root /a: "),
            "{:?}",
            hints[0]
        );
    }
}

#[test]
fn what_may_be_meant_so() {
    for root in [
        "filesystems = [\"ceph\", \"fuse.juicefs\"]",
        "actors = [{ cgroup = \"/system.slice/a.service\" }, { cgroup = \
         \"/system.slice/b@1.service\" }]",
        "actors = [{ cgroup = \"/system.slice/a.service\", executable = \"/bin/sh\" }]",
        "actors = [{ cgroup = \"/user.slice\", executable = \"/opt/backup/prune\" }]",
        "actors = [{ executable = \"/usr/libexec/incus/incusd\" }]",
        "guests = [\"/kubepods.slice\", \"/system.slice\"]",
        "actors = []",
    ] {
        assert_eq!(lint(&policy(&format!("path = \"/a\"\n{root}"))), [], "{root}");
    }
    for preset in ["incus", "lxd", "kubelet", "docker"] {
        assert_eq!(lint(&policy(&format!("preset = \"{preset}\""))), [], "{preset}");
    }
}

#[test]
fn actors_that_are_not_here() {
    let resolved = |policy: &Policy, cgroups: &[&str]| Resolved {
        roots: policy.roots().iter().map(|_| Some(guard_common::RootKey::default())).collect(),
        cgroups: cgroups.iter().map(|path| ((*path).to_owned(), 7)).collect(),
        ..Resolved::default()
    };
    let own = policy(
        "path = \"/a\"\nactors = [{ cgroup = \"/system.slice/a.service\" }, \
         { cgroup = \"/system.slice/b.service\", executable = \"/opt/b\" }]",
    );
    let hints = unresolved(&own, &resolved(&own, &["/system.slice/a.service"]));
    assert_eq!(codes(&hints), ["unresolved-actor"]);
    let told = "root /a: not on this host: cgroup /system.slice/b.service with executable /opt/b";
    assert_eq!(hints[0].what, told);
    // A preset's actors are those of several packages.
    let preset = policy("preset = \"incus\"");
    assert_eq!(unresolved(&preset, &resolved(&preset, &["/system.slice/incus.service"])), []);
    assert_eq!(codes(&unresolved(&preset, &resolved(&preset, &[]))), ["unresolved-actor"]);
    // The same holds if the daemon's directory does not exist.
    let absent = Resolved { roots: vec![None], ..Resolved::default() };
    assert_eq!(unresolved(&preset, &absent), []);
}

#[test]
fn shares_that_policy_does_not_name() {
    let table = "1 0 8:1 / / rw - ext4 /dev/sda rw\n\
                 2 1 0:40 / /var/lib/kubelet/pods/a/volumes/kubernetes.io~csi/j/mount rw - \
                 fuse.juicefs JuiceFS:j rw\n3 1 0:41 / \
                 /var/lib/kubelet/pods/b/volumes/kubernetes.io~csi/k/mount rw - fuse.juicefs \
                 JuiceFS:k rw\n4 1 0:42 / /var/lib/kubelet/l rw - lustre 10.0.0.1@tcp:/l rw\n5 1 \
                 0:43 / /var/lib/kubelet/s3 rw - fuse.s3fs s3fs rw\n6 1 0:44 / /var/lib/kubelet/t \
                 rw - tmpfs tmpfs rw\n7 1 0:45 / /var/lib/kubelet/n rw - nfs4 nas:/n rw\n\
                 8 1 0:46 / /var/lib/kubelet/o rw - fuse.fuse-overlayfs fuse-overlayfs rw\n\
                 9 1 0:47 / /mnt/gcs rw - fuse.gcsfuse bucket rw\n\
                 10 1 8:2 / /var/lib/kubelet/d rw - ext4 /dev/sdb rw\n\
                 11 1 0:48 / /var/lib/kubelet-backup rw - fuse.gcsfuse bucket rw\n";
    let snapshot = Snapshot::parse(table.as_bytes());
    let told = |policy: &Policy| -> Vec<String> {
        unnamed_shares(policy, &snapshot).into_iter().map(|hint| hint.what).collect()
    };
    let kubelet = policy("path = \"/var/lib/kubelet\"\nfilesystems = [\"nfs\"]");
    let place = "root /var/lib/kubelet: ";
    assert_eq!(
        told(&kubelet),
        [
            format!(
                "{place}fuse.juicefs at /var/lib/kubelet/pods/a/volumes/kubernetes.io~csi/j/mount \
                 (mounts of it: 2) is not protected"
            ),
            format!("{place}lustre at /var/lib/kubelet/l is not protected"),
            format!("{place}fuse.s3fs at /var/lib/kubelet/s3 is not protected"),
        ]
    );
    let nested = format!(
        "path = \
         \"/var/lib/kubelet\"\n{}",
        "[[root]]\npath = \"/var/lib/kubelet/pods\""
    );
    let nested = told(&policy(&nested)).concat();
    assert_eq!(nested.matches("fuse.juicefs").count(), 1, "the innermost root tells: {nested}");
    let named = "filesystems = [\"nfs\", \"fuse.juicefs\", \"lustre\", \"fuse.s3fs\"]";
    assert!(told(&policy(&format!("path = \"/var/lib/kubelet\"\n{named}"))).is_empty());
}
