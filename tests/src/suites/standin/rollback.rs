//! The recovery of a failed join, through guardctl: refused where it must be, proven where it is
//! done, and picked up again wherever it was killed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::harness::agent::binary;
use crate::harness::attempt::{rm_is_denied, rm_passes};
use crate::harness::guarded::{Guarded, exit_code, populate};
use crate::harness::mount::{Mount, mountinfo_of};
use crate::harness::registry::Test;
use crate::harness::scratch::Scratch;
use crate::harness::standin_node::{StandinNode, settings};
use crate::harness::{command, tree, wait};
use crate::peers::holder::Holder;

pub(super) const TESTS: &[Test] = &[
    Test::new("rollback_is_refused_where_no_join_has_failed", refused),
    Test::new("rollback_of_a_failed_join_ends_released", released),
    Test::new("rollback_says_what_remains_and_stays_sealed", remains),
    Test::new("rollback_goes_on_after_the_agent_was_killed", killed).within_seconds(180),
    Test::new("rollback_begins_by_itself_if_policy_says_so", by_policy),
    Test::new("recovery_wipe_empties_a_failed_node_and_nothing_else", wiped),
    Test::new("recovery_preflight_finds_what_a_failed_join_left", preflight),
    Test::new("recovery_join_that_fails_stays_sealed", join_fails).within_seconds(180),
    Test::new("recovery_join_is_judged_by_membership_not_by_the_command", join_is_late)
        .within_seconds(180),
];

const ADDRESS: &str = "10.0.0.9:8443";

/// A node that was never in a cluster, and whose Incus does not run.
fn fresh_node(name: &str, more: &str) -> Result<(Guarded, StandinNode)> {
    let unit = format!("{name}.service");
    let ground = Guarded::new(name, &format!("{}\n{more}", settings(&unit)))?;
    let node = StandinNode::new(ground.root(), &unit)?;
    Ok((ground, node))
}

/// One with a cluster address and no raft nodes: a join has been begun here, and nothing runs.
/// A pool that is mounted before anybody watches makes it `join-failed`.
fn failed_node(name: &str, more: &str) -> Result<(Guarded, StandinNode)> {
    let (ground, node) = fresh_node(name, more)?;
    node.write_config(Some(ADDRESS), 0)?;
    Ok((ground, node))
}

/// Exit code and output of `guardctl rollback`.
fn rollback(ground: &Guarded, more: &[&str]) -> Result<(i32, Value)> {
    let mut arguments = vec!["rollback", "--json"];
    arguments.extend(more);
    let output = ground.installation.guardctl(&arguments)?;
    let code = exit_code(&output)?;
    let report = serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "parse: \
             {}\n{}",
            command::text(&output),
            ground.installation.log()
        )
    })?;
    Ok((code, report))
}

fn must_be_refused(ground: &Guarded, code: &str) -> Result<()> {
    let output = ground.installation.guardctl(&["rollback"])?;
    let text = command::text(&output);
    ensure!(
        exit_code(&output)? == 6 && text.contains(code) && text.contains("fix:"),
        "no {code}: {text}"
    );
    Ok(())
}

fn refused() -> Result<()> {
    let (ground, mut node) = fresh_node("refused", "")?;
    let _agent = ground.installation.start()?;
    node.wait_for_state(&ground, "standalone")?;
    let pool = ground.pool("pool")?;
    ground.wait_for_mode(pool.path(), "guarded")?;
    must_be_refused(&ground, "node-state")?;
    let nowhere = ground.installation.guardctl(&["rollback", "--root", "/nowhere"])?;
    ensure!(exit_code(&nowhere)? == 6, "{}", command::text(&nowhere));

    node.start()?;
    node.become_member()?;
    node.wait_for_state(&ground, "joined")?;
    must_be_refused(&ground, "node-state")?;
    // A failed node whose Incus runs.
    node.become_stranger()?;
    node.wait_for_state(&ground, "join-partial")?;
    must_be_refused(&ground, "daemon-runs")?;
    ensure!(mountinfo_of(pool.path())?.len() == 1, "refused, and unmounted");
    node.kill()?;
    node.wait_for_looks(&ground, 1)?;
    let (code, report) = rollback(&ground, &[])?;
    ensure!(code == 0 && report["state"] == "released", "{report:#}");
    Ok(())
}

fn released() -> Result<()> {
    let (ground, node) = failed_node("released", "")?;
    let pool = ground.mount("pool")?;
    let agent = ground.installation.start()?;
    node.wait_for_state(&ground, "join-failed")?;
    ground.wait_for_mode(pool.path(), "sealed")?;
    let scratch = Scratch::new("released")?;
    let place = scratch.join("copy");
    fs::create_dir(&place)?;
    let mut copy = Holder::in_copy(&pool.path().join("volume"), &place)?;
    rm_is_denied(&pool.path().join("file0"))?;

    // Somebody with a view of his own would write into the directory below.
    let output = ground.installation.guardctl(&["rollback"])?;
    let text = command::text(&output);
    let guest = format!("(process {})", copy.pid());
    ensure!(exit_code(&output)? == 6 && text.contains(&guest), "the guest is not named: {text}");
    ensure!(mountinfo_of(pool.path())?.len() == 1, "refused, and unmounted");
    rm_is_denied(&pool.path().join("file0"))?;
    let (code, report) = rollback(&ground, &["--force"])?;
    ensure!(code == 0 && report["state"] == "released", "{report:#}");
    ensure!(mountinfo_of(pool.path())?.is_empty(), "still mounted");
    copy.must_run()?;
    node.wait_for_state(&ground, "released")?;
    // Nothing stays blocked.
    populate(pool.path())?;
    rm_passes(pool.path())?;
    // Once more is no error; and a restarted agent still knows.
    ensure!(rollback(&ground, &[])?.0 == 0, "a second rollback fails");
    ensure!(agent.stop()?.success(), "the agent did not end well");
    let _agent = ground.installation.start()?;
    node.wait_for_state(&ground, "released")?;
    // A pool that is mounted afterwards is sealed all the same.
    let pool = ground.pool("pool")?;
    ground.wait_for_mode(pool.path(), "sealed")?;
    node.wait_for_state(&ground, "join-failed")?;
    rm_is_denied(&pool.path().join("file0"))
}

fn remains() -> Result<()> {
    let (ground, node) = failed_node("remains", "")?;
    let pool = ground.mount("pool")?;
    let _agent = ground.installation.start()?;
    node.wait_for_state(&ground, "join-failed")?;
    let holder = Holder::of_file(&pool.path().join("volume/file0"))?;
    let (code, report) = rollback(&ground, &[])?;
    ensure!(code == 1 && report["state"] == "join-failed", "{report:#}");
    let remaining = &report["outcome"]["remaining"][0];
    ensure!(remaining["holders"][0]["pid"] == holder.pid(), "the holder is not named: {report:#}");
    ensure!(remaining["fix"].as_str().is_some_and(|fix| fix.contains("--lazy")), "{report:#}");
    rm_is_denied(&pool.path().join("file0"))?;

    let text = command::text(&ground.installation.guardctl(&["rollback", "--lazy"])?);
    ensure!(text.contains("held by: sleep") && text.contains("remain, sealed"), "{text}");
    ensure!(mountinfo_of(pool.path())?.is_empty(), "it was to be detached");
    let inside = format!("/proc/{}/fd/9", holder.pid());
    ensure!(Path::new(&inside).exists(), "the holder has lost its file");
    drop(holder);
    wait::until("the rollback comes to its end", wait::LIMIT, || {
        Ok(rollback(&ground, &[])?.0 == 0)
    })?;
    node.wait_for_state(&ground, "released")?;
    Ok(())
}

fn killed() -> Result<()> {
    let (ground, node) = failed_node("killed", "")?;
    let pool = ground.mount("pool")?;
    let agent = ground.installation.start()?;
    node.wait_for_state(&ground, "join-failed")?;
    // Detached and held: the rollback waits for the superblock's end, and that is where everyone is
    // killed.
    let directory = Holder::in_directory(&pool.path().join("volume"))?;
    let inside = format!("/proc/{}/cwd/file1", directory.pid());
    let run_dir = ground.installation.run_dir();
    let mut control = Command::new(binary("GUARDCTL")?)
        .args(["rollback", "--lazy", "--run-dir"])
        .arg(&run_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("start guardctl")?;
    node.wait_for_state(&ground, "rolling-back")?;
    wait::until("the pool is detached", wait::LIMIT, || Ok(mountinfo_of(pool.path())?.is_empty()))?;
    control.kill().context("kill guardctl")?;
    control.wait()?;
    agent.kill()?;
    rm_is_denied(Path::new(&inside))?;

    // The next agent goes on with it: it ends as a failure while somebody holds the pool …
    let _agent = ground.installation.start()?;
    node.wait_for_state(&ground, "join-failed")?;
    rm_is_denied(Path::new(&inside))?;
    drop(directory);
    // … and well once nobody does.
    wait::until("the rollback comes to its end", wait::LIMIT, || {
        Ok(rollback(&ground, &[])?.0 == 0)
    })?;
    node.wait_for_state(&ground, "released")?;
    Ok(())
}

fn by_policy() -> Result<()> {
    let (ground, node) = failed_node("by-policy", "on_join_failure = \"rollback\"")?;
    let pool = ground.mount("pool")?;
    let _agent = ground.installation.start()?;
    wait::until("the pool is unmounted", wait::LIMIT, || Ok(mountinfo_of(pool.path())?.is_empty()))
        .with_context(|| ground.installation.log())?;
    node.wait_for_state(&ground, "released")?;
    Ok(())
}

fn wiped() -> Result<()> {
    let (ground, mut node) = failed_node("wiped", "")?;
    let pool = ground.mount("storage-pools/shared")?;
    let _agent = ground.installation.start()?;
    // Without systemd it is ended by a signal.
    node.start()?;
    node.wait_for_state(&ground, "join-failed")?;
    // Keeps the pool's content where it can be counted.
    let witness = Scratch::new("wiped")?;
    populate(&witness.join("data"))?;
    populate(&ground.root().join("containers"))?;
    std::os::unix::fs::symlink(witness.join("data"), ground.root().join("link"))?;
    let disk = Mount::new("ramfs", "standin", ground.root().join("disk"), "mode=755")?;
    populate(disk.path())?;

    let dry = ground.installation.guardctl(&["wipe"])?;
    let text = command::text(&dry);
    ensure!(
        exit_code(&dry)? == 7 && text.contains("/disk (ramfs"),
        "the stranger's mount is not named: {text}"
    );
    ensure!(text.contains("roll back pools: shared"), "{text}");
    ensure!(tree::count(pool.path())? == 20, "a dry run has deleted");

    let stopped = ground.installation.guardctl(&["wipe", "--yes"])?;
    let text = command::text(&stopped);
    ensure!(exit_code(&stopped)? == 1 && text.contains("/disk is a mountpoint"), "{text}");
    ensure!(mountinfo_of(pool.path())?.is_empty(), "the pool was to be rolled back first: {text}");
    ensure!(
        ground.root().join("containers/file0").exists(),
        "deleted although something is in the way"
    );
    drop(disk);

    let text = ground.guardctl(&["wipe", "--yes"])?;
    ensure!(text.contains("is empty"), "{text}");
    ensure!(fs::read_dir(ground.root())?.next().is_none(), "something is left: {text}");
    ensure!(tree::count(&witness.join("data"))? == 20, "what a link led to is gone");
    // Once more finds nothing, and that is no error.
    ground.guardctl(&["wipe", "--yes"])?;
    Ok(())
}

fn preflight() -> Result<()> {
    let (ground, node) = failed_node("preflight", "")?;
    let pool = ground.mount("pool")?;
    let _agent = ground.installation.start()?;
    node.wait_for_state(&ground, "join-failed")?;
    let codes = |arguments: &[&str]| -> Result<(i32, Vec<String>)> {
        let output = ground.installation.guardctl(arguments)?;
        let checks: Vec<Value> = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("parse: {}", command::text(&output)))?;
        let bad = checks.iter().filter(|check| check["state"] != "ok");
        let bad = bad.filter_map(|check| check["code"].as_str().map(str::to_owned)).collect();
        Ok((exit_code(&output)?, bad))
    };
    let scratch = Scratch::new("preflight")?;
    let members = scratch.join("members.json");
    let list = r#"[{"server_name":"n1","url":"https://10.0.0.1:8443","status":"Online"}]"#;
    fs::write(&members, list)?;
    let members = members.to_string_lossy().into_owned();
    let with = ["preflight", "--json", "--members", &members, "--address", "10.0.0.1"];
    let (code, found) = codes(&with)?;
    ensure!(code == 7, "fit although {found:?}");
    for expected in ["leftover-mounts", "cluster-address", "address-conflict"] {
        ensure!(found.iter().any(|code| code == expected), "{expected} is not among {found:?}");
    }
    ensure!(rollback(&ground, &[])?.0 == 0, "the rollback failed");
    ensure!(mountinfo_of(pool.path())?.is_empty(), "still mounted");
    fs::remove_dir_all(ground.root().join("database"))?;
    let fit = ["preflight", "--json", "--members", &members, "--address", "10.0.0.2"];
    let (code, found) = codes(&fit)?;
    ensure!(code == 0, "not fit: {found:?}");
    Ok(())
}

/// guardctl with a command behind `--`, to be waited for.
fn join(ground: &Guarded, script: &str) -> Result<std::process::Child> {
    Command::new(binary("GUARDCTL")?)
        .arg("--run-dir")
        .arg(ground.installation.run_dir())
        .args(["join", "--json", "--wait", "60s", "--", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start guardctl")
}

fn finished(ground: &Guarded, join: std::process::Child) -> Result<(i32, Value)> {
    let output = join.wait_with_output().context("wait for guardctl")?;
    let text = command::text(&output);
    let report = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("parse: {text}\n{}", ground.installation.log()))?;
    Ok((exit_code(&output)?, report))
}

fn join_fails() -> Result<()> {
    let (ground, node) = fresh_node("join-fails", "")?;
    let _agent = ground.installation.start()?;
    node.wait_for_state(&ground, "standalone")?;
    let place = ground.root().join("pool");
    // Every mount in a prepared join is sealed at once, before the agent has looked.
    let script = format!(
        "mkdir -p {0} && mount -t tmpfs standin {0} && touch {0}/file && ! rm -f {0}/file && exit \
         3",
        place.display()
    );
    let (code, report) = finished(&ground, join(&ground, &script)?)?;
    ensure!(code == 1 && report["command"] == "exit status: 3", "{report:#}");
    ensure!(report["joined"] == false && report["state"] == "join-failed", "{report:#}");
    rm_is_denied(&place.join("file"))?;
    nix::mount::umount2(&place, nix::mount::MntFlags::empty()).context("unmount the pool")
}

fn join_is_late() -> Result<()> {
    let (ground, mut node) = fresh_node("join-late", "")?;
    node.start()?;
    let _agent = ground.installation.start()?;
    node.wait_for_state(&ground, "standalone")?;
    let scratch = Scratch::new("join-late")?;
    let (started, go) = (scratch.join("started"), scratch.join("go"));
    let script = format!(
        "touch {}; while ! test -e {}; do sleep 0.1; done; exit 1",
        started.display(),
        go.display()
    );
    let running = join(&ground, &script)?;
    wait::until("the command runs", wait::LIMIT, || Ok(started.exists()))?;
    node.wait_for_state(&ground, "joining")?;
    node.begin_join()?;
    let pool = ground.pool("pool")?;
    ground.wait_for_mode(pool.path(), "sealed")?;
    ensure!(
        !node.deletes(&pool.path().join("file0"))?,
        "the daemon deletes in a pool that is being joined"
    );
    node.become_member()?;
    node.end_join(400)?;
    fs::write(&go, "")?;
    let (code, report) = finished(&ground, running)?;
    ensure!(code == 0 && report["joined"] == true, "{report:#}");
    ensure!(report["warning"].is_string(), "a late failure is not told: {report:#}");
    ground.wait_for_mode(pool.path(), "guarded")?;
    ensure!(node.deletes(&pool.path().join("file0"))?, "the daemon cannot delete on a joined node");
    rm_is_denied(&pool.path().join("file1"))
}
