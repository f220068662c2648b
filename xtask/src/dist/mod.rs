//! `cargo xtask dist`: the packages, their checksums and their bill of materials, in `target/dist`.
//!
//! Flow: build (no path of this machine in it) → man pages, completions, copyright, changelog →
//! .deb by cargo-deb → .rpm of the same files → bill of materials → checksums → lintian and
//! rpmlint. With `--check` the packages' scripts run in a Debian tree; with `--verify` all is built
//! once more in another folder, and must be the same.

mod changelog;
mod copyright;
mod lint;
mod make;
mod sbom;
mod trial;
mod verify;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::setup::{self, Use};
use crate::{checksums, progress, workspace};
pub(crate) use make::{Packages, VERSION, with_another_agent};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Also run the packages' scripts: installation, upgrade, removal and purge in a Debian tree.
    /// Needs root
    #[arg(long)]
    check: bool,
    /// Also build once more in another folder, and compare
    #[arg(long)]
    verify: bool,
    /// Leave lintian and rpmlint out
    #[arg(long)]
    no_lint: bool,
}

/// Time of the sources; the products have it too.
pub(crate) const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// The command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&[Use::Bpf, Use::Dist], &[])?;
    let date = date()?;
    let directory = workspace::fresh_directory(workspace::target().join("dist"))?;
    let packages = make::both(&directory, date)?;
    sbom::write(&directory, make::VERSION, date)?;
    checksums::record(&directory)?;
    if !arguments.no_lint {
        lint::run(&packages)?;
    }
    if arguments.check {
        setup::ensure(&[Use::DistCheck], &[])?;
        trial::run(&packages)?;
    }
    if arguments.verify {
        verify::run(&directory, date)?;
    }
    for path in [&packages.deb, &packages.rpm] {
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// `$SOURCE_DATE_EPOCH`, else the time of the last commit.
fn date() -> Result<u64> {
    let text = match std::env::var(EPOCH) {
        Ok(text) => text,
        Err(_) => {
            let mut git = Command::new("git");
            git.args(["log", "-1", "--format=%ct"]).current_dir(workspace::root());
            progress::capture(&mut git).with_context(|| {
                format!("the time of the last commit is not known here: set {EPOCH}")
            })?
        }
    };
    text.trim()
        .parse()
        .with_context(|| format!("{EPOCH} is {text:?}, which is no number of seconds"))
}

/// Makes the .deb alone, in `directory`, for what installs it in tests. Not checked.
pub(crate) fn for_tests(directory: &Path) -> Result<PathBuf> {
    setup::ensure(&[Use::Bpf, Use::Dist], &[])?;
    Ok(make::both(&workspace::fresh_directory(directory.to_owned())?, date()?)?.deb)
}
