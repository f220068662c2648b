//! The agent's messages to the service manager, and its reactions to signals: as far as that can be
//! seen without systemd.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::harness::agent::binary;
use crate::harness::attempt::rm_is_denied;
use crate::harness::guarded::Guarded;
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] = &[
    Test::new("notify_status_text_follows_posture_pools_and_policy", status_text),
    Test::new("notify_hangup_reloads_and_never_ends_the_agent", hangup),
    Test::new("notify_status_text_says_why_the_agent_does_not_run", refusal),
];

const LIMIT: Duration = Duration::from_secs(60);
const WRONG: &str = "no_such_key = 1";

fn status_text() -> Result<()> {
    let ground = Guarded::new("notify", "")?;
    let mut agent = ground.installation.start()?;
    let tier = ground.status()?["posture"]["tier"].as_str().unwrap_or("none").to_owned();
    agent.wait_status_text(&format!("in tier {tier}"))?;
    let pool = ground.pool("pool")?;
    agent.wait_status_text("; 1 pool; policy generation 1")?;
    ground.guardctl(&["seal", "pool"])?;
    agent.wait_status_text("1 pool (1 sealed)")?;
    ground.guardctl(&["unseal", "pool"])?;
    agent.signal(Signal::SIGTERM)?;
    let text = agent.wait_status_text("stopped; enforcement goes on")?;
    ensure!(text.contains(&format!("in tier {tier} for 1 pool")), "{text}");
    ensure!(agent.wait(LIMIT)?.success(), "SIGTERM ended it with a failure");
    rm_is_denied(&pool.path().join("file0"))
}

fn hangup() -> Result<()> {
    let ground = Guarded::new("hangup", "")?;
    let mut agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    ground.installation.write_policy(&ground.policy(WRONG))?;
    agent.signal(Signal::SIGHUP)?;
    let text = agent.wait_status_text("policy rejected, generation 1 stays: ")?;
    ensure!(text.contains("policy.toml:") && text.contains("no_such_key"), "{text}");
    rm_is_denied(&pool.path().join("file0"))?;
    ground.installation.write_policy(&ground.policy("truncate = \"guard\""))?;
    agent.signal(Signal::SIGHUP)?;
    agent.wait_status_text("policy generation 2")?;
    ensure!(agent.stop()?.success(), "it ended otherwise than by SIGTERM");
    Ok(())
}

fn refusal() -> Result<()> {
    let ground = Guarded::new("refusal", WRONG)?;
    let mut agent = ground.installation.spawn(&binary("GUARD_AGENT")?, &[])?;
    ensure!(agent.wait(LIMIT)?.code() == Some(3), "another exit code than 3");
    let text = agent.wait_status_text("not running (exit code 3): ")?;
    ensure!(text.contains("policy.toml:") && text.contains("no_such_key"), "{text}");
    Ok(())
}
