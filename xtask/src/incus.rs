//! Incus for the end-to-end suite: Debian's own packages, downloaded and unpacked in the cache,
//! never installed. Dependencies that this machine lacks are unpacked beside it: the guest's root
//! is this machine's, and the two together are one system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::apt::{PrivateApt, Sources};
use crate::workspace::{self, fresh_directory};
use crate::{checksums, progress};

/// The daemon and its client, with the dependencies of containers (liblxc, uidmap), without those
/// of virtual machines.
const PACKAGES: [&str; 2] = ["incus-base", "incus-client"];
const DAEMON: &str = "usr/libexec/incus/incusd";
const CLIENT: &str = "usr/bin/incus";

/// Directory in which Incus is unpacked.
pub(crate) fn directory() -> Result<PathBuf> {
    Ok(workspace::cache()?.join("incus"))
}

/// Whether it is unpacked. The directory appears by one rename, so it is whole or absent.
pub(crate) fn is_ready() -> Result<bool> {
    Ok(directory()?.join(checksums::FILE).exists())
}

/// Checks the programs against their sums; all files with `setup --verify`.
pub(crate) fn open() -> Result<PathBuf> {
    let directory = directory()?;
    checksums::verify(&directory, &[DAEMON, CLIENT])?;
    Ok(directory)
}

/// Checks every file.
pub(crate) fn verify_all() -> Result<()> {
    checksums::verify(&directory()?, &[])
}

/// Downloads and unpacks it; the directory appears whole, by a rename, or not at all.
pub(crate) fn fetch() -> Result<()> {
    let sources = Sources::of_this_machine()?;
    let suite = format!("{}-backports", sources.codename());
    let place = workspace::cache()?.join("apt/incus");
    // It knows the installed packages: only missing ones are downloaded.
    let apt = PrivateApt::installing(&place, &sources, std::slice::from_ref(&suite))?;
    progress::run(&format!("list the packages of {suite}"), apt.command("apt-get").arg("update"))?;
    let packages = resolve(&apt)?;
    let downloads = fresh_directory(place.join("download"))?;
    progress::run(
        &format!("download {} packages", packages.len()),
        apt.command("apt-get").arg("download").args(&packages).current_dir(&downloads),
    )?;
    let directory = directory()?;
    let partial = fresh_directory(directory.with_extension("partial"))?;
    let unpack = "for package in \"$1\"/*.deb; do dpkg-deb --extract \"$package\" \"$2\"; done";
    progress::run(
        "unpack Incus",
        Command::new("bash").args(["-ec", unpack, "unpack"]).arg(&downloads).arg(&partial),
    )?;
    let version = check(&partial)?;
    checksums::record(&partial)?;
    if directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("remove {}", directory.display()))?;
    }
    fs::rename(&partial, &directory)
        .with_context(|| format!("rename {} into place", partial.display()))?;
    fs::remove_dir_all(&downloads).with_context(|| format!("remove {}", downloads.display()))?;
    eprintln!("xtask: Incus {version} is in {}", directory.display());
    Ok(())
}

/// Packages that would have to be installed, each as `name=version`.
fn resolve(apt: &PrivateApt) -> Result<Vec<String>> {
    let arguments = ["install", "--simulate", "--yes", "--no-install-recommends"];
    let text = progress::capture(apt.command("apt-get").args(arguments).args(PACKAGES))?;
    let packages: Vec<String> = text.lines().filter_map(to_install).collect();
    // On a machine that has Incus itself, these are still wanted.
    let missing = PACKAGES
        .iter()
        .filter(|name| !packages.iter().any(|found| found.starts_with(&format!("{name}="))));
    let all: Vec<String> =
        missing.map(|name| (*name).to_owned()).chain(packages.iter().cloned()).collect();
    if all.is_empty() {
        bail!("apt names no package to install for {PACKAGES:?}; it printed:\n{text}");
    }
    Ok(all)
}

/// Reads `Inst name [installed] (version suite [architecture])`. An upgrade of an installed package
/// is left out: the machine's own serves.
fn to_install(line: &str) -> Option<String> {
    let rest = line.strip_prefix("Inst ")?;
    let (name, rest) = rest.split_once(' ')?;
    let version = rest.strip_prefix('(')?.split([' ', ')']).next()?;
    Some(format!("{name}={version}"))
}

/// The daemon starts, with every library it needs; returns its version.
fn check(root: &Path) -> Result<String> {
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    for program in [DAEMON, CLIENT] {
        let path = root.join(program);
        let said =
            progress::capture(Command::new("ldd").arg(&path).env("LD_LIBRARY_PATH", &libraries));
        // The client is statically linked, which `ldd` reports as a failure.
        if let Ok(said) = said {
            ensure!(!said.contains("not found"), "{} lacks libraries:\n{said}", path.display());
        }
    }
    let version = |program: &str| {
        let mut command = Command::new(root.join(program));
        progress::capture(command.arg("--version").env("LD_LIBRARY_PATH", &libraries))
    };
    let (daemon, client) = (version(DAEMON)?, version(CLIENT)?);
    ensure!(daemon == client, "the daemon is {}, but its client {}", daemon.trim(), client.trim());
    Ok(daemon.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apts_simulation_names_what_is_missing_and_no_upgrades() {
        let new = "Inst incus-base (6.0.4-2~bpo12+1 Debian Backports:stable-backports [amd64])";
        assert_eq!(to_install(new).as_deref(), Some("incus-base=6.0.4-2~bpo12+1"));
        assert_eq!(
            to_install("Inst passwd [1:4.13-1] (1:4.13-2 Debian-Security:12 [amd64])"),
            None
        );
        assert_eq!(to_install("Conf incus-base (6.0.4-2~bpo12+1 Debian [amd64])"), None);
    }
}
