//! The disk of a real host: a Debian tree by mmdebstrap, made one of the lab's by
//! `guest/host/tree`, with the kernels' modules, as a qcow2 file. Made anew when anything of its
//! recipe has changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::{BACKPORTS, Incus, KERNELS, SUITE};
use crate::apt::{PrivateApt, Sources};
use crate::kernel::Layout;
use crate::setup::is_root;
use crate::workspace::{self, fresh_directory};
use crate::{checksums, progress};

/// Packages of a host beside Incus: those of Debian's own installations, a Ceph cluster's daemons
/// (one of the hosts is the store), and the tests' tools.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,udev,kmod,iproute2,procps,psmisc,python3,jq,curl,ceph-common,ceph-mon,ceph-osd,ceph-mds,rsync,logrotate,cron-daemon-common,e2fsprogs,apparmor,dnsmasq-base,passwd,util-linux,attr,acl,less,sudo,busybox-static,strace,zstd,xz-utils";
/// The daemon and its client, without the dependencies of virtual machines: none runs inside an
/// emulated one.
const INCUS: [&str; 2] = ["incus-base", "incus-client"];
/// On a host with 6.0: the packages that a later upgrade to the backports' Incus installs.
const NEXT_INCUS: &str = "usr/local/lib/lab/next-incus";
/// Sparse; the tree takes a third of it.
const SIZE: &str = "6G";
/// The modules of drivers that no virtual machine has are left out.
const KEPT_DRIVERS: [&str; 9] = [
    "virtio",
    "block",
    "md",
    "char",
    "acpi",
    "net/veth.ko",
    "net/virtio_net.ko",
    "net/net_failover.ko",
    "net/tun.ko",
];
const FILES: [(&str, &str); 6] = [
    ("init", include_str!("../../guest/host/init")),
    ("runner", include_str!("../../guest/host/runner")),
    ("network", include_str!("../../guest/host/network")),
    ("become", include_str!("../../guest/host/become")),
    ("ceph-store", include_str!("../../guest/host/ceph-store")),
    ("tree", include_str!("../../guest/host/tree")),
];
/// A change of this file that changes the image needs another number here.
const VERSION: u32 = 1;

/// The image of a host with one version of Incus.
#[derive(Debug)]
pub(crate) struct Image {
    directory: PathBuf,
    /// Names all that it was made of.
    pub recipe: String,
}

impl Image {
    fn describe(incus: Incus) -> Result<Self> {
        let directory = workspace::cache()?.join("hosts").join(incus.name());
        let mut kernels = Vec::new();
        for kernel in KERNELS {
            kernels.push(if kernel.is_ready()? {
                Layout::open(kernel)?.release
            } else {
                "?".to_owned()
            });
        }
        let mut hash = Command::new("sha256sum");
        hash.current_dir(workspace::root().join("xtask/guest/host"))
            .args(FILES.map(|(name, _)| name));
        let sums = progress::capture(&mut hash)?;
        let sums: Vec<&str> = sums.lines().filter_map(|line| line.get(..12)).collect();
        let mut recipe = format!("{VERSION} {SUITE} {PACKAGES} {kernels:?} {}", sums.join(" "));
        if incus == Incus::V6_0 {
            recipe.push_str(&format!(" {NEXT_INCUS}"));
        }
        Ok(Self { directory, recipe })
    }

    /// Whether it is in the cache, made by today's recipe.
    pub(crate) fn is_ready(incus: Incus) -> Result<bool> {
        let image = Self::describe(incus)?;
        let made_by = fs::read_to_string(image.directory.join("recipe")).unwrap_or_default();
        Ok(image.directory.join(checksums::FILE).exists() && made_by == image.recipe)
    }

    /// Finds it, and checks it against its sum.
    pub(crate) fn open(incus: Incus) -> Result<Self> {
        let image = Self::describe(incus)?;
        checksums::verify(&image.directory, &["disk.qcow2", "recipe"])?;
        Ok(image)
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.directory.join("disk.qcow2")
    }

    /// Makes it; its directory appears whole, by a rename, or not at all.
    pub(crate) fn make(incus: Incus) -> Result<()> {
        if !is_root()? {
            bail!(
                "making a Debian system for the suite host needs root (its files have owners): run \
                 this step as root once, or choose other suites with --suite"
            );
        }
        let image = Self::describe(incus)?;
        let partial = fresh_directory(
            workspace::cache()?.join("hosts").join(format!("{}.partial", incus.name())),
        )?;
        let tree = partial.join("tree");
        bootstrap(incus, &tree)?;
        customise(&tree, &partial)?;
        KERNELS.iter().try_for_each(|&kernel| copy_modules(&Layout::open(kernel)?, &tree))?;
        pack(&tree, &partial)?;
        fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))?;
        fs::write(partial.join("recipe"), &image.recipe).context("write the image's recipe")?;
        checksums::record(&partial)?;
        if image.directory.exists() {
            fs::remove_dir_all(&image.directory)
                .with_context(|| format!("remove {}", image.directory.display()))?;
        }
        fs::rename(&partial, &image.directory)
            .with_context(|| format!("rename {} into place", partial.display()))
    }
}

/// Debian's packages, in a tree.
fn bootstrap(incus: Incus, tree: &Path) -> Result<()> {
    let sources = Sources::of_this_machine()?;
    let place = workspace::cache()?.join("apt/host");
    let mut suites = vec![SUITE.to_owned()];
    if sources.have_security() {
        suites.push(format!("{SUITE}-security"));
    }
    suites.push(BACKPORTS.to_owned());
    // Writes the entries of these suites, derived from the machine's own, where mmdebstrap can read
    // them.
    PrivateApt::downloading(&place, &sources, &suites)?;
    let newest = INCUS.map(|package| format!("{package}/{BACKPORTS}"));
    // apt takes nothing of a backports suite unless it is asked to.
    let installed = match incus {
        Incus::V6_0 => INCUS.join(","),
        Incus::V7_0 => newest.join(","),
    };
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--mode=root", "--variant=minbase", "--format=directory", "--skip=check/empty"])
        .args([
            "--aptopt=Apt::Install-Recommends \"false\"",
            "--aptopt=Acquire::Languages \"none\"",
        ])
        .args(
            ["man", "locale", "doc/*"]
                .map(|part| format!("--dpkgopt=path-exclude=/usr/share/{part}/*")),
        )
        .arg(format!("--include={PACKAGES},{installed}"))
        .args([SUITE.as_ref(), tree.as_os_str()])
        .env_remove("APT_CONFIG");
    if incus == Incus::V6_0 {
        mmdebstrap.arg(format!(
            "--customize-hook=APT_CONFIG=\"$MMDEBSTRAP_APT_CONFIG\" apt-get --yes \
             --no-install-recommends --download-only install {} && mkdir -p \"$1\"/{NEXT_INCUS} && \
             mv \"$1\"/var/cache/apt/archives/*.deb \"$1\"/{NEXT_INCUS}",
            newest.join(" ")
        ));
    }
    for entry in fs::read_dir(place.join("parts")).context("list the derived package sources")? {
        mmdebstrap.arg(entry?.path());
    }
    progress::run("install a Debian 13 system in the cache (1 to 2 minutes)", &mut mmdebstrap)
}

fn customise(tree: &Path, partial: &Path) -> Result<()> {
    let files = fresh_directory(partial.join("files"))?;
    for (name, text) in FILES {
        fs::write(files.join(name), text).with_context(|| format!("write {name}"))?;
    }
    let mut script = Command::new("bash");
    script.arg(files.join("tree")).args([tree, files.as_path()]);
    progress::run("make it one of the lab's hosts", &mut script)?;
    fs::remove_dir_all(&files).with_context(|| format!("remove {}", files.display()))
}

/// Modules in the tree are not packed: unpacking is slow in an emulated machine.
fn copy_modules(kernel: &Layout, tree: &Path) -> Result<()> {
    let target = tree.join("usr/lib/modules").join(&kernel.release);
    let drivers = KEPT_DRIVERS.map(|name| format!("drivers/{name}")).join(" ");
    let script = format!(
        "set -o pipefail; mkdir -p \"$2/kernel/drivers\"; cd \"$1\"; cp -a modules.* \"$2\"
         cp -a kernel/{{fs,net,lib,crypto,arch}} \"$2/kernel\"
         cd kernel; for part in {drivers}; do for found in $part*; do cp -a --parents \"$found\" \"$2/kernel\"; done; done
         cd \"$2\"; find . -name '*.ko.xz' -print0 | xargs -0 -r -P2 -n50 xz -d
         find . -name '*.ko.zst' -print0 | xargs -0 -r -P2 -n50 zstd -q -d --rm
         depmod -b \"$3\" \"$4\""
    );
    let mut command = Command::new("bash");
    command.args(["-ec", &script, "modules"]).args([kernel.modules(), target, tree.join("usr")]);
    command.arg(&kernel.release);
    progress::run(&format!("copy the modules of {}", kernel.release), &mut command)
}

fn pack(tree: &Path, partial: &Path) -> Result<()> {
    let (raw, disk) = (partial.join("disk.raw"), partial.join("disk.qcow2"));
    let script =
        "truncate -s \"$1\" \"$2\"; mke2fs -q -t ext4 -E lazy_itable_init=0 -d \"$3\" \"$2\"
                  qemu-img convert -f raw -O qcow2 \"$2\" \"$4\"; rm \"$2\"";
    let mut command = Command::new("bash");
    command.args(["-ec", script, "pack", SIZE]).args([&raw, &tree.to_owned(), &disk]);
    progress::run("pack it as a disk", &mut command)?;
    ensure!(disk.is_file(), "no disk came of packing {}", tree.display());
    Ok(())
}
