//! A kernel that does not call the programs: the agent must not say that it protects. (Policy
//! forbids the tier that would.)

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::harness::agent::{Agent, binary};
use crate::harness::attempt::{passes, rm_is_denied, rm_passes};
use crate::harness::guarded::{Guarded, exit_code};
use crate::harness::registry::{Profile, Test};
use crate::harness::{command, machine, wait};

pub(super) const TESTS: &[Test] = &[
    Test::new("inactive_without_bpf_the_agent_refuses_with_the_canarys_reason", refuses)
        .on(Profile::NoBpf),
    Test::new("inactive_without_bpf_a_willing_agent_says_so_everywhere", runs).on(Profile::NoBpf),
    Test::new("inactive_without_bpf_doctor_gives_the_fix", doctor_fails).on(Profile::NoBpf),
    Test::new("inactive_not_where_a_tier_is_had_and_doctor_agrees", doctor_agrees),
    Test::new("inactive_when_a_link_is_unpinned_by_hand", unpinned),
    Test::new("inactive_in_a_container_and_on_pins_of_somebody_else", strangers),
];

const ONLY_LSM: &str = "[enforcement]\ntier = \"bpf-lsm\"";
/// A user to whom nothing belongs.
const NOBODY: u32 = 65534;

fn refuses() -> Result<()> {
    let ground = Guarded::with_own_pins("refuses", ONLY_LSM)?;
    let mut agent = ground.installation.spawn(&binary("GUARD_AGENT")?, &[])?;
    let status = agent.wait(wait::LIMIT)?;
    ensure!(status.code() == Some(4), "it ended with {status}:\n{}", agent.log());
    for part in ["nothing is enforced", "path_unlink", "guardctl doctor"] {
        ensure!(agent.log().contains(part), "its reason does not name {part:?}:\n{}", agent.log());
    }
    // It leaves nothing behind that looks like protection.
    let left = ground.installation.loads()?;
    ensure!(left.is_empty(), "pins are left: {left:?}");
    Ok(())
}

fn runs() -> Result<()> {
    let ground = Guarded::with_own_pins(
        "runs",
        &format!(
            "{ONLY_LSM}\n[agent]\non_inactive = \
             \"run\""
        ),
    )?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let output = ground.installation.guardctl(&["status"])?;
    let text = command::text(&output);
    ensure!(
        exit_code(&output)? == 4
            && text.contains(
                "posture    \
                 inactive"
            ),
        "{}: {text}",
        output.status
    );
    let posture = ground.status()?["posture"].clone();
    ensure!(posture["state"] == "inactive", "{posture}");
    let reason = &posture["reasons"][0];
    ensure!(reason["code"] == "canary-failed", "{posture}");
    ensure!(
        reason["detail"].as_str().is_some_and(|detail| detail.contains("path_unlink")),
        "{posture}"
    );
    ensure!(reason["fix"].as_str().is_some_and(|fix| fix.contains("lsm=")), "{posture}");
    ensure!(
        posture["reasons"][1]["code"] == "tier-bpf-lsm" && posture["tier"].is_null(),
        "{posture}"
    );
    // It really is so, and a release of a mode that is not held would be a lie.
    rm_passes(&pool.path().join("volume"))?;
    let release =
        ground.installation.guardctl(&["release", "pool", "--ttl", "1m", "--reason", "x"])?;
    ensure!(exit_code(&release)? == 6, "a release: {}", command::text(&release));
    ground.wait_for_record("the posture", |record| {
        record["kind"] == "posture" && record["posture"]["state"] == "inactive"
    })?;
    Ok(())
}

/// The agent does not start where it would take the host for a guest, or others could take its pins
/// away.
fn strangers() -> Result<()> {
    let ground = Guarded::with_own_pins("strangers", "")?;
    let refuses = |mut agent: Agent, code: i32, reason: &str| {
        let status = agent.wait(wait::LIMIT)?;
        let log = agent.log();
        ensure!(status.code() == Some(code), "it ended with {status}:\n{log}");
        ensure!(log.contains(reason), "its reason is not {reason:?}:\n{log}");
        ensure!(!log.contains("agent is up"), "it was up:\n{log}");
        Ok(())
    };
    let mut in_container = Command::new("unshare");
    in_container
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(binary("GUARD_AGENT")?);
    refuses(ground.installation.spawn_command(in_container, &[])?, 4, "which is a container's")?;

    // A bpffs is often open to all.
    let pins = ground.installation.pin_dir();
    fs::create_dir(pins)?;
    chown(pins, Some(NOBODY), Some(NOBODY)).context("give the pins away")?;
    let agent = ground.installation.spawn(&binary("GUARD_AGENT")?, &[])?;
    refuses(agent, 1, "belongs to user 65534")?;
    ensure!(fs::read_dir(pins)?.next().is_none(), "something was pinned there");
    fs::remove_dir(pins)?;

    let _agent = ground.installation.start()?;
    let mode = fs::metadata(pins)?.permissions().mode() & 0o777;
    ensure!(mode == 0o700, "the pins have mode {mode:o}");
    let pool = ground.pool("pool")?;
    rm_is_denied(&pool.path().join("volume"))
}

fn doctor_fails() -> Result<()> {
    let ground = Guarded::new("doctor", "")?;
    let output = ground.installation.guardctl(&["doctor"])?;
    let text = command::text(&output);
    // The next tier does, so that it is no failure.
    ensure!(exit_code(&output)? == 0, "{}: {text}", output.status);
    ensure!(text.contains("WARN  tier bpf-lsm") && text.contains("ok    tier fmod-ret"), "{text}");
    let active = fs::read_to_string("/sys/kernel/security/lsm")?;
    let fix = format!("lsm={},bpf", active.trim());
    ensure!(text.contains(&fix), "the fix is not {fix}: {text}");
    ensure!(text.contains("active LSM list"), "the check is not named: {text}");
    Ok(())
}

fn doctor_agrees() -> Result<()> {
    let ground = Guarded::new("agrees", "")?;
    let output = ground.installation.guardctl(&["doctor", "--json"])?;
    ensure!(exit_code(&output)? == 0, "{}: {}", output.status, command::text(&output));
    let checks: Value = serde_json::from_slice(&output.stdout)?;
    let check =
        checks.as_array().and_then(|all| all.iter().find(|c| c["code"] == "bpf-not-in-lsm-list"));
    let tier = machine::tier()?;
    let expected = if tier == "bpf-lsm" { "ok" } else { "warn" };
    ensure!(
        check.is_some_and(|check| check["state"] == expected),
        "{expected} is wanted: {checks}"
    );
    let tiers = checks.as_array().into_iter().flatten().filter(|check| check["state"] == "ok");
    let tiers =
        tiers.filter(|check| check["code"].as_str().is_some_and(|code| code.starts_with("tier-")));
    let found: Vec<&str> = tiers.filter_map(|check| check["found"].as_str()).collect();
    ensure!(
        found.iter().all(|found| found.starts_with("available")),
        "a tier was not tried: {found:?}"
    );
    let tried = if tier == "bpf-lsm" { 3 } else { 2 };
    ensure!(found.len() == tried, "{tried} tiers can be had, and doctor says {found:?}");
    let text = command::text(&ground.installation.guardctl(&["doctor", "-v"])?);
    ensure!(text.contains("checks, 0 failed, ") && !text.contains("run as root"), "{text}");
    // Without an agent: what earlier tests have left pinned goes on; where nothing is, nothing is
    // in force.
    let is_pinned =
        fs::read_dir(ground.installation.pin_dir()).is_ok_and(|mut pins| pins.next().is_some());
    let none = ground.installation.guardctl(&["status"])?;
    let code = if is_pinned { 5 } else { 4 };
    ensure!(exit_code(&none)? == code, "{code} is wanted with no agent: {}", command::text(&none));
    let _agent = ground.installation.start()?;
    let output = ground.installation.guardctl(&["status"])?;
    ensure!(exit_code(&output)? == 0, "{}: {}", output.status, command::text(&output));
    let text = command::text(&output);
    ensure!(
        text.contains(
            "posture    \
             enforcing"
        ) && text.contains(&format!("tier       {tier}")),
        "{text}"
    );
    Ok(())
}

fn unpinned() -> Result<()> {
    let ground = Guarded::with_own_pins("unpinned", "[canary]\ninterval = \"1s\"")?;
    let agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    rm_is_denied(&pool.path().join("file0"))?;
    let loads = ground.installation.loads()?;
    ensure!(loads.len() == 1, "the loads are {loads:?}");
    // In the tier fmod-ret a standby has one as well.
    for name in ["guard_path_unlink_link", "guard_path_unlink_standby_link"] {
        match fs::remove_file(loads[0].join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound && machine::tier()? == "bpf-lsm" => {}
            removed => removed.with_context(|| format!("unpin {name}"))?,
        }
    }
    wait::until("the canary notices", wait::LIMIT, || {
        Ok(ground.status()?["posture"]["state"] == "inactive")
    })?;
    let codes: Vec<Value> = ground.status()?["posture"]["reasons"]
        .as_array()
        .map(|reasons| reasons.iter().map(|reason| reason["code"].clone()).collect())
        .unwrap_or_default();
    ensure!(
        codes.contains(&"canary-failed".into()) && codes.contains(&"link-unpinned".into()),
        "{codes:?}"
    );
    ensure!(
        exit_code(&ground.installation.guardctl(&["status"])?)? == 4,
        "status does not end with 4"
    );
    // A hook that still answers still denies; the posture did not exaggerate about the rest.
    fs::create_dir(pool.path().join("empty"))?;
    rm_is_denied(&pool.path().join("empty"))?;
    passes("the unlink that nobody answers for", fs::remove_file(pool.path().join("file0")))?;

    // Its advice helps.
    ensure!(agent.stop()?.success(), "the agent did not end well");
    let _agent = ground.installation.start()?;
    ensure!(ground.status()?["posture"]["state"] == "enforcing", "{}", ground.status()?["posture"]);
    rm_is_denied(&pool.path().join("file1"))
}
