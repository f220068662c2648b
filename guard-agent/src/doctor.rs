//! Is this host fit to be protected? Every precondition, its state, and the exact fix.
//!
//! `facts` reads `/proc`, `/sys` and `/boot` below a root directory; `trial` has the kernel judge
//! what a tier needs; the checks here are pure.

mod facts;
mod fix;
#[cfg(test)]
mod tests;
mod tiers;
mod trial;

use std::fmt;

use guard_common::Tier;
use serde::{Deserialize, Serialize};

pub use facts::{HostFacts, KernelOption};
pub use tiers::known_obstacle;
pub use trial::{Trial, Trials};

use crate::hints::Hint;
use crate::host_view;
use crate::policy::{Policy, PolicyErrors};

/// Oldest kernel that is tested.
pub const OLDEST_KERNEL: (u32, u32) = (6, 1);

const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckState {
    Ok,
    /// It may work, or works in part.
    Warn,
    /// Nothing is enforced until this is fixed.
    Fail,
}

/// One precondition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// For people.
    pub name: String,
    pub state: CheckState,
    /// What was found.
    pub found: String,
    /// What to do; `None` if there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fix: Option<String>,
    /// Stable: for scripts, and the code of the posture's reason.
    pub code: String,
    /// The kernel's own words, where it has refused something: for who looks closer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub log: Option<String>,
}

impl Check {
    pub(crate) fn new(
        code: &str,
        name: &str,
        state: CheckState,
        found: impl Into<String>,
        fix: Option<String>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            state,
            found: found.into(),
            fix,
            code: code.to_owned(),
            log: None,
        }
    }

    pub(crate) fn ok(code: &str, name: &str, found: impl Into<String>) -> Self {
        Self::new(code, name, CheckState::Ok, found, None)
    }

    pub(crate) fn warn(
        code: &str,
        name: &str,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::new(code, name, CheckState::Warn, found, Some(fix.into()))
    }

    pub(crate) fn fail(
        code: &str,
        name: &str,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::new(code, name, CheckState::Fail, found, Some(fix.into()))
    }
}

/// All checks of the host itself.
pub fn checks(facts: &HostFacts) -> Vec<Check> {
    let mut checks = vec![
        kernel_version(facts),
        btf(facts),
        of_bpf_lsm_alone(facts, config_bpf_lsm(facts)),
        of_bpf_lsm_alone(facts, active_lsm(facts)),
        security_path(facts),
        lockdown(facts),
        capabilities(facts),
        bpffs(facts),
        cgroup2(facts),
        pid_namespace(facts),
        mount_namespace(facts),
    ];
    checks.extend(tiers::tiers(facts));
    checks
}

/// What only the strongest tier needs is no failure where the next one can be had.
fn of_bpf_lsm_alone(facts: &HostFacts, check: Check) -> Check {
    match check.state {
        CheckState::Fail if tiers::is_available(facts, Tier::FmodRet) => {
            Check { state: CheckState::Warn, ..check }
        }
        _ => check,
    }
}

/// Checks of the agent's own directories against a policy.
pub fn directory_checks(policy: &Policy, directories: &[&std::path::Path]) -> Vec<Check> {
    let name = "directories";
    let inside = directories.iter().filter_map(|directory| {
        let root = policy.roots().iter().find(|root| directory.starts_with(root.path()))?;
        let found =
            format!("{} is below the guarded root {}", directory.display(), root.path().display());
        let fix = "choose a directory outside every guarded root (--state-dir, --run-dir, \
                   --audit): whoever wipes the root would wipe the agent's state";
        Some(Check::fail("state-below-root", name, found, fix))
    });
    let inside: Vec<Check> = inside.collect();
    if inside.is_empty() {
        return vec![Check::ok("state-below-root", name, "outside every guarded root")];
    }
    inside
}

/// A line for each hint about the policy file, or one that says that there is none.
pub fn policy_checks(hints: &Result<Vec<Hint>, PolicyErrors>) -> Vec<Check> {
    const NAME: &str = "policy";
    match hints {
        Err(errors) => {
            let found = errors.to_string().lines().next().unwrap_or_default().to_owned();
            vec![Check::warn(
                "policy-wrong",
                NAME,
                found,
                "correct the file: guardctl policy check",
            )]
        }
        Ok(hints) if hints.is_empty() => {
            vec![Check::ok("policy", NAME, "nothing to look at again")]
        }
        Ok(hints) => hints
            .iter()
            .map(|hint| Check::warn(&hint.code, NAME, hint.what.clone(), hint.fix.clone()))
            .collect(),
    }
}

/// The worst state among checks.
pub fn worst(checks: &[Check]) -> CheckState {
    checks.iter().map(|check| check.state).max().unwrap_or(CheckState::Ok)
}

/// What all checks came to, in a line.
pub fn summary(checks: &[Check]) -> String {
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    let (failed, warned) = (count(CheckState::Fail), count(CheckState::Warn));
    let plural = if warned == 1 { "" } else { "s" };
    format!("{} checks, {failed} failed, {warned} warning{plural}", checks.len())
}

/// Checks as aligned lines, for people.
#[derive(Debug)]
pub struct Report<'c>(pub &'c [Check]);

impl fmt::Display for Report<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|check| check.name.len()).max().unwrap_or(0);
        for check in self.0 {
            let state = match check.state {
                CheckState::Ok => "ok  ",
                CheckState::Warn => "WARN",
                CheckState::Fail => "FAIL",
            };
            writeln!(out, "{state}  {:width$}  {}", check.name, check.found)?;
            for line in check.fix.iter().flat_map(|fix| fix.lines()) {
                writeln!(out, "      {:width$}  > {line}", "")?;
            }
            for line in check.log.iter().flat_map(|log| log.lines()) {
                writeln!(out, "      {:width$}  | {line}", "")?;
            }
        }
        Ok(())
    }
}

fn kernel_version(facts: &HostFacts) -> Check {
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

fn btf(facts: &HostFacts) -> Check {
    let (code, name) = ("btf-missing", "kernel BTF");
    if facts.has_btf {
        return Check::ok(code, name, "/sys/kernel/btf/vmlinux");
    }
    let fix = "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (all distributions' kernels are)";
    Check::fail(code, name, "no /sys/kernel/btf/vmlinux", fix)
}

fn config_bpf_lsm(facts: &HostFacts) -> Check {
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

fn active_lsm(facts: &HostFacts) -> Check {
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

fn security_path(facts: &HostFacts) -> Check {
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

fn lockdown(facts: &HostFacts) -> Check {
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

fn capabilities(facts: &HostFacts) -> Check {
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

fn bpffs(facts: &HostFacts) -> Check {
    let (code, name) = ("bpffs-missing", "bpffs");
    if facts.is_mounted("bpf", "/sys/fs/bpf") {
        return Check::ok(code, name, "/sys/fs/bpf");
    }
    let fix = "mount -t bpf bpf /sys/fs/bpf\n(systemd does it at boot; else add to /etc/fstab: \
               bpf /sys/fs/bpf bpf defaults 0 0)";
    Check::fail(code, name, "not mounted at /sys/fs/bpf: programs cannot outlive the agent", fix)
}

fn cgroup2(facts: &HostFacts) -> Check {
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
            "not mounted: actors by cgroup and leases match nobody",
            "mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1",
        ),
    }
}

fn pid_namespace(facts: &HostFacts) -> Check {
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

fn mount_namespace(facts: &HostFacts) -> Check {
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
