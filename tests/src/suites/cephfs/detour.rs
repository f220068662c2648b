//! Ways around: other operations, other paths to the same superblock, in guarded mode. Afterwards
//! all 1,000 files are there, as an independent mount sees them.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::harness::ceph::CephMount;
use crate::harness::cephfs_host::{DATA, FILES, POOL, as_actor, on_guarded};
use crate::harness::mount::Mount;
use crate::harness::registry::Test;
use crate::harness::{command, scratch, tree};
use crate::peers::go;

pub(super) const TESTS: &[Test] = &[
    Test::new("guarded_rename_over", rename_over),
    Test::new("guarded_rename_exchange", rename_exchange),
    Test::new("guarded_bind_alias", bind_alias),
    Test::new("guarded_lazy_unmount_with_an_open_directory", lazy_unmount_with_an_open_directory),
    Test::new("guarded_snapshot_removal", snapshot_removal),
];

fn rename_over() -> Result<()> {
    on_guarded(|host| {
        let fresh = Path::new(POOL).join("fresh");
        fs::write(&fresh, "not what was there\n")?;
        let victims = tree::contents(Path::new(DATA))?;
        let files = victims.iter().filter(|(_, size)| size.is_some()).map(|(path, _)| path);
        host.withstands(FILES, || {
            for file in files {
                let outcome =
                    nix::fcntl::renameat(AT_FDCWD, &fresh, AT_FDCWD, &Path::new(DATA).join(file));
                ensure!(outcome == Err(Errno::EPERM), "{}: {outcome:?}", file.display());
            }
            Ok(())
        })?;
        let victim = format!("{DATA}/d0/e0/f0");
        host.withstands(1, || {
            command::run_failing("mv", &["-f", &fresh.to_string_lossy(), &victim])
        })?;
        // From another filesystem mv removes the target and copies.
        let scratch = scratch::Scratch::new("mv")?;
        let outside = scratch.join("outside");
        fs::write(&outside, "not what was there\n")?;
        host.withstands(1, || {
            command::run_failing("mv", &["-f", &outside.to_string_lossy(), &victim])
        })?;
        fs::remove_file(host.on_ceph().join("fresh"))?;
        Ok(())
    })
}

/// CephFS cannot exchange, and would say EINVAL: EPERM is the barrier's.
fn rename_exchange() -> Result<()> {
    on_guarded(|host| {
        let fresh = Path::new(POOL).join("fresh");
        fs::write(&fresh, "not what was there\n")?;
        let victim = Path::new(DATA).join("d0/e0/f0");
        for (from, to) in [(&fresh, &victim), (&victim, &fresh)] {
            let exchange =
                || Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_EXCHANGE));
            let outcome = host.withstands(1, exchange)?;
            ensure!(outcome == Err(Errno::EPERM), "{outcome:?}");
        }
        fs::remove_file(host.on_ceph().join("fresh"))?;
        Ok(())
    })
}

fn bind_alias() -> Result<()> {
    on_guarded(|host| {
        for (source, empty) in [(POOL, "/srv/alias"), (DATA, "/srv/alias-of-a-part")] {
            let alias = Mount::bind(Path::new(source), empty)?;
            let line = format!("rm -rf {}/*", alias.path().display());
            host.withstands(FILES, || command::run_failing("sh", &["-c", &line]))?;
        }
        Ok(())
    })
}

/// Gone from the mount table, and with it the path: the descriptor still reaches the data.
fn lazy_unmount_with_an_open_directory() -> Result<()> {
    on_guarded(|host| {
        let directory = File::open(POOL)?;
        host.pool.mount().unmount_lazily()?;
        ensure!(fs::read_dir(POOL)?.next().is_none(), "the pool is still mounted");
        let first = host.withstands(FILES, || go::remove_children(directory.as_fd()))?;
        ensure!(first == Some(Errno::EPERM), "the first error was {first:?}");
        drop(directory);
        host.mount_again()?;
        host.find_pool()
    })
}

/// A snapshot is removed by an rmdir in `.snap`, where `stat` reports another device.
fn snapshot_removal() -> Result<()> {
    on_guarded(|host| {
        let snapshot = Path::new(DATA).join(".snap/before");
        fs::create_dir(&snapshot)?;
        let kept = tree::count(&snapshot)?;
        ensure!(kept == FILES, "the snapshot has {kept} files");
        let path = snapshot.to_string_lossy().into_owned();
        host.withstands(1, || command::run_failing("rmdir", &[&path]))?;
        ensure!(tree::count(&snapshot)? == FILES, "the snapshot is not whole any more");
        let seen = Path::new("/mnt/late/pool-a/custom/default_data/.snap/before");
        // A client caches the snapshots that it has seen: the client asked here must look for the
        // first time.
        let late = CephMount::independent("/mnt/late")?;
        ensure!(seen.exists(), "another client does not see the snapshot any more");
        drop(late);
        // The storage daemon removes its snapshots.
        as_actor(&format!("rmdir {path}"))?;
        let _late = CephMount::independent("/mnt/late")?;
        ensure!(!seen.exists(), "the snapshot is still there");
        Ok(())
    })
}
