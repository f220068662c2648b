//! Kernels that do not call the LSM hooks: the same programs in front of their functions (tier
//! `fmod-ret`), and the messages when a host's tier changes.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::attempt::{copy_rm, denied, passes, rm_is_denied, rm_passes};
use crate::harness::guarded::{Guarded, exit_code, populate};
use crate::harness::mount::Mount;
use crate::harness::registry::{Profile, Test};
use crate::harness::scratch::Scratch;
use crate::harness::{command, tree, wait};
use crate::peers::container;

pub(super) const TESTS: &[Test] = &[
    Test::new("tier_fmod_ret_denies_and_allows_as_bpf_lsm_does", decides).on(Profile::NoBpf),
    Test::new("tier_fmod_ret_release_ends_with_the_agent_stopped", release).on(Profile::NoBpf),
    Test::new("tier_fmod_ret_standby_decides_where_the_first_is_left_out", standby)
        .on(Profile::NoBpf),
    Test::new("tier_that_is_lost_is_told", lost).on(Profile::NoBpf),
    // The last one there: it leaves the upgrade's programs.
    Test::new("tier_fmod_ret_outlives_kill_restart_and_upgrade", outlives).on(Profile::NoBpf),
    Test::new("tier_goes_up_without_a_gap", goes_up).only_in_full(),
    Test::new("tier_fanotify_is_taken_under_lockdown", locked_down)
        .on(Profile::LockedDown)
        .only_in_full(),
];

fn must_be(ground: &Guarded, tier: &str, state: &str) -> Result<Value> {
    let posture = ground.status()?["posture"].clone();
    ensure!(posture["tier"] == tier && posture["state"] == state, "not {tier}, {state}: {posture}");
    Ok(posture)
}

fn decides() -> Result<()> {
    let scratch = Scratch::new("tier")?;
    let actor = scratch.join("actor");
    copy_rm(&actor)?;
    let actors = format!("actors = [{{ executable = \"{}\" }}]", actor.display());
    let ground = Guarded::new("tier", &actors)?;
    let _agent = ground.installation.start()?;
    let posture = must_be(&ground, "fmod-ret", "enforcing")?;
    ensure!(
        posture["gaps"].as_array().is_some_and(|gaps| gaps.len() == 2),
        "its gaps are not told: {posture}"
    );
    let status = ground.guardctl(&["status"])?;
    ensure!(status.contains("tier       fmod-ret") && status.contains("not covered ("), "{status}");

    let pool = ground.pool("pool")?;
    rm_is_denied(ground.root())?;
    ensure!(tree::count(pool.path())? == 20, "{} of 20 files are left", tree::count(pool.path())?);
    rm_is_denied(&pool.path().join("file0"))?;
    let decision = ground.wait_for_decision("guarded", "/file0")?;
    ensure!(decision["tier"] == "fmod-ret", "the record names another tier: {decision}");
    fs::rename(pool.path().join("file0"), pool.path().join("renamed"))?;
    denied(
        "a rename onto a file",
        fs::rename(pool.path().join("renamed"), pool.path().join("file1")),
    )?;
    let elsewhere = Mount::tmpfs("/var/lib/guard-standin-tier")?;
    populate(elsewhere.path())?;
    rm_passes(&elsewhere.path().join("volume"))?;

    let before = ground.counter("allowed_actor")?;
    command::run(&actor.to_string_lossy(), &["-f", &pool.path().join("file2").to_string_lossy()])?;
    ensure!(!pool.path().join("file2").exists(), "the actor's deletion left the file");
    let counted = ground.counter("allowed_actor")? - before;
    ensure!(counted == 1, "one deletion by an actor is counted {counted} times");
    container::with_own_root(&pool.path().join("volume"), |data| {
        passes("unlink by a guest", fs::remove_file(data.join("file0")))
    })?;
    ensure!(!pool.path().join("volume/file0").exists(), "the guest's deletion left the file");

    ground.guardctl(&["seal", "pool"])?;
    command::run_failing(
        &actor.to_string_lossy(),
        &["-f", &pool.path().join("file3").to_string_lossy()],
    )?;
    denied("truncation", fs::write(pool.path().join("file3"), "x"))
}

/// A first program that is not attached is like one that the kernel leaves out.
fn standby() -> Result<()> {
    let ground = Guarded::with_own_pins("tier-standby", "[canary]\ninterval = \"1h\"")?;
    let _agent = ground.installation.start()?;
    must_be(&ground, "fmod-ret", "enforcing")?;
    let pool = ground.pool("pool")?;
    let loads = ground.installation.loads()?;
    let load = loads.first().context("no load is pinned")?;
    for program in ["guard_path_unlink", "guard_path_rmdir", "guard_path_rename"] {
        fs::remove_file(load.join(format!("{program}_link")))
            .with_context(|| format!("unpin {program}"))?;
    }
    let before = ground.counter("denied_guarded")?;
    rm_is_denied(&pool.path().join("file0"))?;
    rm_is_denied(&pool.path().join("volume"))?;
    let renamed = fs::rename(pool.path().join("file1"), pool.path().join("file2"));
    denied("a rename onto a file", renamed)?;
    let decision = ground.wait_for_decision("guarded", "/file0")?;
    ensure!(decision["tier"] == "fmod-ret", "the record names another tier: {decision}");
    ensure!(ground.counter("denied_guarded")? > before, "nothing was counted");
    ensure!(tree::count(pool.path())? == 20, "{} of 20 files are left", tree::count(pool.path())?);
    let elsewhere = Mount::tmpfs("/var/lib/guard-standin-tier")?;
    populate(elsewhere.path())?;
    rm_passes(&elsewhere.path().join("volume"))
}

fn release() -> Result<()> {
    let ground = Guarded::new("tier-release", "")?;
    let agent = ground.installation.start()?;
    must_be(&ground, "fmod-ret", "enforcing")?;
    let pool = ground.pool("pool")?;
    ground.guardctl(&["release", "pool", "--ttl", "2s", "--reason", "test"])?;
    agent.signal(Signal::SIGSTOP)?;
    let file = pool.path().join("again");
    wait::until("the release is over", wait::LIMIT, || {
        fs::write(&file, "x")?;
        match fs::remove_file(&file) {
            Ok(()) => Ok(false),
            Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => Ok(true),
            Err(error) => bail!("unlink failed otherwise: {error}"),
        }
    })?;
    agent.signal(Signal::SIGCONT)?;
    let decision = ground.wait_for_decision("release-expired", "/again")?;
    ensure!(decision["tier"] == "fmod-ret", "the record names another tier: {decision}");
    Ok(())
}

fn last_change(ground: &Guarded) -> Result<String> {
    let records = ground.installation.audit_records()?;
    let changes = records.iter().filter(|record| record["kind"] == "agent");
    let last = changes.filter_map(|record| record["agent"]["change"].as_str()).next_back();
    Ok(last.context("the audit log has no record of the agent")?.to_owned())
}

fn outlives() -> Result<()> {
    let ground = Guarded::new("tier-outlives", "")?;
    let agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    agent.kill()?;
    rm_is_denied(&pool.path().join("volume"))?;
    let agent = ground.installation.start()?;
    ensure!(last_change(&ground)? == "adopted", "the restart: {}", last_change(&ground)?);
    must_be(&ground, "fmod-ret", "enforcing")?;
    agent.kill()?;

    let _agent = ground.installation.start_upgraded()?;
    ensure!(last_change(&ground)? == "upgraded", "the upgrade: {}", last_change(&ground)?);
    must_be(&ground, "fmod-ret", "enforcing")?;
    let loads = ground.installation.loads()?;
    let is_one = loads.len() == 1 && loads[0].to_string_lossy().contains("/fmod-ret-");
    ensure!(is_one, "the loads are {loads:?}");
    rm_is_denied(&pool.path().join("volume"))
}

fn lost() -> Result<()> {
    let ground = Guarded::new("tier-lost", "")?;
    let agent = ground.installation.start()?;
    must_be(&ground, "fmod-ret", "enforcing")?;
    ensure!(agent.stop()?.success(), "the agent did not end well");
    // As if the kernel had been booted with bpf in its list before.
    let file = ground.installation.state_dir().join("state.json");
    let state = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    ensure!(state.contains("\"fmod-ret\""), "the state does not keep the tier: {state}");
    fs::write(&file, state.replace("\"fmod-ret\"", "\"bpf-lsm\""))?;

    let _agent = ground.installation.start()?;
    let posture = must_be(&ground, "fmod-ret", "degraded")?;
    let reason = &posture["reasons"][0];
    ensure!(reason["code"] == "tier-lost", "{posture}");
    let detail = reason["detail"].as_str().unwrap_or_default();
    ensure!(
        detail.contains("bpf is not among the kernel's active LSMs"),
        "it does not say why: {detail}"
    );
    ensure!(
        exit_code(&ground.installation.guardctl(&["status"])?)? == 7,
        "status does not end with 7"
    );
    ground.wait_for_record("the posture", |record| {
        record["kind"] == "posture" && record["posture"]["reasons"][0]["code"] == "tier-lost"
    })?;
    // A policy that names the tier has taken note.
    ground.installation.write_policy(&ground.policy("[enforcement]\ntier = \"fmod-ret\""))?;
    wait::until("policy takes the tier", wait::LIMIT, || {
        Ok(ground.status()?["posture"]["state"] == "enforcing")
    })
}

fn locked_down() -> Result<()> {
    let ground = Guarded::with_own_pins("tier-locked", "")?;
    let agent = ground.installation.start()?;
    let posture = must_be(&ground, "fanotify", "degraded")?;
    let reason = &posture["reasons"][0];
    let detail = reason["detail"].as_str().unwrap_or_default();
    ensure!(
        reason["code"] == "tier-fanotify" && detail.contains("lockdown: confidentiality"),
        "{posture}"
    );
    ensure!(!detail.contains('\n'), "it is no line: {detail}");
    let doctor = command::text(&ground.installation.guardctl(&["doctor"])?);
    ensure!(
        doctor.contains(
            "FAIL  tier \
             bpf-lsm"
        ) && doctor.contains("ok    tier fanotify"),
        "{doctor}"
    );
    ensure!(
        doctor.contains("lockdown=integrity"),
        "it does not say what would raise the tier: {doctor}"
    );

    let pool = ground.pool("pool")?;
    command::run_failing("rm", &["-rf", &ground.root().to_string_lossy()])?;
    ensure!(pool.path().join("volume/file9").exists(), "rm -rf has reached the pool");
    ground.guardctl(&["release", "pool", "--ttl", "10m", "--reason", "test"])?;
    rm_passes(&pool.path().join("volume"))?;
    ensure!(agent.stop()?.success(), "the agent did not end well");
    ground.installation.unload()
}

fn goes_up() -> Result<()> {
    let ground = Guarded::with_own_pins("tier-up", "[enforcement]\ntier = \"fmod-ret\"")?;
    let agent = ground.installation.start()?;
    must_be(&ground, "fmod-ret", "enforcing")?;
    let pool = ground.pool("pool")?;
    rm_is_denied(&pool.path().join("volume"))?;
    // Another tier in the policy is told, and taken at the next start.
    ground.installation.write_policy(&ground.policy("[enforcement]\ntier = \"bpf-lsm\""))?;
    wait::until("the posture tells", wait::LIMIT, || {
        Ok(ground.status()?["posture"]["reasons"][0]["code"] == "tier-not-as-policy")
    })?;
    ground.installation.write_policy(&ground.policy(""))?;
    ensure!(agent.stop()?.success(), "the agent did not end well");
    rm_is_denied(&pool.path().join("volume"))?;

    let _agent = ground.installation.start()?;
    must_be(&ground, "bpf-lsm", "enforcing")?;
    ensure!(last_change(&ground)? == "upgraded", "the change: {}", last_change(&ground)?);
    // The kernel lets go of the old programs when the last one that runs them is through; until
    // then they answer first.
    wait::until("the new tier alone denies", wait::LIMIT, || {
        rm_is_denied(&pool.path().join("volume"))?;
        let records = ground.installation.audit_records()?;
        Ok(records.iter().any(|record| record["decision"]["tier"] == "bpf-lsm"))
    })
}
