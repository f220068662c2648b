//! Assumptions of the tests on stand-in filesystems about the machine.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::harness::machine;
use crate::harness::mount::{self, Mount};
use crate::harness::registry::{Profile, Test};
use crate::harness::tree;

pub(super) const TESTS: &[Test] = &[
    Test::new("ground_kernel_is_the_one_asked_for", kernel_is_the_one_asked_for),
    Test::new("ground_lsm_list_is_the_tiers", lsm_list_is_the_tiers),
    Test::new("ground_bpf_lsm_is_inactive", bpf_lsm_is_inactive).on(Profile::NoBpf),
    Test::new("ground_filesystems_are_mounted", filesystems_are_mounted),
    Test::new("ground_tmpfs_holds_a_tree", tmpfs_holds_a_tree),
];

fn kernel_is_the_one_asked_for() -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let wanted = machine::kernel()?;
    ensure!(release.starts_with(&format!("{wanted}.")), "wanted {wanted}, booted {release}");
    Ok(())
}

fn active_lsms() -> Result<String> {
    fs::read_to_string("/sys/kernel/security/lsm").context("read the list of active LSMs")
}

fn lsm_list_is_the_tiers() -> Result<()> {
    let (lsms, tier) = (active_lsms()?, machine::tier()?);
    let has_bpf = lsms.split(',').any(|lsm| lsm == "bpf");
    ensure!(
        !lsms.is_empty() && has_bpf == (tier == "bpf-lsm"),
        "{tier} is wanted, the active LSMs are {lsms}"
    );
    Ok(())
}

fn bpf_lsm_is_inactive() -> Result<()> {
    let lsms = active_lsms()?;
    ensure!(
        !lsms.is_empty() && lsms.split(',').all(|lsm| lsm != "bpf"),
        "the active LSMs are {lsms}"
    );
    Ok(())
}

fn filesystems_are_mounted() -> Result<()> {
    let kinds = [
        ("/sys/fs/cgroup", "cgroup2"),
        ("/sys/fs/bpf", "bpf"),
        ("/sys/kernel/security", "securityfs"),
        ("/sys/kernel/tracing", "tracefs"),
        ("/dev/shm", "tmpfs"),
    ];
    for (path, kind) in kinds {
        let lines = mount::mountinfo_of(Path::new(path))?;
        ensure!(
            lines.iter().any(|line| line.contains(&format!(" - {kind} "))),
            "{path} is no {kind}: {lines:?}"
        );
    }
    let root = mount::mountinfo_of(Path::new("/"))?;
    ensure!(root.iter().any(|line| line.contains(" shared:")), "the root is not shared: {root:?}");
    Ok(())
}

fn tmpfs_holds_a_tree() -> Result<()> {
    let mount = Mount::tmpfs("/run/guard-tests/ground")?;
    tree::fill(mount.path(), 100, 7)?;
    ensure!(tree::count(mount.path())? == 100, "counted {}", tree::count(mount.path())?);
    Ok(())
}
