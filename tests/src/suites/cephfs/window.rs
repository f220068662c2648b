//! When nobody watches: the pool is mounted without an agent, or before it has looked; and the
//! force of a lease and a seal after the pool was mounted anew.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::unlink;

use crate::harness::ceph::CephMount;
use crate::harness::cephfs_host::{DATA, FILES, Host, ROOT};
use crate::harness::command;
use crate::harness::registry::Test;
use crate::peers::go;

pub(super) const TESTS: &[Test] = &[
    Test::new("window_no_agent", no_agent),
    Test::new("window_stopped_agent", stopped_agent),
    Test::new("window_right_after_the_mount", right_after_the_mount),
    Test::new("window_old_syntax_and_the_whole_filesystem", old_syntax_and_the_whole_filesystem),
    Test::new("remount_ends_a_release", remount_ends_a_release),
    Test::new("remount_keeps_a_seal", remount_keeps_a_seal),
];

/// Only the pins are left.
fn no_agent() -> Result<()> {
    let mut host = Host::new()?;
    host.agent.take().context("no agent")?.kill()?;
    host.pool.mount().unmount()?;
    host.mount_again()?;
    command::run_failing("rm", &["-rf", ROOT])?;
    host.is_intact()?;
    let outcome = go::remove_all(Path::new(ROOT));
    ensure!(outcome == Err(Errno::EPERM), "RemoveAll returned {outcome:?}");
    host.is_intact()?;
    // An agent that comes back finds the books of the time without it.
    host.agent = Some(host.installation.start()?);
    host.find_pool()?;
    let unclassified = host.counter("denied_unclassified")?;
    ensure!(unclassified >= 2 * FILES as u64, "{unclassified} denials as unclassified");
    host.withstands(FILES, || command::run_failing("rm", &["-rf", ROOT]))?;
    Ok(())
}

fn stopped_agent() -> Result<()> {
    let mut host = Host::new()?;
    host.pool.mount().unmount()?;
    host.agent.as_ref().context("no agent")?.signal(Signal::SIGSTOP)?;
    host.mount_again()?;
    command::run_failing("rm", &["-rf", ROOT])?;
    host.is_intact()?;
    host.agent.as_ref().context("no agent")?.signal(Signal::SIGCONT)?;
    host.find_pool()?;
    let unclassified = host.counter("denied_unclassified")?;
    ensure!(unclassified >= FILES as u64, "{unclassified} denials as unclassified");
    Ok(())
}

/// The agent runs, and is slower than the first deletion or not: there is no moment without an
/// answer.
fn right_after_the_mount() -> Result<()> {
    let mut host = Host::new()?;
    let victim = Path::new(DATA).join("d0/e0/f0");
    for round in 0..10 {
        host.pool.mount().unmount()?;
        host.mount_again()?;
        for attempt in 0..20 {
            let outcome = unlink(&victim);
            ensure!(outcome == Err(Errno::EPERM), "mount {round}, attempt {attempt}: {outcome:?}");
        }
    }
    host.is_intact()
}

/// In any spelling, and for any part of the filesystem.
fn old_syntax_and_the_whole_filesystem() -> Result<()> {
    let host = Host::new()?;
    for whole in [
        CephMount::old_syntax("/", format!("{ROOT}/devices/old"), "")?,
        CephMount::of("/", format!("{ROOT}/devices/new"), "noshare")?,
    ] {
        let path = whole.path().to_string_lossy();
        command::run_failing("rm", &["-rf", &path])?;
        host.is_intact()?;
    }
    Ok(())
}

fn remount_ends_a_release() -> Result<()> {
    let mut host = Host::new()?;
    host.direct(&["release", "shared", "--ttl", "10m", "--reason", "clear a volume"])?;
    fs::remove_dir_all(host.scratch("released")?).context("delete in a released pool")?;
    ensure!(!host.on_ceph().join("released").exists(), "the volume is still there");
    host.pool.mount().unmount()?;
    host.mount_again()?;
    command::run_failing("rm", &["-rf", ROOT])?;
    host.is_intact()?;
    host.find_pool()?;
    let mode = host.report()?["mode"].clone();
    ensure!(mode == "guarded", "the pool is {mode}");
    let leases = host.ask(&["lease", "list"])?;
    ensure!(leases.as_array().is_some_and(Vec::is_empty), "leases: {leases}");
    host.withstands(FILES, || command::run_failing("rm", &["-rf", ROOT]))?;
    Ok(())
}

fn remount_keeps_a_seal() -> Result<()> {
    let mut host = Host::new()?;
    host.direct(&["seal", "shared"])?;
    host.pool.mount().unmount()?;
    host.mount_again()?;
    host.find_pool()?;
    let mode = host.report()?["mode"].clone();
    ensure!(mode == "sealed", "the pool is {mode}");
    host.withstands(FILES, || command::run_failing("rm", &["-rf", ROOT]))?;
    Ok(())
}
