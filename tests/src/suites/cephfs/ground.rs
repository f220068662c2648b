//! Assumptions of the tests on real CephFS about the machine and the cluster.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Result, ensure};

use crate::harness::ceph::CephMount;
use crate::harness::registry::Test;
use crate::harness::tree;

pub(super) const TESTS: &[Test] = &[
    Test::new("ground_kernel_client_mounts_and_writes", kernel_client_mounts_and_writes),
    Test::new("ground_independent_mount_sees_the_same", independent_mount_sees_the_same),
    Test::new("ground_old_device_syntax_mounts", old_device_syntax_mounts),
];

fn kernel_client_mounts_and_writes() -> Result<()> {
    let pool = CephMount::new("/mnt/ground")?;
    let file = pool.path().join("written");
    fs::write(&file, "x")?;
    ensure!(fs::read_to_string(&file)? == "x", "read something else than was written");
    fs::remove_file(&file)?;
    Ok(())
}

fn independent_mount_sees_the_same() -> Result<()> {
    let pool = CephMount::new("/mnt/ground")?;
    let witness = CephMount::independent("/mnt/witness")?;
    let (one, other) = (fs::metadata(pool.path())?.dev(), fs::metadata(witness.path())?.dev());
    ensure!(one != other, "both mounts share one superblock ({one})");
    let tree = pool.path().join("tree");
    tree::fill(&tree, 50, 8)?;
    let seen = tree::count(&witness.path().join("tree"))?;
    ensure!(seen == 50, "the independent mount sees {seen} of 50 files");
    fs::remove_dir_all(&tree)?;
    Ok(())
}

fn old_device_syntax_mounts() -> Result<()> {
    let pool = CephMount::old_syntax("/", "/mnt/ground", "")?;
    tree::count(pool.path())?;
    Ok(())
}
