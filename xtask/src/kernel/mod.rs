//! The kernels under test: stock Debian ones, downloaded and laid out in the cache, never
//! installed.

mod fetch;
pub(crate) mod initramfs;
mod vmlinux;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::checksums;
use crate::workspace;

/// A kernel of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Kernel {
    /// bookworm's own
    #[value(name = "6.1")]
    V6_1,
    /// bookworm-backports
    #[value(name = "6.12")]
    V6_12,
    /// trixie's own, which the real hosts of the suite `host` boot
    #[value(name = "6.12-trixie")]
    Trixie,
    /// trixie-backports
    #[value(name = "7")]
    V7,
}

/// Values of `--kernel` of the test command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Selection {
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    #[value(name = "7")]
    V7,
    All,
}

impl Selection {
    pub(crate) fn kernels(self) -> &'static [Kernel] {
        match self {
            Self::V6_1 => &[Kernel::V6_1],
            Self::V6_12 => &[Kernel::V6_12],
            Self::V7 => &[Kernel::V7],
            Self::All => &[Kernel::V6_1, Kernel::V6_12, Kernel::V7],
        }
    }
}

impl Kernel {
    /// The name on the command line, and of the directory in the cache.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Trixie => "6.12-trixie",
            Self::V7 => "7",
        }
    }

    fn suite(self) -> &'static str {
        match self {
            Self::V6_1 => "bookworm",
            Self::V6_12 => "bookworm-backports",
            Self::Trixie => "trixie",
            Self::V7 => "trixie-backports",
        }
    }

    /// Directory in which it is laid out.
    pub(crate) fn directory(self) -> Result<PathBuf> {
        Ok(workspace::cache()?.join("kernels").join(self.name()))
    }

    /// Whether it is laid out. The directory appears by one rename, so it is whole or absent.
    pub(crate) fn is_ready(self) -> Result<bool> {
        Ok(self.directory()?.join(checksums::FILE).exists())
    }

    /// Downloads it and lays it out.
    pub(crate) fn fetch(self) -> Result<()> {
        fetch::fetch(self)
    }
}

/// The files whose sums are checked before every boot; `setup --verify` checks them all.
const CHECKED_AT_BOOT: [&str; 4] = ["vmlinux", "config", "System.map", "release"];

/// A kernel that is laid out in the cache and has been checked.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Holds `vmlinux`, `config` and `lib/modules/<release>`.
    pub directory: PathBuf,
    /// Output of `uname -r`.
    pub release: String,
}

impl Layout {
    pub(crate) fn open(kernel: Kernel) -> Result<Self> {
        let directory = kernel.directory()?;
        checksums::verify(&directory, &CHECKED_AT_BOOT)?;
        let path = directory.join("release");
        let release =
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self { directory, release: release.trim().to_owned() })
    }

    pub(crate) fn vmlinux(&self) -> PathBuf {
        self.directory.join("vmlinux")
    }

    pub(crate) fn modules(&self) -> PathBuf {
        self.directory.join("lib/modules").join(&self.release)
    }
}

/// Checks every file of a kernel in the cache.
pub(crate) fn verify_all(kernel: Kernel) -> Result<()> {
    checksums::verify(&kernel.directory()?, &[])
}
