//! An agent that is stopped, killed, or stopped by a signal: `guardctl status`, `pools` and
//! `events` answer without it, their answers are true, and they say that nobody has proven them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::harness::attempt::rm_is_denied;
use crate::harness::fanotify::Ground;
use crate::harness::guarded::{Guarded, exit_code};
use crate::harness::registry::Test;
use crate::harness::{command, machine, wait};

pub(super) const TESTS: &[Test] = &[
    Test::new("silent_agent_stopped_killed_or_sigstopped_is_answered_for", silent),
    Test::new("silent_agent_of_tier_fanotify_leaves_a_process_that_answers", silent_fanotify),
];

/// Far below guardctl's wait for the agent here (`GUARDCTL_TIMEOUT`), far above an emulated
/// machine's need to start it and read. The figure of one second is a real machine's.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Runs guardctl, which must end with this code, at once.
fn answer(ground: &Guarded, code: i32, arguments: &[&str]) -> Result<(String, Duration)> {
    let began = Instant::now();
    let output = ground.installation.guardctl(arguments)?;
    let took = began.elapsed();
    ensure!(
        exit_code(&output)? == code,
        "{arguments:?} ended with {}: {}",
        output.status,
        command::text(&output)
    );
    ensure!(took < AT_ONCE, "{arguments:?} took {took:?}");
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), took))
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("parse {text}"))
}

fn at<'v>(pools: &'v Value, mountpoint: &Path) -> Result<&'v Value> {
    let found = pools.as_array().context("no list of pools")?.iter().find(|pool| {
        pool["mountpoints"]
            .as_array()
            .is_some_and(|all| all.iter().any(|path| *path == *mountpoint.to_string_lossy()))
    });
    found.with_context(|| format!("no pool at {}: {pools}", mountpoint.display()))
}

/// All three, in text and JSON, against the known state of the ground: one pool is guarded, the
/// other released.
fn is_answered_for(ground: &Guarded, cause: &str, guarded: &Path, released: &Path) -> Result<()> {
    let (text, took) = answer(ground, 5, &["status", "--json"])?;
    let status = json(&text)?;
    let (posture, tier) = (&status["posture"], machine::tier()?);
    ensure!(
        status["answered_by"] == "pins-and-files" && posture["state"] == "unproven",
        "{status}"
    );
    ensure!(posture["agent"]["cause"] == cause, "the cause is not {cause}: {posture}");
    ensure!(posture["last"]["state"] == "enforcing", "the last posture: {posture}");
    let load = &status["in_force"]["loads"][0];
    let linked = load["linked"].as_array().map_or(0, Vec::len);
    ensure!(
        load["tier"] == *tier && linked >= 9 && load["unlinked"] == Value::Array(Vec::new()),
        "{load}"
    );
    ensure!(at(&status["pools"], guarded)?["mode"] == "guarded", "{status}");
    let pool = at(&status["pools"], released)?;
    ensure!(pool["mode"] == "released" && pool["remaining_seconds"].as_u64() > Some(0), "{pool}");
    ensure!(status["leases"][0]["reason"] == "silence", "{}", status["leases"]);
    ensure!(status["events"].as_array().is_some_and(|events| !events.is_empty()), "{status}");

    let (text, took_text) = answer(ground, 5, &["status"])?;
    let told = text.split_whitespace().collect::<Vec<&str>>().join(" ");
    let claim = format!("programs of tier {tier} are pinned and attached to {linked} hooks");
    ensure!(told.contains(&claim) && told.starts_with("posture unproven: "), "{text}");
    ensure!(text.lines().all(|line| line.chars().count() <= 80), "a line is too long:\n{text}");

    let (text, took_pools) = answer(ground, 5, &["pools", "--json"])?;
    let pools = json(&text)?;
    ensure!(at(&pools, guarded)?["mode"] == "guarded", "{pools}");
    ensure!(at(&pools, guarded)?["answered_by"] == "pins-and-files", "{pools}");

    let (text, took_events) = answer(ground, 5, &["events", "--json", "-n", "3"])?;
    let log = fs::read_to_string(ground.installation.audit())?;
    let lines: Vec<&str> = log.lines().collect();
    ensure!(
        text.lines().collect::<Vec<&str>>() == lines[lines.len() - 3..],
        "not the last events: {text}"
    );
    println!(
        "note: {cause}: status {took:.1?} and {took_text:.1?}, pools {took_pools:.1?}, events \
         {took_events:.1?}"
    );
    // And it is true.
    rm_is_denied(&guarded.join("file0"))
}

fn silent() -> Result<()> {
    let ground = Guarded::new("silent", "")?;
    let agent = ground.installation.start()?;
    let (guarded, released) = (ground.pool("guarded")?, ground.pool("released")?);
    ground.guardctl(&["release", "released", "--ttl", "1h", "--reason", "silence"])?;
    let answers = |cause: &str| is_answered_for(&ground, cause, guarded.path(), released.path());
    ensure!(ground.status()?["answered_by"] == "agent", "{}", ground.status()?);

    agent.signal(Signal::SIGSTOP)?;
    answers("stopped-by-signal")?;
    let (told, _) = answer(&ground, 5, &["status"])?;
    ensure!(told.contains(&format!("kill -CONT {}", agent.pid())), "{told}");
    agent.signal(Signal::SIGCONT)?;
    wait::until("the agent answers again", wait::LIMIT, || {
        Ok(ground.status()?["answered_by"] == "agent")
    })?;

    ensure!(agent.stop()?.success(), "the agent did not end well");
    answers("not-running")?;
    let agent = ground.installation.start()?;
    agent.kill()?;
    answers("not-running")?;

    // Looking has changed nothing of all this.
    let _agent = ground.installation.start()?;
    ground.wait_for_mode(released.path(), "released")?;
    ground.wait_for_mode(guarded.path(), "guarded")?;
    rm_is_denied(&guarded.path().join("file0"))
}

fn silent_fanotify() -> Result<()> {
    let ground = Ground::new("silent-fanotify", "")?;
    let agent = ground.0.installation.start()?;
    let pool = ground.0.pool("pool")?;
    let responder = ground.responder()?;
    let in_force = |code| -> Result<Value> {
        Ok(json(&answer(&ground.0, code, &["status", "--json"])?.0)?["in_force"].clone())
    };

    agent.signal(Signal::SIGSTOP)?;
    let found = in_force(5)?;
    ensure!(
        found["responders"][0]["pid"] == responder.as_raw() && found["loads"][0].is_null(),
        "{found}"
    );
    agent.signal(Signal::SIGCONT)?;
    ground.0.guardctl(&["seal", "pool"])?;
    ground.0.wait_for_mode(pool.path(), "sealed")?;
    agent.kill()?;
    let found = in_force(5)?;
    ensure!(
        found["responders"][0]["is_stopped"] == false && found["read_only_mounts"] == 1,
        "{found}"
    );
    // Without it the sealed mount is still read-only, and that is all.
    kill(responder, Signal::SIGKILL).context("kill the responder")?;
    wait::until("the responder is gone", wait::LIMIT, || {
        Ok(in_force(5)?["responders"][0].is_null())
    })?;
    ground.unload()?;
    let found = in_force(4)?;
    ensure!(found["read_only_mounts"] == 0 && found["loads"][0].is_null(), "{found}");
    Ok(())
}
