//! What policy knows about the storage daemons: their root, their filesystems, who may delete.

/// Values that a root takes where the file says nothing.
#[derive(Debug)]
pub(super) struct Preset {
    pub(super) name: &'static str,
    pub(super) path: &'static str,
    pub(super) filesystems: &'static [&'static str],
    pub(super) cgroups: &'static [&'static str],
    pub(super) executables: &'static [&'static str],
    /// The daemon's join into a cluster is followed (`join = "incus"`).
    pub(super) follows_incus: bool,
}

pub(super) const PRESETS: &[Preset] = &[
    Preset {
        name: "incus",
        path: "/var/lib/incus",
        filesystems: &["ceph"],
        cgroups: &["/system.slice/incus.service"],
        // The packages of Debian and Fedora, Zabbly, and Alpine, which has no unit.
        executables: &["/usr/libexec/incus/incusd", "/opt/incus/bin/incusd", "/usr/sbin/incusd"],
        follows_incus: true,
    },
    Preset {
        name: "lxd",
        path: "/var/snap/lxd/common/lxd",
        filesystems: &["ceph"],
        cgroups: &["/system.slice/snap.lxd.daemon.service"],
        executables: &[],
        follows_incus: false,
    },
    Preset {
        name: "kubelet",
        path: "/var/lib/kubelet",
        filesystems: &["ceph", "nfs", "cifs", "fuse.ceph-fuse", "fuse.glusterfs"],
        // The pods, with both cgroup drivers. Not the kubelet: its own clean-up through a live mount is
        // the incident (kubernetes#7360, k3s#3264).
        cgroups: &["/kubepods.slice", "/kubepods"],
        executables: &[],
        follows_incus: false,
    },
];

pub(super) fn named(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}
