//! Edits of the policy while it is in force.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::harness::attempt::{rm_is_denied, rm_passes};
use crate::harness::command;
use crate::harness::guarded::{Guarded, exit_code};
use crate::harness::mount::Mount;
use crate::harness::registry::Test;
use crate::harness::wait;

pub(super) const TESTS: &[Test] = &[
    Test::new("policy_good_edits_are_in_force_within_a_second", good_edits),
    Test::new("policy_bad_edits_change_nothing_and_are_reported", bad_edits),
    Test::new("policy_rejected_degrades_until_the_file_is_mended", rejected_degrades),
    Test::new("policy_whose_actors_are_not_on_this_host_is_told_of", without_actor),
    Test::new("policy_a_start_with_a_wrong_file_takes_the_last_good_edit", start_with_a_wrong_file),
];

/// Time from here until deletions in the pool are answered so. Makes a file for each try.
fn until_answer(pool: &Mount, passes: bool) -> Result<Duration> {
    let start = Instant::now();
    let file = pool.path().join("try");
    wait::until("the edit is in force", wait::LIMIT, || {
        fs::write(&file, "x")?;
        Ok(fs::remove_file(&file).is_ok() == passes)
    })?;
    Ok(start.elapsed())
}

fn good_edits() -> Result<()> {
    let ground = Guarded::new("edits", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let generation = ground.status()?["policy"]["generation"].as_u64();
    rm_is_denied(&pool.path().join("file0"))?;
    let mut times = Vec::new();
    // As editors do, and in place.
    ground.installation.write_policy(&ground.policy("mode = \"observed\""))?;
    times.push(until_answer(&pool, true)?);
    fs::write(ground.installation.policy(), ground.policy(""))?;
    times.push(until_answer(&pool, false)?);
    fs::write(ground.installation.policy(), ground.policy("mode = \"observed\""))?;
    times.push(until_answer(&pool, true)?);
    ground.installation.write_policy(&ground.policy("mode = \"sealed\""))?;
    times.push(until_answer(&pool, false)?);
    println!("note: edits were in force after {times:.0?}");
    ensure!(times.iter().all(|time| *time < Duration::from_secs(1)), "edits took {times:?}");
    let status = ground.status()?;
    ensure!(
        status["policy"]["generation"].as_u64() == generation.map(|number| number + 4),
        "{status}"
    );
    ensure!(status["policy"]["rejected"].is_null(), "{status}");
    rm_is_denied(&pool.path().join("file0"))?;
    // A root that is taken out protects no more, and one that is added does.
    let other = ground.root().with_extension("other");
    fs::create_dir_all(&other)?;
    let elsewhere = Mount::tmpfs(other.join("pool"))?;
    let text = format!(
        "version = 1\n[[root]]\npath = \"{}\"\nfilesystems = \
         [\"tmpfs\"]\n",
        other.display()
    );
    ground.installation.write_policy(&text)?;
    until_answer(&elsewhere, false)?;
    until_answer(&pool, true)?;
    rm_passes(&pool.path().join("file0"))
}

/// Whether `guardctl status` ends with this code and has exactly these reasons.
fn posture_is(ground: &Guarded, code: i32, reasons: &[&str]) -> Result<bool> {
    let output = ground.installation.guardctl(&["status", "--json"])?;
    let status: Value = serde_json::from_slice(&output.stdout)?;
    let found = status["posture"]["reasons"].as_array().cloned().unwrap_or_default();
    let found: Vec<&str> = found.iter().filter_map(|reason| reason["code"].as_str()).collect();
    Ok(exit_code(&output)? == code && found == reasons)
}

/// A package whose daemon lies elsewhere: its own deletions are denied, and nobody is left to
/// wonder why.
fn without_actor() -> Result<()> {
    let ground = Guarded::new("no-actor", "")?;
    let daemon = ground.root().with_extension("incusd");
    ground.installation.write_policy(
        &ground.policy(&format!("actors = [{{ executable = \"{}\" }}]", daemon.display())),
    )?;
    let _agent = ground.installation.start()?;
    ensure!(
        posture_is(&ground, 0, &[])?,
        "without a pool nobody misses it: {}",
        ground.status()?["posture"]
    );
    let pool = ground.pool("pool")?;
    wait::until("the posture tells of it", wait::LIMIT, || posture_is(&ground, 7, &["no-actor"]))?;
    rm_is_denied(&pool.path().join("file0"))?;
    let rm = command::run("sh", &["-c", "command -v rm"])?;
    fs::copy(rm.trim(), &daemon)?;
    wait::until("the posture follows", wait::LIMIT, || posture_is(&ground, 0, &[]))?;
    let file = pool.path().join("file0");
    command::run(&daemon.to_string_lossy(), &["-f", &file.to_string_lossy()])?;
    fs::remove_file(&daemon)?;
    ensure!(!file.exists(), "the actor was denied");
    Ok(())
}

fn rejected_degrades() -> Result<()> {
    let ground = Guarded::new("rejected", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    ensure!(posture_is(&ground, 0, &[])?, "it is not enforcing: {}", ground.status()?["posture"]);

    ground.installation.write_policy(&ground.policy("mode = \"gaurded\""))?;
    wait::until("the posture is degraded", wait::LIMIT, || {
        posture_is(&ground, 7, &["policy-rejected"])
    })?;
    let text = command::text(&ground.installation.guardctl(&["status"])?);
    ensure!(text.contains("posture    degraded") && text.contains("policy.toml:5:"), "{text}");
    ensure!(
        text.contains("did you mean `guarded`?") && text.contains("guardctl policy check"),
        "{text}"
    );
    ensure!(text.lines().all(|line| line.chars().count() <= 80), "a line is too long:\n{text}");
    rm_is_denied(&pool.path().join("file0"))?;
    ground.wait_for_record("the posture", |record| {
        record["posture"]["state"] == "degraded"
            && record["posture"]["reasons"][0]["code"] == "policy-rejected"
    })?;
    ground.installation.write_policy(&ground.policy(""))?;
    wait::until("the posture is enforcing again", wait::LIMIT, || posture_is(&ground, 0, &[]))?;

    // A file that comes without any notice of inotify's is looked at all the same.
    ground.installation.write_policy(&ground.policy("mode = \"gaurded\""))?;
    wait::until("the posture is degraded", wait::LIMIT, || {
        posture_is(&ground, 7, &["policy-rejected"])
    })?;
    let mended = ground.root().with_extension("mended");
    fs::write(&mended, ground.policy(""))?;
    let _over = Mount::over(&mended, ground.installation.policy())?;
    wait::until("the mended file is taken", wait::LIMIT, || posture_is(&ground, 0, &[]))
}

fn start_with_a_wrong_file() -> Result<()> {
    let ground = Guarded::new("last-good", "mode = \"observed\"")?;
    let agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    rm_passes(&pool.path().join("file0"))?;
    // The edit, not the policy of the start, is what has to be kept.
    ground.installation.write_policy(&ground.policy(""))?;
    until_answer(&pool, false)?;
    ensure!(agent.stop()?.success(), "the agent did not end well");

    ground.installation.write_policy("version = 1\n[[root]]\npreset = \"incuss\"\n")?;
    let _agent = ground.installation.start()?;
    rm_is_denied(&pool.path().join("file1"))?;
    let rejected = ground.status()?["policy"]["rejected"].clone();
    ensure!(rejected["errors"][0].as_str().is_some_and(|error| error.contains(":3")), "{rejected}");
    ground.wait_for_record("the rejection", |record| {
        record["kind"] == "policy" && record["policy"]["change"] == "rejected"
    })?;
    ground.installation.write_policy(&ground.policy("mode = \"observed\""))?;
    until_answer(&pool, true)?;
    ensure!(ground.status()?["policy"]["rejected"].is_null(), "{}", ground.status()?["policy"]);
    Ok(())
}

/// Each with the line that must be named, and a part of the hint.
fn bad_texts(ground: &Guarded) -> Vec<(String, Option<usize>, &'static str)> {
    let edit = |settings: &str| ground.policy(settings);
    let good = edit("");
    vec![
        (edit("mode = \"gaurded\""), Some(5), "did you mean `guarded`?"),
        (edit("acters = []"), Some(5), "did you mean `actors`?"),
        (edit("mode = "), Some(5), ""),
        (edit("actors = [{ cgroup = \"system.slice\" }]"), Some(5), "/"),
        (edit("exported = \"yes\""), Some(5), ""),
        (edit("[canary]\ninterval = \"soon\""), Some(6), "10m"),
        (edit("[audit]\nfull_records = 0"), Some(6), "1 to 1024"),
        (edit("[agent]\non_inactive = \"stay\""), Some(6), "known are exit, run"),
        (edit("[lease]\nmax_ttl = \"48h\""), Some(6), "24h is the longest"),
        (good.replace("version = 1", "version = 2"), Some(1), "version = 1"),
        (good.replace("\"tmpfs\"", "\"cephfs\""), Some(4), "write `ceph`"),
        (good.replace("path = \"/var/lib", "path = \"var/lib"), Some(3), "whole path"),
        (String::new(), None, "[[root]]"),
    ]
}

fn bad_edits() -> Result<()> {
    let ground = Guarded::new("bad-edits", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let before = ground.status()?;
    let in_force =
        |status: &Value| [status["policy"]["generation"].clone(), status["policy"]["hash"].clone()];
    let texts = bad_texts(&ground);
    let denied_before = ground.counter("denied_guarded")?;
    let count = texts.len();
    for (number, (text, line, hint)) in texts.into_iter().enumerate() {
        ground.installation.write_policy(&text)?;
        let file = ground.installation.policy().display().to_string();
        let place = line.map_or(file.clone(), |line| format!("{file}:{line}:"));
        let status = wait::until_some(&format!("the rejection of\n{text}"), wait::LIMIT, || {
            let status = ground.status()?;
            let errors = status["policy"]["rejected"]["errors"].to_string();
            Ok((errors.contains(&place) && errors.contains(&hint.replace('"', "\\\"")))
                .then_some(status))
        })?;
        ensure!(
            in_force(&status) == in_force(&before),
            "edit {number} changed what is in force: {status}"
        );
        ensure!(
            status["pools"][0]["mode"] == "guarded",
            "edit {number} changed the pool: {status}"
        );
        rm_is_denied(&pool.path().join("file0"))?;
        // The file can be checked by hand, and says the same.
        let check = ground.installation.guardctl(&["policy", "check", &file])?;
        let said = command::text(&check);
        ensure!(check.status.code() == Some(3) && said.contains(hint), "policy check: {said}");
    }
    fs::remove_file(ground.installation.policy())?;
    wait::until("the missing file is reported", wait::LIMIT, || {
        Ok(ground.status()?["policy"]["rejected"]["errors"].to_string().contains("No such file"))
    })?;
    let denied = ground.counter("denied_guarded")? - denied_before;
    ensure!(denied == count as u64, "{count} denials, {denied} counted");
    let outside = ground.root().join("outside");
    fs::write(&outside, "")?;
    rm_passes(&outside)?;

    // A good one is taken, and the rejection is over.
    ground.installation.write_policy(&ground.policy("mode = \"observed\""))?;
    until_answer(&pool, true)?;
    wait::until("the rejection is over", wait::LIMIT, || {
        Ok(ground.status()?["policy"]["rejected"].is_null())
    })?;
    let records = ground.installation.audit_records()?;
    let rejected = records.iter().filter(|record| record["policy"]["change"] == "rejected").count();
    ensure!(rejected == count + 1, "{} rejections, {rejected} in the audit log", count + 1);
    Ok(())
}
