//! Sealed mode on real CephFS: nobody deletes, the storage daemon included.

use std::fs::{self, OpenOptions};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::harness::cephfs_host::{DATA, FILES, POOL, ROOT, as_actor, on_sealed};
use crate::harness::command;
use crate::harness::registry::Test;
use crate::peers::{container, go, uring};

pub(super) const TESTS: &[Test] = &[
    Test::new("sealed_rm_rf_of_the_root", rm_rf_of_the_root),
    Test::new("sealed_go_remove_all", go_remove_all),
    Test::new("sealed_io_uring_unlinkat", io_uring_unlinkat),
    Test::new("sealed_renames", renames),
    Test::new("sealed_actor", actor),
    Test::new("sealed_container", container),
    Test::new("sealed_truncation", truncation),
    Test::new("sealed_open_with_truncation", open_with_truncation),
];

fn rm_rf_of_the_root() -> Result<()> {
    on_sealed(|host| {
        host.withstands(FILES, || command::run_failing("rm", &["-rf", ROOT]))?;
        Ok(())
    })
}

fn go_remove_all() -> Result<()> {
    on_sealed(|host| {
        let outcome = host.withstands(FILES, || Ok(go::remove_all(Path::new(ROOT))))?;
        ensure!(outcome == Err(Errno::EPERM), "RemoveAll returned {outcome:?}");
        Ok(())
    })
}

fn io_uring_unlinkat() -> Result<()> {
    on_sealed(|host| {
        let paths = [Path::new(DATA).join("d0/e0/f0"), Path::new(DATA).join("d1/e1/f20")];
        let outcomes = host.withstands(2, || uring::unlink(&paths))?;
        ensure!(outcomes == [Err(Errno::EPERM); 2], "{outcomes:?}");
        Ok(())
    })
}

fn renames() -> Result<()> {
    on_sealed(|host| {
        let fresh = Path::new(POOL).join("fresh");
        fs::write(&fresh, "not what was there\n")?;
        let victim = Path::new(DATA).join("d0/e0/f0");
        for flags in [RenameFlags::empty(), RenameFlags::RENAME_EXCHANGE] {
            let outcome =
                host.withstands(1, || Ok(renameat2(AT_FDCWD, &fresh, AT_FDCWD, &victim, flags)))?;
            ensure!(outcome == Err(Errno::EPERM), "{flags:?}: {outcome:?}");
        }
        fs::remove_file(host.on_ceph().join("fresh"))?;
        Ok(())
    })
}

fn actor() -> Result<()> {
    on_sealed(|host| {
        host.withstands(FILES, || match as_actor(&format!("rm -rf {POOL}/custom")) {
            Ok(_) => anyhow::bail!("rm succeeded"),
            Err(_) => Ok(()),
        })
    })
}

fn container() -> Result<()> {
    on_sealed(|host| {
        host.withstands(FILES, || {
            container::with_own_root(Path::new(DATA), |data| {
                let outcome = go::remove_all(data);
                ensure!(outcome == Err(Errno::EPERM), "RemoveAll returned {outcome:?}");
                Ok(())
            })
        })
    })
}

fn truncation() -> Result<()> {
    on_sealed(|host| {
        let victim = Path::new(DATA).join("d0/e0/f0");
        let by_path = host.withstands(1, || Ok(nix::unistd::truncate(&victim, 0)))?;
        ensure!(by_path == Err(Errno::EPERM), "truncate: {by_path:?}");
        let file = OpenOptions::new().write(true).open(&victim)?;
        let by_file = host.withstands(1, || Ok(nix::unistd::ftruncate(&file, 0)))?;
        ensure!(by_file == Err(Errno::EPERM), "ftruncate: {by_file:?}");
        Ok(())
    })
}

/// With the name in this client's cache, and from a mount that has never looked at it: there the
/// kernel client opens in one request to the server. With O_CREAT it is the call of a shell's `>`.
fn open_with_truncation() -> Result<()> {
    on_sealed(|host| {
        let victim = Path::new(DATA).join("d0/e0/f0");
        fs::read(&victim)?;
        for (cached, create) in [(true, false), (true, true), (false, false), (false, true)] {
            let what = format!("cached: {cached}, O_CREAT: {create}");
            if !cached {
                host.pool.mount().unmount()?;
                host.mount_again()?;
                host.find_pool()?;
            }
            let mut options = OpenOptions::new();
            options.write(true).truncate(true).create(create);
            let open = || Ok(options.open(&victim).map(drop));
            let outcome = host.withstands(1, open).context(what.clone())?;
            ensure!(outcome.is_err(), "{what}: opened");
        }
        Ok(())
    })
}
