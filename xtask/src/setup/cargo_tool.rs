//! Tools for the packages that are built by cargo into the cache, each in a version that is known
//! to work. bpf-linker, which also needs LLVM, is in [`super::toolchain`].

use std::path::PathBuf;

use anyhow::Result;

use crate::{progress, workspace};

/// A tool and its version.
#[derive(Debug)]
pub(crate) struct CargoTool {
    pub name: &'static str,
    pub version: &'static str,
    /// Arguments of `cargo install`.
    arguments: &'static [&'static str],
}

/// Makes the .deb; compresses with the machine's `xz`, so that no library of it is needed.
pub(crate) const CARGO_DEB: CargoTool =
    CargoTool { name: "cargo-deb", version: "3.8.0", arguments: &["--no-default-features"] };
/// Makes the SBOM.
pub(crate) const CARGO_CYCLONEDX: CargoTool =
    CargoTool { name: "cargo-cyclonedx", version: "0.5.9", arguments: &[] };

static ALL: [CargoTool; 2] = [CARGO_DEB, CARGO_CYCLONEDX];

/// Those that are not in the cache.
pub(crate) fn missing() -> Result<Vec<&'static CargoTool>> {
    let mut missing = Vec::new();
    for tool in &ALL {
        if !tool.path()?.exists() {
            missing.push(tool);
        }
    }
    Ok(missing)
}

/// Installation directory of all of them.
pub(crate) fn root() -> Result<PathBuf> {
    Ok(workspace::cache()?.join("cargo-tools"))
}

impl CargoTool {
    /// The binary: `cargo install` puts it there last, by a rename.
    pub(crate) fn path(&self) -> Result<PathBuf> {
        Ok(self.directory()?.join("bin").join(self.name))
    }

    /// A new version is a new directory.
    fn directory(&self) -> Result<PathBuf> {
        Ok(root()?.join(format!("{}-{}", self.name, self.version)))
    }

    pub(crate) fn install(&self) -> Result<()> {
        let mut cargo = workspace::cargo();
        cargo
            .args(["install", self.name, "--version", self.version, "--locked", "--force"])
            .args(self.arguments)
            .arg("--root")
            .arg(self.directory()?)
            // Outside the workspace: its settings are not for this.
            .current_dir("/")
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        progress::run(&format!("build {} {}", self.name, self.version), &mut cargo)
    }
}
