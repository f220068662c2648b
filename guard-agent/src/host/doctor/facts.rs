//! Facts of the host for the checks, read below a root directory (`/`, or a tree in a test).
//!
//! A fact that cannot be read is unknown, never assumed.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use guard_common::Tier;
use serde::Serialize;

use crate::model::mounts::Snapshot;

/// An option of the kernel's configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelOption {
    Set,
    Unset,
    #[default]
    Unknown,
}

/// Tool that sets the kernel's command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Bootloader {
    ProxmoxBootTool,
    /// GRUB with `update-grub`.
    GrubDebian,
    /// GRUB with boot loader entries (Fedora, RHEL).
    Grubby,
    Grub,
    SystemdBoot,
    #[default]
    Unknown,
}

/// The host, as far as the checks are concerned.
#[derive(Clone, Debug, Default, Serialize)]
pub struct HostFacts {
    /// As `uname -r`.
    pub kernel_release: String,
    /// Whether the kernel shows its BTF.
    pub has_btf: bool,
    /// The functions that the checks ask for and that the BTF has; `None` if it cannot be read.
    pub btf_hooks: Option<Vec<String>>,
    /// The active list; `None` if securityfs is not mounted.
    pub active_lsms: Option<Vec<String>>,
    /// The kernel's command line.
    pub command_line: String,
    pub bpf_lsm: KernelOption,
    pub security_path: KernelOption,
    pub bpf_events: KernelOption,
    /// Whether the kernel has fanotify at all.
    pub has_fanotify: bool,
    pub fanotify_permissions: KernelOption,
    /// `integrity` or `confidentiality`; `None` if lockdown is off.
    pub lockdown: Option<String>,
    /// `CapEff` of this process.
    pub effective_capabilities: Option<u64>,
    /// Whether this process is root's.
    pub is_root: bool,
    /// The kernel's answers to the trials that were made.
    pub trials: Trials,
    /// Types and mountpoints of the pseudo filesystems that matter.
    pub mounts: Vec<(String, PathBuf)>,
    /// PID namespace of this process.
    pub pid_namespace: Option<String>,
    /// Mount namespace of this process, and of PID 1.
    pub mount_namespaces: Option<(String, String)>,
    pub(super) bootloader: Bootloader,
}

/// Functions of the kernel that tell its build options.
const HOOKS: [&str; 3] = ["bpf_lsm_inode_unlink", "bpf_lsm_path_unlink", "security_path_unlink"];

impl HostFacts {
    /// Reads the facts below a root directory.
    pub fn gather(root: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(root.join(path)).ok();
        let trimmed = |path: &str| read(path).map(|text| text.trim().to_owned());
        let kernel_release = trimmed("proc/sys/kernel/osrelease").unwrap_or_default();
        let config = configuration(root, &kernel_release);
        let option =
            |name| config.as_deref().map_or(KernelOption::Unknown, |text| option(text, name));
        let link =
            |path: &str| Some(fs::read_link(root.join(path)).ok()?.to_string_lossy().into_owned());
        Self {
            has_btf: root.join("sys/kernel/btf/vmlinux").exists(),
            btf_hooks: btf_hooks(&root.join("sys/kernel/btf/vmlinux")),
            active_lsms: trimmed("sys/kernel/security/lsm")
                .filter(|list| !list.is_empty())
                .map(|list| split(&list)),
            command_line: trimmed("proc/cmdline").unwrap_or_default(),
            bpf_lsm: option("CONFIG_BPF_LSM"),
            security_path: option("CONFIG_SECURITY_PATH"),
            bpf_events: option("CONFIG_BPF_EVENTS"),
            has_fanotify: root.join("proc/sys/fs/fanotify").exists(),
            fanotify_permissions: option("CONFIG_FANOTIFY_ACCESS_PERMISSIONS"),
            lockdown: read("sys/kernel/security/lockdown").and_then(|text| chosen(&text)),
            effective_capabilities: read("proc/self/status").and_then(|text| effective(&text)),
            is_root: read("proc/self/status").is_some_and(|text| is_root(&text)),
            trials: Trials::default(),
            mounts: mounts(root),
            pid_namespace: link("proc/self/ns/pid"),
            mount_namespaces: link("proc/self/ns/mnt").zip(link("proc/1/ns/mnt")),
            bootloader: bootloader(root),
            kernel_release,
        }
    }

    /// Major and minor number.
    pub fn kernel_version(&self) -> Option<(u32, u32)> {
        let mut numbers = self.kernel_release.split(|letter: char| !letter.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    /// Whether the BTF names a hook; `None` if it cannot be read.
    pub(super) fn hook_in_btf(&self, hook: &str) -> Option<bool> {
        self.btf_hooks.as_ref().map(|hooks| hooks.iter().any(|known| known == hook))
    }

    /// The list of the kernel parameter `lsm=`; the last one counts.
    pub(super) fn lsm_parameter(&self) -> Option<Vec<String>> {
        self.command_line
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("lsm="))
            .next_back()
            .map(split)
    }

    pub(super) fn is_mounted(&self, fs_type: &str, mountpoint: &str) -> bool {
        self.mounts.iter().any(|(known, place)| known == fs_type && place == Path::new(mountpoint))
    }

    pub(super) fn cgroup2_mountpoint(&self) -> Option<&str> {
        let mut places =
            self.mounts.iter().filter(|(fs_type, _)| fs_type == "cgroup2").map(|(_, place)| place);
        places.next().and_then(|place| place.to_str())
    }
}

fn split(list: &str) -> Vec<String> {
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The bracketed word: `none [integrity] confidentiality`. `None` for none.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    let (word, _) = rest.split_once(']')?;
    (word != "none").then(|| word.to_owned())
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Whether the effective uid is 0.
fn is_root(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    line.and_then(|line| line.split_whitespace().nth(1)) == Some("0")
}

fn option(config: &str, name: &str) -> KernelOption {
    let set = config.lines().any(|line| line.strip_prefix(name) == Some("=y"));
    if set { KernelOption::Set } else { KernelOption::Unset }
}

/// The kernel's configuration as text: the running kernel's own, or the file beside it.
fn configuration(root: &Path, release: &str) -> Option<String> {
    let mut own = String::new();
    if let Ok(file) = fs::File::open(root.join("proc/config.gz"))
        && GzDecoder::new(file).read_to_string(&mut own).is_ok()
    {
        return Some(own);
    }
    let places = [format!("boot/config-{release}"), format!("lib/modules/{release}/config")];
    places.iter().find_map(|place| fs::read_to_string(root.join(place)).ok())
}

/// Names of functions stand in the BTF's string section, each closed by NULs.
fn btf_hooks(file: &Path) -> Option<Vec<String>> {
    let bytes = fs::read(file).ok().filter(|bytes| bytes.len() > 24)?;
    let strings: std::collections::HashSet<&[u8]> = bytes.split(|byte| *byte == 0).collect();
    Some(
        HOOKS
            .iter()
            .filter(|hook| strings.contains(hook.as_bytes()))
            .map(|hook| (*hook).to_owned())
            .collect(),
    )
}

fn mounts(root: &Path) -> Vec<(String, PathBuf)> {
    let table = fs::read(root.join("proc/self/mountinfo")).unwrap_or_default();
    let snapshot = Snapshot::parse(&table);
    let matter = |fs_type: &str| matches!(fs_type, "bpf" | "cgroup2" | "securityfs");
    let mounts = snapshot.entries().iter().filter(|entry| matter(&entry.fs_type));
    mounts.map(|entry| (entry.fs_type.clone(), entry.mountpoint.clone())).collect()
}

fn bootloader(root: &Path) -> Bootloader {
    let has = |path: &str| root.join(path).exists();
    let tool = |name: &str| has(&format!("usr/sbin/{name}")) || has(&format!("usr/bin/{name}"));
    match () {
        // Proxmox has both; with its tool in charge /etc/kernel/cmdline counts.
        () if tool("proxmox-boot-tool")
            && has("etc/kernel/proxmox-boot-uuids")
            && has("etc/kernel/cmdline") =>
        {
            Bootloader::ProxmoxBootTool
        }
        () if tool("grubby") => Bootloader::Grubby,
        () if tool("update-grub") => Bootloader::GrubDebian,
        () if has("etc/default/grub") => Bootloader::Grub,
        () if has("etc/kernel/cmdline") => Bootloader::SystemdBoot,
        () => Bootloader::Unknown,
    }
}

/// Result of a tier's trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trial {
    /// Name of the tier.
    pub tier: &'static str,
    /// Why it failed; `None`: the kernel takes it.
    pub refusal: Option<String>,
    /// The kernel's own words about that.
    pub log: Option<String>,
}

/// One for each tier that was tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Trials(pub Vec<Trial>);

impl Trials {
    /// That of a tier, if it was tried.
    pub fn of(&self, tier: Tier) -> Option<&Trial> {
        self.0.iter().find(|trial| trial.tier == tier.name())
    }
}
