//! Ends and removes the remains of a scenario, with any outcome.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, umount2};

use super::container;
use super::machine;
use super::node::Role;
use crate::harness::wait;

/// For killed processes to be gone.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Ends the remains of the nodes, unmounts and removes all of it.
pub fn all() -> Result<()> {
    machine::link(true)?;
    for cgroup in [Role::Joiner.cgroup(), Role::Seed.cgroup()] {
        end(cgroup)?;
    }
    for cgroup in container::CGROUPS.map(Path::new) {
        end(cgroup)?;
        remove_cgroup(cgroup)?;
    }
    for mountpoint in remains()?.iter().rev() {
        umount2(mountpoint.as_path(), MntFlags::MNT_DETACH)
            .with_context(|| format!("unmount {}", mountpoint.display()))?;
    }
    let left = remains()?;
    ensure!(left.is_empty(), "still mounted: {left:?}");
    for role in [Role::Joiner, Role::Seed] {
        remove(role.directory())?;
        remove(role.logs())?;
    }
    remove(Path::new(container::LOCKS))?;
    remove(Path::new("/run/incus"))
}

/// Ends all processes of a cgroup and of those below it.
fn end(cgroup: &Path) -> Result<()> {
    let kill = cgroup.join("cgroup.kill");
    if !kill.exists() {
        return Ok(());
    }
    fs::write(&kill, "1").with_context(|| format!("end the processes of {}", cgroup.display()))?;
    wait::until(&format!("the processes of {} end", cgroup.display()), END_LIMIT, || {
        Ok(fs::read_to_string(cgroup.join("cgroup.events"))?.contains("populated 0"))
    })
}

/// Removes an empty cgroup with those below it, if it is there.
fn remove_cgroup(cgroup: &Path) -> Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(cgroup).with_context(|| format!("list {}", cgroup.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup).with_context(|| format!("remove {}", cgroup.display()))
}

/// Mounts that the nodes have left.
fn remains() -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let mountpoints = table.lines().filter_map(|line| line.split(' ').nth(4));
    let own = |path: &&str| {
        ["/var/lib/incus", "/tmp/incus_cephfs_"].iter().any(|prefix| path.starts_with(prefix))
    };
    Ok(mountpoints.filter(own).map(PathBuf::from).collect())
}

/// Removes a directory, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}
