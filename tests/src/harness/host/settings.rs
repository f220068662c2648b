//! Settings from `cargo xtask` for real hosts, from the environment.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

/// All of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The disk of a host that was never booted.
    pub disk: PathBuf,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// Directory of the states of this kernel and Incus.
    pub states: PathBuf,
    /// Names all that the states depend on.
    pub key: String,
    /// `6.0` or `7.0`.
    pub incus: String,
    /// Of the kernel, beyond the usual ones. In force from a host's next boot on.
    pub parameters: String,
}

impl Settings {
    pub fn from_environment() -> Result<Self> {
        let value = |name: &str| {
            std::env::var(name)
                .with_context(|| format!("{name} is not set: run `cargo xtask test --suite host`"))
        };
        let version =
            Command::new(super::machine::QEMU).arg("--version").output().context("start QEMU")?;
        let mut key = Sha256::new();
        key.update(value("GUARD_HOST_RECIPE")?);
        key.update(&version.stdout);
        key.update(super::states::VERSION.to_le_bytes());
        Ok(Self {
            disk: value("GUARD_HOST_DISK")?.into(),
            kernel: value("GUARD_HOST_KERNEL")?.into(),
            initrd: value("GUARD_HOST_INITRD")?.into(),
            states: value("GUARD_HOST_STATES")?.into(),
            key: key.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            incus: value("GUARD_HOST_INCUS")?,
            parameters: String::new(),
        })
    }
}
