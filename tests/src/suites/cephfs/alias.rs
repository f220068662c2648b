//! A sealed pool by another superblock: Incus mounts the filesystem's root below `/tmp` to make and
//! delete a pool's directory.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::harness::ceph::CephMount;
use crate::harness::cephfs_host::{Host, POOL, WITNESS, as_actor, on_guarded};
use crate::harness::registry::Test;
use crate::harness::{tree, wait};

pub(super) const TESTS: &[Test] = &[
    Test::new("alias_by_incus_temporary_mount", temporary_mount),
    Test::new("alias_by_a_path_that_cannot_reach_the_pool", unrelated_path),
];

const TEMPORARY: &str = "/tmp/incus_cephfs_1234/mount";
const UNRELATED: &str = "/mnt/unrelated";

fn denied_to_actor(host: &Host, line: &str, path: &Path) -> Result<()> {
    let before = host.counter("denied_alias")?;
    ensure!(as_actor(line).is_err(), "{line}: passed");
    ensure!(path.exists(), "{} is gone", path.display());
    ensure!(host.counter("denied_alias")? > before, "{line}: failed, and was not denied");
    Ok(())
}

fn temporary_mount() -> Result<()> {
    on_guarded(|host| {
        // Another pool of the same filesystem, which Incus deletes by this mount.
        tree::fill(&Path::new(WITNESS).join("pool-b"), 4, 2)?;
        tree::fill(&Path::new(WITNESS).join("beside"), 4, 2)?;
        host.direct(&["seal", "shared"])?;
        let mut root = CephMount::new(TEMPORARY)?;
        let at = |name: &str| root.path().join(name);
        denied_to_actor(host, &format!("rm -rf {TEMPORARY}/pool-a/custom"), &at("pool-a/custom"))?;
        denied_to_actor(host, &format!("rmdir {TEMPORARY}/pool-a"), &at("pool-a"))?;
        let file = "pool-a/custom/default_data/d0/e0/f0";
        fs::write(at("pool-b/new"), "new").context("write beside the pool")?;
        denied_to_actor(
            host,
            &format!("mv -f {TEMPORARY}/pool-b/new {TEMPORARY}/{file}"),
            &at(file),
        )?;
        denied_to_actor(host, &format!("truncate -s 0 {TEMPORARY}/{file}"), &at(file))?;
        host.is_intact()?;
        as_actor(&format!("rm -rf {TEMPORARY}/pool-b"))
            .context("another pool, by the storage daemon")?;
        ensure!(!at("pool-b").exists(), "the other pool is still there");
        // An administrator's own work is nobody's business.
        fs::remove_dir_all(at("beside")).context("an administrator's deletion")?;
        // It goes on below open directories after Incus gave up on unmounting.
        let held = fs::File::open(root.path())?;
        root.mount().unmount_lazily()?;
        let by_handle = format!("/proc/{}/fd/{}", std::process::id(), {
            use std::os::fd::AsRawFd as _;
            held.as_raw_fd()
        });
        let path = Path::new(&by_handle).join(file);
        denied_to_actor(host, &format!("rm {}", path.display()), &path)?;
        drop(held);
        host.direct(&["unseal", "shared"])?;
        fs::create_dir_all(Path::new(WITNESS).join("pool-empty")).context("make an empty pool")?;
        let root = CephMount::new(TEMPORARY)?;
        as_actor(&format!("rmdir {TEMPORARY}/pool-empty"))
            .context("the actor, when nothing is sealed")?;
        drop(root);
        let own = host.scratch("actors-own")?;
        as_actor(&format!("rm -rf {}", own.display()))
            .context("the actor in the pool, unsealed")?;
        ensure!(!Path::new(POOL).join("actors-own").exists(), "rm -rf left something");
        Ok(())
    })
}

fn unrelated_path() -> Result<()> {
    on_guarded(|host| {
        tree::fill(&Path::new(WITNESS).join("unrelated"), 4, 2)?;
        fs::create_dir_all(Path::new(WITNESS).join("unrelated/one")).context("make a directory")?;
        host.direct(&["seal", "shared"])?;
        let _mount = CephMount::of("/unrelated", UNRELATED, "")?;
        // The agent has to have seen it first: until then it is in doubt, and denied.
        wait::until("the actor may delete in it", std::time::Duration::from_secs(20), || {
            Ok(as_actor(&format!("rmdir {UNRELATED}/one")).is_ok())
        })?;
        as_actor(&format!("rm -rf {UNRELATED}/d0")).context("the actor's rm -rf")?;
        let pools = host.ask(&["pools"])?;
        let count = pools.as_array().map_or(0, Vec::len);
        ensure!(count == 1, "guardctl pools shows {count} pools: {pools}");
        denied_to_actor(
            host,
            &format!("rm -rf {WITNESS}/pool-a/custom"),
            &host.on_ceph().join("custom"),
        )?;
        host.direct(&["unseal", "shared"])?;
        fs::remove_dir_all(Path::new(WITNESS).join("unrelated"))
            .context("remove the unrelated path")
    })
}
