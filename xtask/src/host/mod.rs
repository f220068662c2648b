//! Real hosts for the suite `host`: a Debian 13 system from Debian's own packages, on a disk image
//! in the cache, with systemd, Ceph and Incus as they are packaged. The use of such hosts, and the
//! states that are saved of them, are `guard-tests`' own (`tests/src/harness/host`).

mod image;
pub(crate) mod run;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::kernel::{Kernel, Layout, initramfs};
use crate::workspace;
pub(crate) use image::Image;

/// The release whose hosts are tested.
pub(crate) const SUITE: &str = "trixie";
/// Suite of its newer packages.
pub(crate) const BACKPORTS: &str = "trixie-backports";

/// Incus's version on a host, by where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Incus {
    /// Debian 13's own, 6.0 LTS
    #[value(name = "6.0")]
    V6_0,
    /// Its backports', 7.0 LTS
    #[value(name = "7.0")]
    V7_0,
}

impl Incus {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V6_0 => "6.0",
            Self::V7_0 => "7.0",
        }
    }
}

/// Values of `--incus` of the test command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Selection {
    #[value(name = "6.0")]
    V6_0,
    #[value(name = "7.0")]
    V7_0,
    All,
}

impl Selection {
    pub(crate) fn versions(self) -> &'static [Incus] {
        match self {
            Self::V6_0 => &[Incus::V6_0],
            Self::V7_0 => &[Incus::V7_0],
            Self::All => &[Incus::V7_0, Incus::V6_0],
        }
    }
}

/// The kernel that a host boots where `kernel` was asked for: 6.12 is Debian 13's own build there.
pub(crate) fn kernel(kernel: Kernel) -> Result<Kernel> {
    match kernel {
        Kernel::V6_12 | Kernel::Trixie => Ok(Kernel::Trixie),
        Kernel::V7 => Ok(Kernel::V7),
        Kernel::V6_1 => {
            bail!("Debian 13 has no kernel 6.1: the suite host takes --kernel 6.12, 7 or all")
        }
    }
}

/// Every kernel that the image has modules of.
pub(crate) const KERNELS: [Kernel; 2] = [Kernel::Trixie, Kernel::V7];

/// Environment variables with which `guard-tests` boots a host.
pub(crate) fn environment(incus: Incus, kernel: Kernel) -> Result<Vec<(String, String)>> {
    const MODULES: [&str; 5] = ["virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "ext4"];
    let image = Image::open(incus)?;
    let layout = Layout::open(kernel)?;
    let directory = states(incus, kernel)?;
    let initrd = directory.join("initramfs.cpio");
    initramfs::write(&layout, &initrd, initramfs::HOST_INIT, &MODULES)?;
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    let values = [
        ("GUARD_HOST_DISK", path(image.disk())),
        ("GUARD_HOST_RECIPE", image.recipe.clone()),
        ("GUARD_HOST_KERNEL", path(layout.vmlinux())),
        ("GUARD_HOST_INITRD", path(initrd)),
        ("GUARD_HOST_STATES", path(directory)),
        ("GUARD_HOST_INCUS", incus.name().to_owned()),
        ("GUARD_KERNEL", kernel.name().to_owned()),
    ];
    Ok(values.map(|(name, value)| (name.to_owned(), value)).to_vec())
}

/// Directory of the saved states of such hosts.
fn states(incus: Incus, kernel: Kernel) -> Result<PathBuf> {
    let name = format!("incus-{}-linux-{}", incus.name(), kernel.name());
    let directory = workspace::cache()?.join("host-states").join(name);
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("create {}", directory.display()))?;
    Ok(directory)
}
