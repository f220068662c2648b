//! A lease in the kernel lets one command tree through, and nobody else: the test writes the map
//! itself. The granting of such leases is tested in `exec_standin`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use guard_common::{LeaseEntry, LeaseKey};

use crate::harness::attempt::{in_cgroup, rm_is_denied};
use crate::harness::command;
use crate::harness::guarded::Guarded;
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] =
    &[Test::new("command_lease_lets_one_tree_through_also_when_sealed", one_tree)];

const TREE: &str = "/sys/fs/cgroup/standin-lease";

fn one_tree() -> Result<()> {
    let ground = Guarded::new("command-lease", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let at = |name: &str| pool.path().join(name);
    let rm = PathBuf::from(command::run("sh", &["-c", "command -v rm"])?.trim());
    let below = Path::new(TREE).join("below");
    fs::create_dir_all(&below).context("make the tree's cgroup")?;

    let report = ground.report(pool.path())?.context("the pool is reported")?;
    let generation = report["generation"].as_u64().context("its generation")?;
    let device = fs::metadata(pool.path()).context("stat the pool")?.dev();
    let dev = guard_common::policy::kernel_dev(
        u32::try_from(nix::sys::stat::major(device))?,
        u32::try_from(nix::sys::stat::minor(device))?,
    );
    let key = LeaseKey { cgroup_id: fs::metadata(TREE)?.ino(), dev, reserved: 0 };
    let mut maps = ground.installation.maps()?;
    let mut grant =
        |generation, expires_boot_ns| maps.grant(key, LeaseEntry::new(generation, expires_boot_ns));

    grant(generation, u64::MAX)?;
    ensure!(in_cgroup(Path::new(TREE), &rm, &at("file0"))?, "the tree with the lease was denied");
    ensure!(in_cgroup(&below, &rm, &at("file1"))?, "a cgroup below it was denied");
    rm_is_denied(&at("file2"))?;
    ground.guardctl(&["seal", "pool"])?;
    ensure!(
        in_cgroup(Path::new(TREE), &rm, &at("file3"))?,
        "the lease does not hold in a sealed pool"
    );
    rm_is_denied(&at("file2"))?;
    ground.wait_for_decision("lease", "/file3")?;

    grant(generation, 1)?;
    ensure!(!in_cgroup(Path::new(TREE), &rm, &at("file2"))?, "a lease that is over lets through");
    grant(generation + 1, u64::MAX)?;
    ensure!(
        !in_cgroup(Path::new(TREE), &rm, &at("file2"))?,
        "a lease for another superblock lets through"
    );
    maps.leases.remove(&key)?;
    ground.guardctl(&["unseal", "pool"])?;
    fs::remove_dir(&below)?;
    fs::remove_dir(TREE)?;
    Ok(())
}
