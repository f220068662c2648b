//! While a pool is sealed, its storage daemon deletes on no other superblock of that kind outside
//! the roots either; everybody else does.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

use crate::harness::attempt::{in_cgroup, rm_is_denied, rm_passes};
use crate::harness::command;
use crate::harness::guarded::{Guarded, populate};
use crate::harness::mount::Mount;
use crate::harness::registry::Test;
use crate::harness::scratch::Scratch;

pub(super) const TESTS: &[Test] = &[
    Test::new("alias_of_a_sealed_pool_is_closed_to_its_actors_only", actors_only),
    Test::new("alias_is_closed_once_a_sealed_root_has_a_pool", without_a_pool),
];

const DAEMON: &str = "/sys/fs/cgroup/standin-alias";
const ACTORS: &str = "actors = [{ cgroup = \"/standin-alias\" }]";

/// A mount outside the root, that the agent need not have seen.
fn outside(scratch: &Scratch, name: &str) -> Result<Mount> {
    let mount = Mount::tmpfs(scratch.join(name))?;
    populate(mount.path())?;
    Ok(mount)
}

/// The file has to be there afterwards if it must not pass.
fn as_daemon(path: &Path, passes: bool) -> Result<()> {
    let rm = PathBuf::from(command::run("sh", &["-c", "command -v rm"])?.trim());
    let passed = in_cgroup(Path::new(DAEMON), &rm, path)?;
    ensure!(passed == passes, "the daemon's deletion of {} passed: {passed}", path.display());
    ensure!(path.exists() != passes, "{} is there: {passes}", path.display());
    Ok(())
}

fn truncated_by_daemon(path: &Path) -> Result<bool> {
    let status = std::process::Command::new("sh")
        .args([
            "-c",
            "echo 0 >\"$1/cgroup.procs\" && truncate -s 0 \"$2\" 2>/dev/null",
            "sh",
            DAEMON,
        ])
        .arg(path)
        .status()
        .context("start sh")?;
    let is_empty = fs::metadata(path)?.len() == 0;
    ensure!(
        status.success() == is_empty,
        "truncate ended with {status}, and the file is empty: {is_empty}"
    );
    Ok(is_empty)
}

fn actors_only() -> Result<()> {
    let scratch = Scratch::new("alias")?;
    fs::create_dir_all(DAEMON).context("make the daemon's cgroup")?;
    let ground = Guarded::new("alias", ACTORS)?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let before = outside(&scratch, "before")?;
    as_daemon(&before.path().join("file0"), true)?;

    ground.guardctl(&["seal", "pool"])?;
    rm_is_denied(&pool.path().join("file0"))?;
    let denied = ground.counter("denied_alias")?;
    // Known before, and not looked at by anyone yet.
    let after = outside(&scratch, "after")?;
    for mount in [&before, &after] {
        let at = |name: &str| mount.path().join(name);
        as_daemon(&at("file1"), false)?;
        rm_passes(&at("file2"))?;
        ensure!(!truncated_by_daemon(&at("file1"))?, "the daemon truncated it");
        fs::File::options()
            .write(true)
            .truncate(true)
            .open(at("file3"))
            .context("truncate as another")?;
        let moved = fs::rename(at("file3"), at("file4"));
        ensure!(moved.is_ok(), "another's rename over a file: {moved:?}");
        rm_passes(&at("volume"))?;
    }
    ensure!(
        ground.counter("denied_alias")? - denied == 4,
        "denied on two mounts: one rm, one truncate each"
    );
    ground.wait_for_decision("alias", "/file1")?;
    // Unmounted lazily, with a directory still open: reached by nobody's path, and by the daemon's.
    let held = fs::File::open(after.path())?;
    let mut after = after;
    after.unmount_lazily()?;
    let by_handle = PathBuf::from(format!("/proc/{}/fd/{}/file1", std::process::id(), {
        use std::os::fd::AsRawFd as _;
        held.as_raw_fd()
    }));
    as_daemon(&by_handle, false)?;
    let removed = nix::unistd::unlink(&by_handle);
    ensure!(removed == Ok(()) || removed == Err(Errno::ENOENT), "another's unlink: {removed:?}");
    ensure!(!by_handle.exists(), "another's unlink by the open directory did nothing");

    ground.guardctl(&["unseal", "pool"])?;
    as_daemon(&before.path().join("file1"), true)?;
    as_daemon(&pool.path().join("file1"), true)?;
    rm_is_denied(&pool.path().join("file2"))?;
    fs::remove_dir(DAEMON).context("remove the daemon's cgroup")
}

fn without_a_pool() -> Result<()> {
    let scratch = Scratch::new("alias-early")?;
    fs::create_dir_all(DAEMON).context("make the daemon's cgroup")?;
    let ground = Guarded::new("alias-early", &format!("mode = \"sealed\"\n{ACTORS}"))?;
    let agent = ground.installation.start()?;
    let other = outside(&scratch, "other")?;
    // Without a pool there is nothing that another mount could show.
    as_daemon(&other.path().join("file3"), true)?;
    let pool = ground.pool("pool")?;
    ground.wait_for_mode(pool.path(), "sealed")?;
    as_daemon(&other.path().join("file0"), false)?;
    rm_passes(&other.path().join("file1"))?;
    // Entries in the kernel stay without an agent.
    drop(agent);
    as_daemon(&other.path().join("file0"), false)?;
    rm_passes(&other.path().join("file2"))?;
    ground.installation.write_policy(&ground.policy(ACTORS))?;
    let _agent = ground.installation.start()?;
    ground.guardctl(&["unseal", "pool"])?;
    as_daemon(&other.path().join("file0"), true)?;
    fs::remove_dir(DAEMON).context("remove the daemon's cgroup")
}
