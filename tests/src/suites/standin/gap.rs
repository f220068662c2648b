//! No window: a pool mounted while nobody looks is protected from its first moment.

use std::fs;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::harness::attempt::{denied, passes, rm_is_denied, rm_passes};
use crate::harness::guarded::{Guarded, populate};
use crate::harness::mount::Mount;
use crate::harness::registry::Test;
use crate::harness::tree;

pub(super) const TESTS: &[Test] = &[
    Test::new("gap_none_with_the_agent_stopped_by_a_signal", agent_stopped),
    Test::new("gap_none_with_no_agent_at_all", no_agent),
];

/// The very next deletion in a pool that nobody has classified, beside those that must pass.
fn first_moment(ground: &Guarded, name: &str) -> Result<Mount> {
    let pool = Mount::tmpfs(ground.root().join(name))?;
    passes("create in an unclassified pool", fs::write(pool.path().join("first"), "x"))?;
    rm_is_denied(&pool.path().join("first"))?;
    populate(pool.path())?;
    denied("rmdir", fs::remove_dir(pool.path().join("volume")))?;
    denied("rename over", fs::rename(pool.path().join("file0"), pool.path().join("file1")))?;
    rm_is_denied(&pool.path().join("volume"))?;
    ensure!(tree::count(pool.path())? == 21, "{} of 21 files are left", tree::count(pool.path())?);
    passes(
        "rename without replacing",
        fs::rename(pool.path().join("file0"), pool.path().join("moved")),
    )?;
    let elsewhere = Mount::tmpfs("/var/lib/guard-standin-gap")?;
    populate(elsewhere.path())?;
    rm_passes(&elsewhere.path().join("volume"))?;
    Ok(pool)
}

fn audited_as_unclassified(ground: &Guarded, pool: &Mount) -> Result<()> {
    let decision = ground.wait_for_decision("unclassified", "/first")?;
    ensure!(decision["verdict"] == "denied" && decision["comm"] == "rm", "recorded as {decision}");
    ensure!(decision["mode"].is_null(), "an unclassified pool has no mode: {decision}");
    ground.wait_for_mode(pool.path(), "guarded")?;
    rm_is_denied(&pool.path().join("first"))?;
    ground.wait_for_decision("guarded", "/first")?;
    Ok(())
}

fn agent_stopped() -> Result<()> {
    let ground = Guarded::new("gap-stopped", "")?;
    let agent = ground.installation.start()?;
    agent.signal(Signal::SIGSTOP)?;
    let pool = first_moment(&ground, "pool")?;
    agent.signal(Signal::SIGCONT)?;
    audited_as_unclassified(&ground, &pool)
}

fn no_agent() -> Result<()> {
    let ground = Guarded::with_own_pins("gap-none", "")?;
    let status = ground.installation.start()?.stop()?;
    ensure!(status.success(), "the agent ended with {status}");
    let pool = first_moment(&ground, "pool")?;
    let _agent = ground.installation.start()?;
    audited_as_unclassified(&ground, &pool)
}
