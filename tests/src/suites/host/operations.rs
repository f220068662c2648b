//! An operator's day: a policy that is wrong, a reload, a rotation of the log with a reader in
//! group guard, and the package removed and purged.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::harness::host::guard::{Guard, POLICY};
use crate::harness::host::standin::{self, FILES, POOL, ROOT};
use crate::harness::host::{Machine, Name};
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] =
    &[Test::new("operations_policy_reload_rotation_and_purge", operations)
        .within_seconds(900)
        .only_in_full()];

fn operations() -> Result<()> {
    let lab = standin::start("auto")?;
    let host = lab.host(Name::N1);
    let guard = Guard::of(host);
    rejected_policy(host, &guard)?;
    rotation(host, &guard)?;
    policy_without_a_good_one(host, &guard)?;
    removed_and_purged(host, &guard)
}

/// A policy that is wrong changes nothing, and is plain wherever an operator looks.
fn rejected_policy(host: &Machine, guard: &Guard<'_>) -> Result<()> {
    host.run(&format!("echo 'mode = \"sealled\"' >>{POLICY}"))?;
    let reloaded = host.attempt("systemctl reload guard-agent")?;
    ensure!(reloaded.status != 0, "systemctl reload took a policy that is wrong");
    let status = guard.control("status")?;
    ensure!(status.status == 7 && status.output.contains("policy-rejected"), "status: {status:?}");
    let errors = host.run("journalctl -b -p err -u guard-agent --no-pager")?;
    ensure!(
        errors.contains("policy"),
        "journalctl -p err does not show the rejected policy: {errors}"
    );
    let unit = host.attempt("systemctl status guard-agent --no-pager")?.output;
    ensure!(
        unit.contains("policy"),
        "systemctl status does not tell of the rejected policy: {unit}"
    );
    let denied = host.attempt(&format!("rm -rf {POOL}/d1"))?;
    ensure!(denied.status != 0 && standin::files(host)? == FILES, "the old policy is not in force");

    host.run(&format!("cp /root/policy.toml {POLICY} && systemctl reload guard-agent"))?;
    guard.enforces()?;
    ensure!(guard.control("status")?.status == 0, "the posture did not come back");
    Ok(())
}

/// logrotate for real, and a reader who is in group guard and not root.
fn rotation(host: &Machine, guard: &Guard<'_>) -> Result<()> {
    host.run("useradd --groups guard reader")?;
    host.run(
        "logrotate --force /etc/logrotate.d/guard-agent && test -s \
         /var/log/guard-agent/audit.jsonl.1",
    )?;
    host.attempt(&format!("rm -rf {POOL}/d2"))?;
    host.wait_for(
        "a new audit log",
        Duration::from_secs(30),
        "test -s /var/log/guard-agent/audit.jsonl",
    )?;
    let modes = host.run(
        "stat -c '%a %U:%G' /var/log/guard-agent/audit.jsonl /var/log/guard-agent/audit.jsonl.1",
    )?;
    ensure!(modes.lines().all(|line| line == "640 root:guard"), "the audit log's modes: {modes}");
    host.run("runuser -u reader -- head -n 1 /var/log/guard-agent/audit.jsonl")?;
    host.run(
        "logrotate --force /etc/logrotate.d/guard-agent && ls \
         /var/log/guard-agent/audit.jsonl.2.gz",
    )?;
    let events = host.run("runuser -u reader -- guardctl events -n 1000 --json")?;
    let sequence = |line: &str| serde_json::from_str::<Value>(line).ok()?["sequence"].as_u64();
    let numbers: Vec<u64> = events.lines().filter_map(sequence).collect();
    let gaps = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
    ensure!(
        numbers.first() == Some(&1) && gaps == 0,
        "events over rotated files: {gaps} gaps in {numbers:?}: {events}"
    );
    ensure!(guard.control("status")?.status == 0, "the rotation has hurt the posture");
    Ok(())
}

/// Without a last good policy the unit waits, says why, and starts once the policy is mended.
fn policy_without_a_good_one(host: &Machine, guard: &Guard<'_>) -> Result<()> {
    host.run("systemctl stop guard-agent; rm -f /var/lib/guard-agent/*policy*")?;
    host.run(&format!("echo nonsense >{POLICY}; systemctl --no-block start guard-agent"))?;
    host.wait_for(
        "systemctl status tells of the policy",
        Duration::from_secs(60),
        &format!("systemctl status guard-agent --no-pager --full | grep -F {POLICY}"),
    )?;
    let starts = "systemctl show guard-agent -P NRestarts";
    let before: u64 = host.run(starts)?.trim().parse()?;
    // Ten seconds of the guest's own time, in which a unit that does not back off starts ten times.
    host.run("sleep 10")?;
    let after: u64 = host.run(starts)?.trim().parse()?;
    ensure!(after - before <= 4, "the unit was started {} times in ten seconds", after - before);
    host.run(&format!("cp /root/policy.toml {POLICY}; systemctl restart guard-agent"))?;
    guard.enforces()
}

/// Removing ends enforcement, and says so; purging leaves nothing.
fn removed_and_purged(host: &Machine, guard: &Guard<'_>) -> Result<()> {
    guard.direct(&format!("seal {POOL} --reason test || guardctl seal {POOL}"))?;
    let said = guard.apt("remove guard-agent")?;
    ensure!(
        said.contains("enforce") || said.contains("protect"),
        "removal says nothing of enforcement: {said}"
    );
    host.run(&format!("rm {POOL}/d3/f1"))?;
    guard.apt("purge guard-agent")?;
    host.run(&format!("umount {POOL}; rm -rf {ROOT}"))?;
    // (Debian's AppArmor has a profile of a program called rssguard.)
    let left = host.run(
        "find / -xdev \\( -path /root -o -path /proc -o -path /var/log/journal \\) -prune -o \
         -iname '*guard*' -print | grep -v -e rssguard -e /usr/lib/modules -e /usr/include -e \
         /usr/lib/python3 -e /usr/share/perl; ls -d /sys/fs/bpf/guard-agent /run/guard-agent \
         2>/dev/null; getent group guard; getent passwd guard; true",
    )?;
    ensure!(left.trim().is_empty(), "purging has left:\n{left}");
    Ok(())
}
