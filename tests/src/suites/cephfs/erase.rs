//! Programs that empty a directory, run on the pool by a process that is not the storage daemon.
//! Afterwards all 1,000 files are there, as an independent mount sees them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::errno::Errno;

use crate::harness::cephfs_host::{FILES, Host, POOL, POOLS, ROOT, on_guarded};
use crate::harness::registry::Test;
use crate::harness::{command, scratch, tree, wait};
use crate::peers::{container, go, uring};

pub(super) const TESTS: &[Test] = &[
    Test::new("guarded_rm_rf_of_the_root", rm_rf_of_the_root),
    Test::new("guarded_rm_rf_of_a_glob", rm_rf_of_a_glob),
    Test::new("guarded_find_delete", find_delete),
    Test::new("guarded_python_rmtree", python_rmtree),
    Test::new("guarded_go_remove_all", go_remove_all),
    Test::new("guarded_io_uring_unlinkat", io_uring_unlinkat),
    Test::new("guarded_rsync_delete", rsync_delete),
    Test::new("guarded_rm_in_a_private_copy_of_the_mounts", private_copy_of_the_mounts),
    Test::new("guarded_rm_in_a_chroot", rm_in_a_chroot),
];

/// The incident itself. Files outside the shared filesystem go as they always did.
fn rm_rf_of_the_root() -> Result<()> {
    on_guarded(|host| {
        let said = host.withstands(FILES, || command::run_failing("rm", &["-rf", ROOT]))?;
        let refused = said.lines().filter(|line| line.ends_with("Operation not permitted")).count();
        ensure!(refused == FILES, "rm complained {refused} times");
        ensure!(!Path::new(ROOT).join("database").exists(), "the rest of the root is still there");
        one_incident(host, "rm")
    })
}

/// The agent's books: one incident with all denials, and nothing unaccounted for.
fn one_incident(host: &Host, comm: &str) -> Result<()> {
    wait::until("the audit log has the whole incident", Duration::from_secs(30), || {
        Ok(host.installation.audit_records()?.iter().any(|record| {
            let incident = &record["incident"];
            incident["comm"] == comm
                && incident["ended"] == true
                && incident["count"].as_u64() >= Some(FILES as u64)
                && incident["reason"] == "guarded"
        }))
    })?;
    let status = host.ask(&["status"])?;
    let count = |name: &str| status["reconciled"][name].as_u64().unwrap_or_default();
    let sum = count("emitted") + count("aggregated") + count("lost");
    ensure!(count("decisions") == sum && count("lost") == 0, "{}", status["reconciled"]);
    Ok(())
}

fn rm_rf_of_a_glob() -> Result<()> {
    on_guarded(|host| {
        let line = format!("rm -rf {POOLS}/*");
        host.withstands(FILES, || command::run_failing("sh", &["-c", &line]))?;
        let line = format!("rm -rf --one-file-system {POOLS}/*");
        host.withstands(FILES, || command::run_failing("sh", &["-c", &line]))?;
        Ok(())
    })
}

fn find_delete() -> Result<()> {
    on_guarded(|host| {
        host.withstands(FILES, || {
            command::run_failing("find", &[ROOT, "-mindepth", "1", "-delete"])
        })?;
        Ok(())
    })
}

fn python_rmtree() -> Result<()> {
    on_guarded(|host| {
        // Told to ignore errors it tries everything; else it ends at the first.
        let program = format!("import shutil; shutil.rmtree('{ROOT}', ignore_errors=True)");
        host.withstands(FILES, || command::run("/usr/bin/python3", &["-c", &program]))?;
        let program = format!("import shutil; shutil.rmtree('{POOL}')");
        let said =
            host.withstands(1, || command::run_failing("/usr/bin/python3", &["-c", &program]))?;
        ensure!(said.contains("PermissionError"), "Python said: {said}");
        Ok(())
    })
}

fn go_remove_all() -> Result<()> {
    on_guarded(|host| {
        let outcome = host.withstands(FILES, || Ok(go::remove_all(Path::new(ROOT))))?;
        ensure!(outcome == Err(Errno::EPERM), "RemoveAll returned {outcome:?}");
        Ok(())
    })
}

fn io_uring_unlinkat() -> Result<()> {
    on_guarded(|host| {
        let all = tree::contents(Path::new(POOL))?;
        let files = all.iter().filter(|(_, size)| size.is_some());
        let paths: Vec<_> = files.map(|(path, _)| Path::new(POOL).join(path)).collect();
        let outcomes = host.withstands(FILES, || uring::unlink(&paths))?;
        let refused = outcomes.iter().filter(|outcome| **outcome == Err(Errno::EPERM)).count();
        ensure!(refused == FILES, "{refused} of {} were refused", outcomes.len());
        Ok(())
    })
}

fn rsync_delete() -> Result<()> {
    on_guarded(|host| {
        let empty = scratch::Scratch::new("empty")?;
        let from = format!("{}/", empty.path().display());
        let to = format!("{POOL}/");
        host.withstands(FILES, || command::run_failing("rsync", &["-a", "--delete", &from, &to]))?;
        Ok(())
    })
}

/// A service with private mounts (`PrivateMounts=`, `unshare`) is no container: it has the whole
/// pool.
fn private_copy_of_the_mounts() -> Result<()> {
    on_guarded(|host| {
        host.withstands(FILES, || {
            container::in_own_namespace(|| command::run_failing("rm", &["-rf", ROOT]).map(drop))
        })
    })
}

fn rm_in_a_chroot() -> Result<()> {
    on_guarded(|host| {
        // To the chroot the root's path is another one.
        fs::create_dir_all(Path::new(ROOT).join("bin"))?;
        fs::copy("/bin/busybox", Path::new(ROOT).join("bin/busybox"))?;
        let arguments = [ROOT, "/bin/busybox", "rm", "-rf", "/storage-pools/shared"];
        host.withstands(1, || command::run_failing("chroot", &arguments))?;
        Ok(())
    })
}
