//! Runs the packages' scripts for real: in a Debian tree without systemd as PID 1 (a chroot), as in
//! a container's image. With systemd running, the suite `host` does it.
//!
//! The .rpm's scripts are run there by rpm itself, chrooted, with an empty rpm database and
//! therefore without dependencies (`--nodeps`). So the shell, systemctl and systemd-sysusers are
//! real ones, and the files are those of Debian. Not shown: Fedora's `systemd-update-helper`, which
//! Debian has not, and rpm's own making of groups from sysusers.d (from rpm 4.19 on).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::Packages;
use crate::apt::Sources;
use crate::setup::is_root;
use crate::{progress, workspace};

const UNIT_LINK: &str = "etc/systemd/system/multi-user.target.wants/guard-agent.service";
const POLICY: &str = "etc/guard-agent/policy.toml";
/// Files that the agent would have made.
const MADE: [&str; 3] = [
    "var/lib/guard-agent/state.json",
    "var/log/guard-agent/audit.jsonl",
    "run/guard-agent/control.sock",
];

/// Runs both packages' scripts, each in a tree of its own.
pub(super) fn run(packages: &Packages) -> Result<()> {
    ensure!(is_root()?, "dist --check needs root, for chroot: run it with sudo");
    let base = base()?;
    let place = workspace::process_directory(&std::env::temp_dir(), "guard-trial-")?;
    let outcome = (|| {
        debian(&Tree::unpack(&base, &place.join("deb"))?, &packages.deb, &place)?;
        rpm(&Tree::unpack(&base, &place.join("rpm"))?, &packages.rpm)
    })();
    let removed = fs::remove_dir_all(&place);
    outcome?;
    removed.with_context(|| format!("remove {}", place.display()))
}

/// The archive of the tree, in the cache.
fn base() -> Result<PathBuf> {
    let sources = Sources::of_this_machine()?;
    let directory = workspace::cache()?.join("dist-tree");
    let archive = directory.join(format!("{}.tar", sources.codename()));
    if !archive.exists() {
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        let lists = workspace::fresh_directory(directory.join("sources"))?;
        sources.derive(sources.codename(), &lists)?;
        let partial = archive.with_extension("partial.tar");
        let mut command = Command::new("mmdebstrap");
        command.args(["--variant=minbase", "--include=systemd,logrotate", sources.codename()]);
        command.arg(&partial);
        for entry in fs::read_dir(&lists).context("list the derived sources")?.flatten() {
            command.arg(entry.path());
        }
        progress::run("make a Debian tree to try the packages in", &mut command)?;
        fs::rename(&partial, &archive).with_context(|| format!("rename {}", partial.display()))?;
    }
    Ok(archive)
}

struct Tree {
    root: PathBuf,
}

impl Tree {
    fn unpack(archive: &Path, root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--numeric-owner", "--file"])
            .arg(archive)
            .arg("--directory")
            .arg(root);
        progress::capture(&mut tar)?;
        Ok(Self { root: root.to_owned() })
    }

    /// Runs `command` in the tree, whose own paths are all it sees.
    fn run(&self, command: &str) -> Result<String> {
        let mut chroot = Command::new("chroot");
        chroot.arg(&self.root).args(["/bin/sh", "-ec", command]);
        chroot.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
        chroot.env("DEBIAN_FRONTEND", "noninteractive");
        progress::capture(&mut chroot)
    }

    fn has(&self, path: &str) -> bool {
        self.root.join(path).symlink_metadata().is_ok()
    }

    fn expect(&self, when: &str, path: &str, there: bool) -> Result<()> {
        let word = if there { "lacks" } else { "still has" };
        ensure!(self.has(path) == there, "after {when} the tree {word} /{path}");
        Ok(())
    }

    fn installed(&self, when: &str) -> Result<()> {
        for path in ["usr/sbin/guard-agent", "usr/bin/guardctl", POLICY] {
            self.expect(when, path, true)?;
        }
        self.run("getent group guard").with_context(|| format!("after {when}: no group guard"))?;
        self.run("guard-agent --version && guardctl --version && guardctl policy check")
            .with_context(|| format!("after {when} the programs do not run"))?;
        Ok(())
    }

    /// Makes the files that a run of the agent leaves.
    fn used(&self) -> Result<()> {
        for path in MADE {
            let path = self.root.join(path);
            let parent = path.parent().context("a file is in a directory")?;
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
            fs::write(&path, "x").with_context(|| format!("write {}", path.display()))?;
        }
        let policy = self.root.join(POLICY);
        let text = fs::read_to_string(&policy)? + "# edited\n";
        fs::write(&policy, text).with_context(|| format!("write {}", policy.display()))
    }

    fn edited(&self, when: &str) -> Result<()> {
        let text = fs::read_to_string(self.root.join(POLICY))?;
        ensure!(text.ends_with("# edited\n"), "{when} has replaced an edited policy");
        Ok(())
    }

    /// Files with the name of ours, but for the records of dpkg and rpm about themselves.
    fn leftovers(&self) -> Result<String> {
        self.run(
            "find / -xdev -name '*guard*' ! -path '/proc/*' ! -path '/sys/*' ! -path '/trial/*'",
        )
    }
}

fn debian(tree: &Tree, deb: &Path, place: &Path) -> Result<()> {
    let trial = tree.root.join("trial");
    fs::create_dir_all(&trial).with_context(|| format!("create {}", trial.display()))?;
    fs::copy(deb, trial.join("1.deb")).with_context(|| format!("copy {}", deb.display()))?;
    renumbered(deb, &place.join("renumbered"), &trial.join("2.deb"))?;
    tree.run("dpkg --install /trial/1.deb").context("install the .deb")?;
    tree.installed("the installation of the .deb")?;
    tree.expect("the installation of the .deb", UNIT_LINK, true)?;
    tree.used()?;
    tree.run("dpkg --install /trial/2.deb").context("upgrade the .deb")?;
    tree.installed("the upgrade of the .deb")?;
    tree.edited("the upgrade of the .deb")?;
    tree.run("dpkg --remove guard-agent").context("remove the .deb")?;
    tree.expect("the removal of the .deb", "usr/sbin/guard-agent", false)?;
    tree.expect("the removal of the .deb", "run/guard-agent", false)?;
    tree.expect("the removal of the .deb", "var/lib/guard-agent", true)?;
    tree.edited("the removal of the .deb")?;
    tree.run("dpkg --install /trial/1.deb && dpkg --purge guard-agent")
        .context("purge the .deb")?;
    let left = tree.leftovers()?;
    ensure!(left.is_empty(), "after the purge of the .deb these are left:\n{left}");
    ensure!(tree.run("getent group guard").is_err(), "after the purge the group guard is left");
    eprintln!(
        "xtask: dist check: .deb installed, upgraded, removed and purged in a Debian tree: ok"
    );
    Ok(())
}

/// The same package with a higher version.
fn renumbered(deb: &Path, place: &Path, output: &Path) -> Result<()> {
    progress::capture(Command::new("dpkg-deb").arg("--raw-extract").arg(deb).arg(place))?;
    let control = place.join("DEBIAN/control");
    let text =
        fs::read_to_string(&control).with_context(|| format!("read {}", control.display()))?;
    let lines = text.lines().map(|line| match line.strip_prefix("Version: ") {
        Some(version) => format!("Version: {version}.1\n"),
        None => format!("{line}\n"),
    });
    fs::write(&control, lines.collect::<String>())
        .with_context(|| format!("write {}", control.display()))?;
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "--build"]).arg(place).arg(output);
    progress::capture(&mut build).map(|_| ())
}

fn rpm(tree: &Tree, package: &Path) -> Result<()> {
    let rpm = |arguments: &[&str], package: Option<&Path>| {
        let mut command = Command::new("rpm");
        command.arg("--root").arg(&tree.root).args(arguments).args(package);
        progress::capture(&mut command).with_context(|| format!("rpm {arguments:?}"))
    };
    rpm(&["--initdb"], None)?;
    rpm(&["--install", "--nodeps"], Some(package))?;
    tree.installed("the installation of the .rpm")?;
    // Debian's preset enables units that no file names; Fedora's disables it.
    tree.expect("the installation of the .rpm", UNIT_LINK, true)?;
    tree.used()?;
    rpm(&["--upgrade", "--force", "--nodeps"], Some(package))?;
    tree.installed("the upgrade of the .rpm")?;
    tree.edited("the upgrade of the .rpm")?;
    tree.expect("the upgrade of the .rpm", UNIT_LINK, true)?;
    rpm(&["--erase", "guard-agent"], None)?;
    for path in ["usr/sbin/guard-agent", UNIT_LINK, "run/guard-agent"] {
        tree.expect("the removal of the .rpm", path, false)?;
    }
    tree.expect("the removal of the .rpm", "etc/guard-agent/policy.toml.rpmsave", true)?;
    eprintln!(
        "xtask: dist check: .rpm installed, upgraded and removed by rpm in a Debian tree: ok"
    );
    Ok(())
}
