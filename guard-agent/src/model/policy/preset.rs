//! Presets for the storage daemons: their roots, their filesystems, their actors.

/// Values that a root takes where the file says nothing.
#[derive(Debug)]
pub(super) struct Preset {
    pub(super) name: &'static str,
    /// A root each, unless the file names one: distributions differ, and a path that is not on a
    /// host guards nothing.
    pub(super) paths: &'static [&'static str],
    pub(super) filesystems: &'static [&'static str],
    pub(super) cgroups: &'static [&'static str],
    pub(super) executables: &'static [&'static str],
    pub(super) guests: &'static [&'static str],
    pub(super) namespaces: &'static [&'static str],
    /// The daemon's join into a cluster is followed (`join = "incus"`).
    pub(super) follows_incus: bool,
}

pub(super) const PRESETS: &[Preset] = &[
    Preset {
        name: "incus",
        paths: &["/var/lib/incus"],
        filesystems: &["ceph"],
        cgroups: &["/system.slice/incus.service"],
        // The packages of Debian and Fedora, Zabbly, and Alpine, which has no unit.
        executables: &["/usr/libexec/incus/incusd", "/opt/incus/bin/incusd", "/usr/sbin/incusd"],
        guests: &[],
        namespaces: &[],
        follows_incus: true,
    },
    Preset {
        name: "lxd",
        // Debian's package, the snap.
        paths: &["/var/lib/lxd", "/var/snap/lxd/common/lxd"],
        filesystems: &["ceph"],
        // The snap's daemon moves itself to the root cgroup, or if that is refused to `/.lxc`
        // (daemon.start in lxd-pkg-snap): there only its executable tells it.
        cgroups: &["/system.slice/lxd.service", "/system.slice/snap.lxd.daemon.service", "/.lxc"],
        // snapd's directory on Debian and Ubuntu, and on Fedora.
        executables: &["/snap/lxd/current/bin/lxd", "/var/lib/snapd/snap/lxd/current/bin/lxd"],
        guests: &[],
        namespaces: &["/run/snapd/ns/lxd.mnt"],
        follows_incus: false,
    },
    Preset {
        name: "kubelet",
        // kubeadm, k3s, RKE2 and Canonical's k8s; MicroK8s; k0s.
        paths: &[
            "/var/lib/kubelet",
            "/var/snap/microk8s/common/var/lib/kubelet",
            "/var/lib/k0s/kubelet",
        ],
        filesystems: &["ceph", "nfs", "cifs", "fuse.ceph-fuse", "fuse.glusterfs"],
        // Nobody: clean-up through a mount that is still there, the kubelet's (kubernetes#7360,
        // k3s#3264) or a CSI plugin's (kubernetes#101441), is the incident. After an unmount
        // neither deletes in the volume.
        cgroups: &[],
        executables: &[],
        // Pods, with the cgroup driver `systemd` and with `cgroupfs`.
        guests: &["/kubepods.slice", "/kubepods"],
        namespaces: &[],
        follows_incus: false,
    },
    Preset {
        name: "docker",
        // Distributions' and Docker's packages, the snap.
        paths: &["/var/lib/docker", "/var/snap/docker/common/var-lib-docker"],
        filesystems: &["nfs", "cifs", "ceph"],
        // Nobody: the engine unmounts a volume before it removes the directory.
        cgroups: &[],
        executables: &[],
        // The parents of containers' cgroups, with the driver `systemd` and with `cgroupfs`.
        guests: &["/system.slice", "/docker"],
        namespaces: &[],
        follows_incus: false,
    },
];

pub(super) fn named(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}
