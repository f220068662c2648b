//! The checks of the host itself. Pure.

use super::check::Check;
use super::facts::{HostFacts, KernelOption};
use super::fix;
use crate::host::host_view;

/// Oldest kernel that is tested.
pub(super) const OLDEST_KERNEL: (u32, u32) = (6, 1);

const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

pub(super) fn kernel_version(facts: &HostFacts) -> Check {
    let (code, name) = ("kernel-version", "kernel version");
    let (major, minor) = OLDEST_KERNEL;
    match facts.kernel_version() {
        Some(version) if version >= OLDEST_KERNEL => Check::ok(code, name, &facts.kernel_release),
        Some(_) => {
            let fix = format!("boot a kernel {major}.{minor} or newer; older ones are not tested");
            Check::warn(code, name, &facts.kernel_release, fix)
        }
        None => {
            let found = format!("cannot be told from {:?}", facts.kernel_release);
            Check::warn(code, name, found, "mount /proc: mount -t proc proc /proc")
        }
    }
}

pub(super) fn btf(facts: &HostFacts) -> Check {
    let (code, name) = ("btf-missing", "kernel BTF");
    if facts.has_btf {
        return Check::ok(code, name, "/sys/kernel/btf/vmlinux");
    }
    let fix = "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (all distributions' kernels are)";
    Check::fail(code, name, "no /sys/kernel/btf/vmlinux", fix)
}

pub(super) fn config_bpf_lsm(facts: &HostFacts) -> Check {
    let (code, name) = ("bpf-lsm-not-built", "CONFIG_BPF_LSM");
    match (facts.hook_in_btf("bpf_lsm_inode_unlink"), facts.bpf_lsm) {
        (Some(true), _) => Check::ok(code, name, "built in (bpf_lsm hooks are in the BTF)"),
        (None, KernelOption::Set) => Check::ok(code, name, "built in (kernel configuration)"),
        (Some(false), _) | (None, KernelOption::Unset) => {
            Check::fail(code, name, "not built in", "boot a kernel built with CONFIG_BPF_LSM=y")
        }
        (None, KernelOption::Unknown) => Check::warn(
            code,
            name,
            "cannot be told: no readable BTF or kernel configuration",
            "modprobe configs, which shows it as /proc/config.gz; or look into the kernel's \
             package",
        ),
    }
}

pub(super) fn active_lsm(facts: &HostFacts) -> Check {
    let (code, name) = ("bpf-not-in-lsm-list", "active LSM list");
    match &facts.active_lsms {
        Some(list) if list.iter().any(|lsm| lsm == "bpf") => Check::ok(code, name, list.join(",")),
        Some(list) => {
            let found = format!(
                "{} (without bpf: the kernel attaches programs and never calls them)",
                list.join(",")
            );
            Check::fail(code, name, found, fix::boot_parameter(facts, list))
        }
        None => {
            let mount = "mount -t securityfs securityfs /sys/kernel/security";
            match facts.lsm_parameter() {
                Some(list) if list.iter().any(|lsm| lsm == "bpf") => {
                    let found = format!(
                        "securityfs is not mounted; the kernel was booted with lsm={}",
                        list.join(",")
                    );
                    Check::warn(code, name, found, mount)
                }
                Some(list) => {
                    let found = format!("booted with lsm={}, without bpf", list.join(","));
                    Check::fail(code, name, found, fix::boot_parameter(facts, &list))
                }
                None => Check::warn(code, name, "cannot be told: securityfs is not mounted", mount),
            }
        }
    }
}

pub(super) fn security_path(facts: &HostFacts) -> Check {
    let (code, name) = ("security-path-not-built", "CONFIG_SECURITY_PATH");
    let in_btf = facts.hook_in_btf("bpf_lsm_path_unlink");
    let in_btf = in_btf.map(|hook| hook || facts.hook_in_btf("security_path_unlink") == Some(true));
    match (in_btf, facts.security_path) {
        (Some(true), _) => Check::ok(code, name, "built in (path hooks are in the BTF)"),
        (None, KernelOption::Set) => Check::ok(code, name, "built in (kernel configuration)"),
        (Some(false), _) | (None, KernelOption::Unset) => Check::fail(
            code,
            name,
            "not built in: actors, guest views and mounts that are not classified yet cannot be \
             told apart",
            "boot a kernel built with CONFIG_SECURITY_PATH=y (kernels with AppArmor, Tomoyo or \
             Landlock have it)",
        ),
        (None, KernelOption::Unknown) => Check::warn(
            code,
            name,
            "cannot be told: no readable BTF or kernel configuration",
            "modprobe configs, which shows it as /proc/config.gz; or look into the kernel's \
             package",
        ),
    }
}

pub(super) fn lockdown(facts: &HostFacts) -> Check {
    let (code, name) = ("lockdown", "kernel lockdown");
    match facts.lockdown.as_deref() {
        None => Check::ok(code, name, "not active"),
        Some("confidentiality") => Check::fail(
            code,
            name,
            "confidentiality: BPF programs may not read kernel memory",
            "boot with lockdown=integrity (or without lockdown=)",
        ),
        Some(mode) => Check::ok(code, name, mode),
    }
}

pub(super) fn capabilities(facts: &HostFacts) -> Check {
    let (code, name) = ("capabilities", "capabilities");
    let fix = if facts.is_root {
        "give them back to this root: in a unit by CapabilityBoundingSet=, in a container by its \
         privileges"
    } else {
        "run as root; in a unit: AmbientCapabilities=CAP_SYS_ADMIN CAP_BPF CAP_PERFMON \
         CAP_SYS_PTRACE"
    };
    let Some(effective) = facts.effective_capabilities else {
        return Check::warn(code, name, "cannot be told from /proc/self/status", fix);
    };
    let wanted = [
        (CAP_SYS_ADMIN, "CAP_SYS_ADMIN (the canary mounts a filesystem)"),
        (CAP_BPF, "CAP_BPF"),
        (CAP_PERFMON, "CAP_PERFMON"),
        (CAP_SYS_PTRACE, "CAP_SYS_PTRACE (the mount namespace of PID 1)"),
    ];
    let has = |capability: u32| effective & (1 << capability) != 0;
    let missing: Vec<&str> =
        wanted.iter().filter(|(capability, _)| !has(*capability)).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return Check::ok(code, name, "all that are needed");
    }
    Check::fail(code, name, format!("missing: {}", missing.join(", ")), fix)
}

pub(super) fn bpffs(facts: &HostFacts) -> Check {
    let (code, name) = ("bpffs-missing", "bpffs");
    if facts.is_mounted("bpf", "/sys/fs/bpf") {
        return Check::ok(code, name, "/sys/fs/bpf");
    }
    let fix = "mount -t bpf bpf /sys/fs/bpf\n(systemd does it at boot; else add to /etc/fstab: \
               bpf /sys/fs/bpf bpf defaults 0 0)";
    Check::fail(code, name, "not mounted at /sys/fs/bpf: programs cannot outlive the agent", fix)
}

pub(super) fn cgroup2(facts: &HostFacts) -> Check {
    let (code, name) = ("cgroup2-missing", "cgroup v2");
    match facts.cgroup2_mountpoint() {
        Some(place) if place == "/sys/fs/cgroup" => Check::ok(code, name, place),
        Some(place) => Check::warn(
            code,
            name,
            format!("only at {place} (hybrid hierarchy)"),
            "boot with systemd.unified_cgroup_hierarchy=1, so that services are in cgroups of \
             version 2",
        ),
        None => Check::warn(
            code,
            name,
            "not mounted: actors by cgroup and leases match no process",
            "mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1",
        ),
    }
}

pub(super) fn pid_namespace(facts: &HostFacts) -> Check {
    let (code, name) = ("pid-namespace", "PID namespace");
    match &facts.pid_namespace {
        Some(found) if host_view::is_hosts(found) => Check::ok(code, name, "the host's"),
        Some(found) => Check::fail(
            code,
            name,
            format!(
                "{found}, a container's: the agent would take the host for a guest, and does not \
                 start"
            ),
            "run it on the host, or give its container the host's PID namespace (--pid=host, \
             hostPID: true) and mounts",
        ),
        None => Check::warn(
            code,
            name,
            "cannot be told: /proc/self/ns/pid cannot be read",
            "mount /proc: mount -t proc proc /proc",
        ),
    }
}

pub(super) fn mount_namespace(facts: &HostFacts) -> Check {
    let (code, name) = ("mount-namespace", "mount namespace");
    match &facts.mount_namespaces {
        Some((own, host)) if own == host => Check::ok(code, name, "the host's"),
        Some((own, host)) => {
            let found = format!(
                "{own}, while PID 1 is in {host}: paths would be looked up in the wrong one"
            );
            let fix = "run the agent in the host's namespace: no PrivateMounts=, PrivateTmp= or \
                       Protect*= in its unit";
            Check::fail(code, name, found, fix)
        }
        None if facts.is_root => {
            let fix = "give this root CAP_SYS_PTRACE, and mount the host's /proc";
            Check::warn(code, name, "cannot be told: /proc/1/ns/mnt cannot be read", fix)
        }
        None => Check::warn(code, name, "cannot be told (needs root)", "run as root"),
    }
}
