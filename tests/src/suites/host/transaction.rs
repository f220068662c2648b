//! The way back from a failed join and the next join, as a transaction: the command is killed at
//! each step, and the same command goes on. Nothing stays mounted, and the cluster keeps no half of
//! a member.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::harness::host::cluster::{self, MOUNTPOINT, is_intact};
use crate::harness::host::guard::Guard;
use crate::harness::host::{Lab, Machine, Name, State};
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] =
    &[Test::new("transaction_killed_at_each_step_is_resumed", killed_at_each_step)
        .within_seconds(2400)
        .only_in_full()];
const HOLD: &str = "/etc/systemd/system/incus.service.d/90-guard-agent-hold.conf";
/// For one command of guardctl.
const LIMIT: Duration = Duration::from_secs(700);
/// Number of files in the node's directory. With so many a wipe takes long enough to be killed in
/// it.
const MANY: usize = 20_000;

fn killed_at_each_step() -> Result<()> {
    let lab = Lab::start(State::Seed, &[Name::Store, Name::N1, Name::N2])?;
    let (n1, n2) = (lab.host(Name::N1), lab.host(Name::N2));
    let guard = Guard::install(n2)?;
    let token = n1.run("incus config trust add n2 --quiet")?;
    let token = token.lines().last().context("no token of trust")?;
    n2.run(&format!("incus remote add member {token}"))?;
    cluster::remember_old_member(n1, "old", Name::N2)?;
    cluster::join(&lab, Name::N2)?.fails()?;
    guard.becomes("join-failed", "sealed")?;

    let rollback = "guardctl rollback --stop-incus";
    for (step, holds) in [
        ("Incus is kept from starting", format!("test -e {HOLD}")),
        ("the socket is closed", "! systemctl --quiet is-active incus.socket".to_owned()),
        ("Incus is stopped", "! pgrep -x incusd".to_owned()),
        (
            "the rollback runs",
            "guardctl status --json | grep -q 'rolling-back\\|released'".to_owned(),
        ),
    ] {
        killed(n2, rollback, step, &holds)?;
        safe(&lab, &guard).with_context(|| format!("guardctl was killed when {step}"))?;
    }
    n2.run(
        "pid() { systemctl show --value --property=MainPID guard-agent.service; }; killed=$(pid); kill -KILL $killed
         until [ $(pid) != $killed ] && [ $(pid) != 0 ]; do sleep 0.1; done",
    )?;
    guard.answers()?;
    ends_well(n2, rollback)?;
    gone(n2)?;
    ensure!(
        n2.attempt(&format!("test -e {HOLD}"))?.status != 0,
        "Incus is still kept from starting"
    );

    n2.run(&format!(
        "mkdir -p /var/lib/incus/many; cd /var/lib/incus/many; seq 1 {MANY} | xargs touch"
    ))?;
    let some = format!("test $(ls /var/lib/incus/many | wc -l) -lt {MANY}");
    killed(n2, "guardctl wipe --yes", "some of it is deleted", &some)?;
    safe(&lab, &guard).context("guardctl was killed in a wipe")?;
    let preflight = n2.attempt_within("guardctl preflight --address 10.0.3.12", LIMIT)?;
    ensure!(
        preflight.output.contains("kept from starting"),
        "preflight does not tell of the hold: {}",
        preflight.output
    );
    ends_well(n2, "guardctl wipe --yes")?;
    ensure!(
        n2.run("ls -A /var/lib/incus | grep -v unix.socket || true")?.trim().is_empty(),
        "the wipe left something"
    );

    // The stale entry goes before anything is mounted. Then guardctl and Incus are killed in the
    // join.
    join_preseed(&lab)?;
    let join = "guardctl join --remote member --remove-stale-member --preseed /root/preseed.yaml";
    killed(n2, join, "the pool is mounted", &format!("grep -q {MOUNTPOINT} /proc/1/mountinfo"))?;
    n2.run("systemctl kill --signal=KILL incus.service")?;
    let list = n1.run("incus cluster list --format csv")?;
    ensure!(!list.contains("old,"), "the stale entry is still there: {list}");
    let state = guard.wait_for_state(&["join-failed", "join-partial", "joined"])?;
    println!("note: guardctl and Incus killed in the join: {state}");
    safe(&lab, &guard)?;
    if state != "joined" {
        ends_well(n2, rollback)?;
        gone(n2)?;
        ends_well(n2, "guardctl wipe --yes")?;
        // An entry that is not listed may still block the name: docs/RUNBOOK.md, step 4.
        n1.attempt("incus cluster remove --force --yes n2")?;
        join_preseed(&lab)?;
        ends_well(n2, join)?;
    }
    guard.becomes("joined", "guarded")?;
    let list = n1.run("incus cluster list --format csv")?;
    let members: Vec<&str> = list.lines().filter_map(|line| line.split(',').next()).collect();
    ensure!(members == ["n1", "n2"], "the cluster lists {members:?}");
    is_intact(&lab)
}

fn join_preseed(lab: &Lab) -> Result<()> {
    let preseed = cluster::join_preseed(lab, Name::N2, "n2")?;
    lab.host(Name::N2).run(&format!("cat >/root/preseed.yaml <<'E'\n{preseed}E")).map(drop)
}

/// Starts a command, and kills its process group as soon as something holds.
fn killed(host: &Machine, command: &str, step: &str, holds: &str) -> Result<()> {
    let script = format!(
        "setsid {command} >/root/said 2>&1 & command=$!
         until {{ {holds}; }} 2>/dev/null; do
             kill -0 $command 2>/dev/null || {{ wait $command; echo ended with $?; cat /root/said; exit 1; }}
             sleep 0.02
         done
         kill -KILL -- -$command; wait $command 2>/dev/null; true"
    );
    let ended = host.attempt_within(&script, LIMIT)?;
    // One that was over before it could be killed has done the step, and those after it.
    let over = ended.output.contains("ended with 0");
    ensure!(ended.status == 0 || over, "{command} never came to where {step}: {}", ended.output);
    println!("note: {command}: {} when {step}", if over { "over" } else { "killed" });
    Ok(())
}

fn ends_well(host: &Machine, command: &str) -> Result<()> {
    let ended = host.attempt_within(command, LIMIT)?;
    ensure!(
        ended.status == 0,
        "{command}: {}: {}\n{}",
        ended.status,
        ended.output.trim(),
        cluster::log(host)
    );
    Ok(())
}

/// Every mounted pool is sealed, and nothing is lost.
fn safe(lab: &Lab, guard: &Guard<'_>) -> Result<()> {
    let pools = guard.json("pools")?;
    let open = pools.as_array().context("guardctl pools printed no list")?;
    let open: Vec<_> = open.iter().filter(|pool| pool["mode"] != "sealed").collect();
    ensure!(open.is_empty(), "not sealed: {open:?}");
    is_intact(lab)
}

fn gone(host: &Machine) -> Result<()> {
    let mounted = host.attempt("grep -l ' - ceph ' /proc/[0-9]*/mountinfo")?;
    ensure!(mounted.status != 0, "still mounted: {}", mounted.output);
    Ok(())
}
