//! Installs Debian packages from the machine's own sources.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::requirement::{Requirement, find_command};
use crate::apt::{PrivateApt, Sources};
use crate::{progress, workspace};

/// The package that may have to come from backports: a newer `qemu-utils` on the machine conflicts
/// with the release's own.
const QEMU: &str = "qemu-system-x86";
const NO_SECURITY: &str = " (the machine has no -security entry in its package sources, and needs \
                           one)";
const INSTALL: [&str; 7] = [
    "install",
    "--yes",
    "--no-install-recommends",
    // Never trade installed packages for ours.
    "--no-remove",
    "-o",
    "DPkg::Lock::Timeout=300",
    "-q",
];

/// Installs missing packages, or names the steps that a person has to do.
pub(super) fn packages(missing: &[&Requirement]) -> Result<()> {
    let names: Vec<&str> = missing.iter().map(|requirement| requirement.package).collect();
    if find_command("apt-get").is_none() {
        let proofs: Vec<String> =
            missing.iter().map(|r| format!("  {} ({})", r.proof(), r.purpose)).collect();
        bail!(
            "this machine has no apt, so install by hand:\n{}\nFor the kernel program, rustup \
             serves as well: `rustup toolchain install nightly --component rust-src` and `cargo \
             install bpf-linker`",
            proofs.join("\n")
        );
    }
    if !is_root()? {
        bail!(
            "installing packages needs root: run `sudo apt-get install --no-install-recommends {}`",
            names.join(" ")
        );
    }
    finish_interrupted()?;
    progress::run(
        "update the list of packages (apt-get update)",
        apt_get().args(["update", "-q"]),
    )?;
    let unknown: Vec<&str> = names.iter().copied().filter(|name| !is_available(name)).collect();
    // Two packages' versions must match; without the security archive they may be offered and still
    // not.
    let hint = if Sources::of_this_machine()?.have_security() { "" } else { NO_SECURITY };
    if !unknown.is_empty() {
        bail!(
            "the machine's package sources do not offer {}. On Debian bookworm rustc-web and \
             llvm-22-dev are in the release's security archive, the rest is in main: add the \
             missing entry to /etc/apt, then run this again{}",
            unknown.join(", "),
            if Sources::of_this_machine()?.have_security() {
                ""
            } else {
                " (there is no -security entry now)"
            }
        );
    }
    let (qemu, others): (Vec<&str>, Vec<&str>) = names.into_iter().partition(|name| *name == QEMU);
    if !others.is_empty() {
        let what = format!("install {} packages", others.len());
        progress::run(&what, apt_get().args(INSTALL).args(&others))
            .with_context(|| format!("packages{hint}"))?;
    }
    if qemu.is_empty() { Ok(()) } else { install_qemu() }
}

fn install_qemu() -> Result<()> {
    let simulated = progress::capture(apt_get().args(INSTALL).args(["--simulate", QEMU]));
    if simulated.is_ok() {
        return progress::run(&format!("install {QEMU}"), apt_get().args(INSTALL).arg(QEMU));
    }
    let sources = Sources::of_this_machine()?;
    let suite = format!("{}-backports", sources.codename());
    eprintln!(
        "xtask: the release's {QEMU} would remove installed packages; taking it from {suite}"
    );
    let directory = workspace::cache()?.join("apt/backports");
    let apt = PrivateApt::installing(&directory, &sources, std::slice::from_ref(&suite))?;
    progress::run(&format!("list the packages of {suite}"), apt.command("apt-get").arg("update"))?;
    progress::run(
        &format!("install {QEMU} from {suite}"),
        apt.command("apt-get").args(INSTALL).args(["--target-release", &suite, QEMU]),
    )
}

/// A package installation that was cut off leaves dpkg in a state that apt refuses to work on.
fn finish_interrupted() -> Result<()> {
    let audit = progress::capture(Command::new("dpkg").arg("--audit")).unwrap_or_default();
    let updates =
        fs::read_dir("/var/lib/dpkg/updates").is_ok_and(|mut entries| entries.next().is_some());
    if audit.trim().is_empty() && !updates {
        return Ok(());
    }
    let mut configure = Command::new("dpkg");
    configure.args(["--configure", "-a"]).env("DEBIAN_FRONTEND", "noninteractive");
    progress::run("finish an interrupted installation (dpkg --configure -a)", &mut configure)?;
    progress::run(
        "repair dependencies",
        apt_get().args(["install", "--fix-broken", "--yes", "--no-remove", "-q"]),
    )
}

fn is_available(package: &str) -> bool {
    let shown = progress::capture(
        Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C.UTF-8"),
    );
    shown.is_ok_and(|text| {
        text.lines()
            .any(|line| line.trim_start().starts_with("Candidate:") && !line.contains("(none)"))
    })
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
    command
}

/// Whether this process is root.
pub(crate) fn is_root() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let uids = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .context("/proc/self/status has no Uid line")?;
    Ok(uids.split_whitespace().nth(1) == Some("0"))
}
