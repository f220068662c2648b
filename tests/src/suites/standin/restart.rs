//! The agent dies, is restarted, replaced, doubled, unloaded: the effect on enforcement.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::harness::agent::binary;
use crate::harness::attempt::{rm_is_denied, rm_passes};
use crate::harness::guarded::{Guarded, exit_code, populate};
use crate::harness::mount::Mount;
use crate::harness::registry::Test;
use crate::harness::{tree, wait};
use crate::peers::own::Running;

pub(super) const TESTS: &[Test] = &[
    Test::new("restart_kill_and_upgrade_under_load_pass_not_one_deletion", under_load)
        .within_seconds(500),
    Test::new("restart_second_agent_is_refused", second_agent),
    Test::new("restart_unload_ends_protection", unload),
];

fn agent_changes(ground: &Guarded) -> Result<Vec<String>> {
    let records = ground.installation.audit_records()?;
    let changes = records.iter().filter(|record| record["kind"] == "agent");
    Ok(changes.filter_map(|record| record["agent"]["change"].as_str().map(str::to_owned)).collect())
}

fn denials(ground: &Guarded) -> Result<u64> {
    ground.counter("denied_guarded")
}

fn under_load() -> Result<()> {
    let ground = Guarded::with_own_pins("load", "")?;
    let agent = ground.installation.start()?;
    let build = ground.status()?["agent"]["build"].clone();
    let pool = ground.pool("pool")?;
    tree::fill(&pool.path().join("tree"), 200, 10)?;
    let elsewhere = Mount::tmpfs("/var/lib/guard-standin-load")?;
    let mut rm = Running::removing(&pool.path().join("tree"))?;
    let mut unlink = Running::unlinking(&pool.path().join("file0"), u64::MAX)?;
    wait::until("the load is denied", wait::LIMIT, || Ok(denials(&ground)? > 200))?;

    agent.kill()?;
    rm_is_denied(&pool.path().join("volume"))?;
    rm.must_run()?;
    unlink.must_run()?;
    let agent = ground.installation.start()?;
    ensure!(agent_changes(&ground)? == ["started", "adopted"], "{:?}", agent_changes(&ground)?);
    let before = denials(&ground)?;
    wait::until("the load is denied and counted", wait::LIMIT, || {
        Ok(denials(&ground)? > before + 200)
    })?;
    agent.kill()?;

    let _agent = ground.installation.start_upgraded()?;
    unlink.must_run()?;
    let changes = agent_changes(&ground)?;
    ensure!(changes.last().is_some_and(|change| change == "upgraded"), "{changes:?}");
    ensure!(ground.status()?["agent"]["build"] != build, "the upgrade is the same build");
    let before = denials(&ground)?;
    wait::until("the new programs deny the load", wait::LIMIT, || {
        Ok(denials(&ground)? > before + 200)
    })?;

    rm.must_run()?;
    unlink.must_run()?;
    drop((rm, unlink));
    ensure!(
        tree::count(pool.path())? == 220,
        "{} of 220 files are left",
        tree::count(pool.path())?
    );
    populate(elsewhere.path())?;
    rm_passes(&elsewhere.path().join("volume"))
}

fn second_agent() -> Result<()> {
    let ground = Guarded::new("second", "")?;
    let mut agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let mut second = ground.installation.spawn(&binary("GUARD_AGENT")?, &[])?;
    let status = second.wait(wait::LIMIT)?;
    ensure!(status.code() == Some(1), "the second agent ended with {status}");
    ensure!(second.log().contains("another agent holds"), "it does not say why:\n{}", second.log());
    // Nor does unload work under a running agent.
    ensure!(unload_command(&ground)? == 1, "unload under a running agent");
    rm_is_denied(&pool.path().join("file0"))?;
    ensure!(ground.status()?["agent"]["pid"] == agent.pid(), "another agent answers");
    agent.signal(nix::sys::signal::Signal::SIGTERM)?;
    ensure!(agent.wait(wait::LIMIT)?.success(), "the first agent did not end well");
    Ok(())
}

fn unload_command(ground: &Guarded) -> Result<i32> {
    let output = Command::new(binary("GUARD_AGENT")?)
        .arg("unload")
        .arg("--pin-dir")
        .arg(ground.installation.pin_dir())
        .arg("--state-dir")
        .arg(ground.installation.state_dir())
        .output()
        .context("start guard-agent unload")?;
    exit_code(&output)
}

fn unload() -> Result<()> {
    let ground = Guarded::with_own_pins("unload", "")?;
    let agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    ensure!(agent.stop()?.success(), "the agent did not end well");
    let stopped = ground.installation.audit_records()?.pop().unwrap_or(Value::Null);
    ensure!(stopped["agent"]["change"] == "stopped", "the last record is {stopped}");
    rm_is_denied(&pool.path().join("file0"))?;
    ensure!(unload_command(&ground)? == 0, "unload failed");
    ensure!(!ground.installation.pin_dir().exists(), "pins are left");
    // The kernel ends one program after the other: unload has waited for all of them.
    ["file0", "volume"].iter().try_for_each(|name| rm_passes(&pool.path().join(name)))
}
