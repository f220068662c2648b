//! A lease ends: on time, with its superblock, and never passes to another one.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::harness::attempt::{denied, passes, rm_is_denied, rm_passes};
use crate::harness::guarded::{Guarded, populate};
use crate::harness::mount::Mount;
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] = &[
    Test::new("lease_ends_on_time_with_the_agent_stopped", on_time),
    Test::new("lease_and_entry_die_with_the_superblock", with_superblock),
    Test::new("lease_lazy_unmount_with_an_open_directory_stays_denied", lazy_unmount),
];

fn on_time() -> Result<()> {
    const TTL: Duration = Duration::from_secs(3);
    let ground = Guarded::new("on-time", "")?;
    let agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let before = Instant::now();
    ground.guardctl(&["release", "pool", "--ttl", "3s", "--reason", "test"])?;
    let after = Instant::now();
    agent.signal(Signal::SIGSTOP)?;
    let file = pool.path().join("again");
    loop {
        fs::write(&file, "x")?;
        match fs::remove_file(&file) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => break,
            Err(error) => bail!("unlink failed otherwise: {error}"),
        }
        ensure!(after.elapsed() < TTL * 3, "the lease does not end");
    }
    // It began between the two readings of the clock, so it ended between them plus the time
    // granted.
    let (longest, shortest) = (before.elapsed(), after.elapsed());
    ensure!(longest >= TTL, "it ended after {longest:?}, granted were {TTL:?}");
    let late = shortest.saturating_sub(TTL);
    // A whole second is for the machine, which may be busy: the kernel decides to the nanosecond.
    ensure!(late < Duration::from_secs(1), "it ended {late:?} late");
    println!(
        "note: a lease of {TTL:?} was over between {shortest:?} and {longest:?} after it began"
    );
    // Over is over for everyone, truncation included, until an agent says what holds now.
    denied("truncation after the lease", fs::write(&file, "y"))?;
    passes("create", fs::write(pool.path().join("new"), "x"))?;

    agent.signal(Signal::SIGCONT)?;
    ground.wait_for_decision("release-expired", "/again")?;
    ground.wait_for_record("the end", |r| {
        r["kind"] == "lease" && r["lease"]["change"] == "expired"
    })?;
    ground.wait_for_mode(pool.path(), "guarded")?;
    passes("truncation in guarded mode", fs::write(&file, "y"))?;
    rm_is_denied(&file)
}

/// Mounts until the device number comes again; then the kernel has given it away a second time.
fn mount_with_device(path: &Path, device: u64) -> Result<Mount> {
    let mut others = Vec::new();
    for number in 0..64 {
        let mount = Mount::tmpfs(path.with_extension(number.to_string()))?;
        if fs::metadata(mount.path())?.dev() == device {
            return Ok(mount);
        }
        others.push(mount);
    }
    bail!("device number {device:#x} did not come again in 64 mounts")
}

fn with_superblock() -> Result<()> {
    let ground = Guarded::new("superblock", "")?;
    let agent = ground.installation.start()?;
    let mut pool = ground.pool("pool")?;
    let device = fs::metadata(pool.path())?.dev();
    ground.guardctl(&["release", "pool", "--ttl", "10m", "--reason", "test"])?;
    rm_passes(&pool.path().join("file0"))?;

    // With nobody to help the kernel: the number comes again below the root, and is denied …
    agent.signal(Signal::SIGSTOP)?;
    pool.unmount()?;
    let mut below = mount_with_device(&ground.root().join("reused"), device)?;
    populate(below.path())?;
    rm_is_denied(&below.path().join("file0"))?;
    below.unmount()?;
    // … and the same place, mounted anew, too.
    let pool = ground.mount("pool")?;
    rm_is_denied(&pool.path().join("file0"))?;

    agent.signal(Signal::SIGCONT)?;
    ground.wait_for_mode(pool.path(), "guarded")?;
    ground
        .wait_for_record("the end", |r| r["kind"] == "lease" && r["lease"]["change"] == "ended")?;
    rm_is_denied(&pool.path().join("file0"))?;
    ensure!(
        ground.installation.guardctl_json(&["lease", "list"])? == serde_json::json!([]),
        "still listed"
    );

    // The other way round: a sealed pool's number does not seal a stranger outside.
    ground.guardctl(&["seal", "pool"])?;
    agent.signal(Signal::SIGSTOP)?;
    let device = fs::metadata(pool.path())?.dev();
    drop(pool);
    let stranger = mount_with_device(Path::new("/var/lib/guard-standin-stranger"), device)?;
    populate(stranger.path())?;
    rm_passes(&stranger.path().join("volume"))?;
    // A seal is the operator's word about the pool: it outlives the superblock.
    let pool = ground.mount("pool")?;
    agent.signal(Signal::SIGCONT)?;
    ground.wait_for_mode(pool.path(), "sealed")?;
    rm_passes(&stranger.path().join("file0"))
}

fn lazy_unmount() -> Result<()> {
    let ground = Guarded::new("lazy", "")?;
    let _agent = ground.installation.start()?;
    let mut pool = ground.pool("pool")?;
    let pool_id = ground.report(pool.path())?.map(|report| report["pool_id"].clone());
    let directory = File::open(pool.path())?;
    pool.unmount_lazily()?;
    let unlink =
        |name: &str| unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir).map_err(Into::into);
    denied("unlink through the open directory", unlink("file0"))?;
    let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    openat(&directory, "new", flags, Mode::S_IRUSR)?;
    // Another superblock is mounted there now; files below it are nobody's.
    fs::write(ground.root().join("outside"), "")?;
    rm_passes(&ground.root().join("outside"))?;
    drop(directory);
    ground.wait_for_record("the pool's end", |record| {
        record["kind"] == "pool"
            && record["pool"]["change"] == "ended"
            && Some(&record["pool"]["pool_id"]) == pool_id.as_ref()
    })?;
    Ok(())
}
