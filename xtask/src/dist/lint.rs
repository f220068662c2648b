//! lintian and rpmlint: no error and no warning passes.

use std::process::Command;

use anyhow::Result;

use super::Packages;
use crate::setup::{self, Use, find_command};
use crate::{progress, workspace};

/// Runs both. If they cannot be had, it says so.
pub(super) fn run(packages: &Packages) -> Result<()> {
    if let Err(error) = setup::ensure(&[Use::DistCheck], &[]) {
        eprintln!("xtask: dist: {error:#}");
    }
    if find_command("lintian").is_some() {
        let mut lintian = Command::new("lintian");
        lintian.args(["--fail-on", "error,warning", "--tag-display-limit", "0", "--allow-root"]);
        progress::run("lintian", lintian.arg(&packages.deb))?;
    } else {
        eprintln!("xtask: dist lintian: NOT RUN, it is not installed");
    }
    if find_command("rpmlint").is_some() {
        let mut rpmlint = Command::new("rpmlint");
        rpmlint.arg("--strict").arg("--config");
        rpmlint.arg(workspace::root().join("packaging/rpm/rpmlint.toml"));
        progress::run("rpmlint", rpmlint.arg(&packages.rpm))?;
    } else {
        eprintln!("xtask: dist rpmlint: NOT RUN, it is not installed");
    }
    Ok(())
}
