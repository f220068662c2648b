//! The two ways to compile for BPF: rustup's nightly with its own `core`, or Debian's packages.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt, fs};

use anyhow::{Context as _, Result};

use super::requirement::find_command;
use crate::{progress, workspace};

/// The linker that the Debian route builds; it must match [`LLVM`].
pub(crate) const LINKER_VERSION: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";
const TARGET: &str = "bpfel-unknown-none";

/// The toolchain that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// rustup's nightly with rust-src, and bpf-linker in the path.
    Rustup,
    /// Debian's compiler; its bpf-linker is in the cache, or still has to be built.
    Debian { linker: bool },
    /// Nobody asked.
    Unneeded,
}

impl Toolchain {
    pub(crate) fn is_complete(self) -> bool {
        self == Self::Rustup
    }

    pub(crate) fn lacks_linker(self) -> bool {
        self == Self::Debian { linker: false }
    }

    /// A cargo that builds for BPF.
    pub(crate) fn cargo(self) -> Result<Command> {
        let mut command = match self {
            Self::Rustup => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
            Self::Debian { .. } | Self::Unneeded => {
                let mut command = Command::new("/usr/bin/cargo");
                // By path: rustup's rustc usually comes first in PATH, and knows no BPF core.
                command.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
                command.env("PATH", path_with_linker()?);
                command
            }
        };
        // `cargo run` points the loader at its own toolchain's libraries.
        command
            .env_remove("LD_LIBRARY_PATH")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTUP_TOOLCHAIN");
        Ok(workspace::without_package_variables(command))
    }

    /// Arguments after `cargo build`.
    pub(crate) fn build_arguments(self) -> &'static [&'static str] {
        match self {
            Self::Rustup => &["--target", TARGET, "-Z", "build-std=core"],
            Self::Debian { .. } | Self::Unneeded => &["--target", TARGET],
        }
    }

    /// Takes DWARF out of an object, which is most of it; BTF stays. Without an objcopy the object
    /// is used as it is: that only costs size. It keeps the object's time: by that cargo tells
    /// whether to embed it anew.
    pub(crate) fn stripped(self, object: PathBuf) -> Result<PathBuf> {
        let objcopy = match self {
            Self::Rustup => find_command("llvm-objcopy"),
            Self::Debian { .. } | Self::Unneeded => Some(Path::new(LLVM).join("bin/llvm-objcopy")),
        };
        let Some(objcopy) = objcopy.filter(|objcopy| objcopy.exists()) else { return Ok(object) };
        let stripped = object.with_extension("stripped");
        progress::capture(
            Command::new(objcopy)
                .args(["--strip-debug", "--preserve-dates"])
                .arg(&object)
                .arg(&stripped),
        )?;
        Ok(stripped)
    }

    /// Path of the object in the target directory.
    pub(crate) fn object(target: &Path, profile: &str) -> PathBuf {
        target.join(TARGET).join(profile).join("guard-ebpf")
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rustup => "rustup's nightly with rust-src, bpf-linker from the path",
            Self::Debian { .. } => "Debian's rustc-web, bpf-linker from the cache",
            Self::Unneeded => "none",
        })
    }
}

/// Looks for rustup's nightly first, else it is Debian's way.
pub(crate) fn detect() -> Result<Toolchain> {
    if find_command("rustup").is_some()
        && find_command("bpf-linker").is_some()
        && nightly_has_source()
    {
        return Ok(Toolchain::Rustup);
    }
    Ok(Toolchain::Debian { linker: linker_stamp()?.exists() })
}

fn nightly_has_source() -> bool {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".rustup")));
    let toolchains = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok());
    toolchains.into_iter().flatten().flatten().any(|entry| {
        entry.file_name().to_string_lossy().starts_with("nightly-")
            && entry.path().join("lib/rustlib/src/rust/library/core").is_dir()
    })
}

/// Installation directory of the Debian route's bpf-linker.
pub(crate) fn linker_root() -> Result<PathBuf> {
    Ok(workspace::cache()?.join("bpf-linker"))
}

/// The binary itself: `cargo install` puts it there last, by a rename.
fn linker_stamp() -> Result<PathBuf> {
    Ok(linker_root()?.join("bin/bpf-linker"))
}

/// Builds bpf-linker against Debian's LLVM.
pub(crate) fn install_linker() -> Result<()> {
    let mut cargo = workspace::cargo();
    cargo
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", "llvm-22"])
        .arg("--root")
        .arg(linker_root()?)
        // Outside the workspace: its settings are not for this.
        .current_dir("/")
        .env("LLVM_PREFIX", LLVM)
        .env("LLVM_SYS_221_PREFIX", LLVM)
        .env("RUSTFLAGS", format!("-L {LLVM}/lib"))
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    progress::run(&format!("build bpf-linker {LINKER_VERSION}"), &mut cargo)
}

fn path_with_linker() -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = std::iter::once(linker_root()?.join("bin")).chain(env::split_paths(&path));
    env::join_paths(places).context("PATH cannot be extended by the cache's directory")
}
