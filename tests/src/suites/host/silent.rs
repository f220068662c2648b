//! An agent that does not answer: stopped, killed, standing still. guardctl still tells all
//! knowable facts, at once, and they are true.

use anyhow::{Result, ensure};

use crate::harness::host::guard::Guard;
use crate::harness::host::standin::{self, POOL};
use crate::harness::host::{Machine, Name};
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] =
    &[Test::new("silent_agent_is_told_of_at_once_and_truly", a_silent_agent)
        .within_seconds(900)
        .only_in_full()];

fn a_silent_agent() -> Result<()> {
    let lab = standin::start("auto")?;
    let host = lab.host(Name::N1);
    let guard = Guard::of(host);
    // Its watchdog would end an agent that stands still, which is another test.
    host.run("mkdir -p /run/systemd/system/guard-agent.service.d")?;
    host.run(
        "printf '[Service]\\nRestart=no\\nWatchdogSec=0\\n' \
         >/run/systemd/system/guard-agent.service.d/lab.conf",
    )?;
    host.run("systemctl daemon-reload; systemctl restart guard-agent")?;
    guard.enforces()?;
    for (what, silence, voice) in [
        ("stopped", "systemctl stop guard-agent", "systemctl start guard-agent"),
        ("killed", "systemctl kill --signal=KILL guard-agent", "systemctl restart guard-agent"),
        (
            "standing still",
            "systemctl kill --signal=STOP guard-agent",
            "systemctl kill --signal=CONT guard-agent",
        ),
    ] {
        host.run(silence)?;
        tells(host, what)?;
        host.run(voice)?;
        guard.enforces()?;
    }
    Ok(())
}

/// Each of the reading commands answers, names the pins, and knows the pool.
fn tells(host: &Machine, what: &str) -> Result<()> {
    for (command, wanted) in
        [("status", "pinned and attached"), ("pools", POOL), ("events -n 5", "agent")]
    {
        let script = format!(
            "start=$(date +%s%N); guardctl {command} 2>&1; code=$?; end=$(date +%s%N)
             echo \"took $(( (end - start) / 1000000 )) ms, exit code $code\""
        );
        let said = host.run(&script)?;
        ensure!(
            said.contains(wanted),
            "agent {what}: guardctl {command} does not say \
             {wanted:?}:\n{said}"
        );
        let took = said.lines().last().unwrap_or_default();
        println!("note: agent {what}: guardctl {command} {took}");
    }
    let denied = host.attempt(&format!("rm -rf {POOL}/d1"))?;
    ensure!(denied.status != 0, "agent {what}: the host could delete");
    ensure!(standin::files(host)? == standin::FILES, "agent {what}: files are missing");
    Ok(())
}
