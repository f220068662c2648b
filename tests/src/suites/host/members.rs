//! A cluster of three, an agent on every member: what one node does, or what is done to it, is nothing to the others.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::healthy::{guest, incus};
use crate::harness::host::cluster::{self, MOUNTPOINT, POOL, is_intact};
use crate::harness::host::guard::Guard;
use crate::harness::host::{Lab, Machine, Name, State};
use crate::harness::registry::Test;

pub const TESTS: &[Test] =
    &[Test::new("members_are_not_sealed_by_a_node_that_joins_fails_and_is_removed", another_node)
        .within_seconds(2400)
        .only_in_full()];
/// How long a member that was removed by force may still delete.
const REMOVAL_LIMIT: Duration = Duration::from_secs(5);

fn another_node() -> Result<()> {
    let lab = Lab::start(State::Members, &Name::ALL)?;
    let (n1, n2, n3) = (lab.host(Name::N1), lab.host(Name::N2), lab.host(Name::N3));
    let guards = [Guard::install(n1)?, Guard::install(n2)?];
    for guard in &guards {
        guard.becomes("joined", "guarded")?;
    }
    let joiner = Guard::install(n3)?;
    guest(n1, n2)?;
    let work = Work::begin(n2)?;
    let before = [transitions(&guards[0])?, transitions(&guards[1])?];
    let unharmed = |when: &str| {
        for (guard, before) in guards.iter().zip(&before) {
            let now = transitions(guard)?;
            ensure!(now == *before, "{when}: a member's state changed: {:?}", &now[before.len()..]);
            ensure!(guard.denied()? == 0, "{when}: something was denied on a member");
        }
        work.goes_on().with_context(|| format!("{when}: the guest"))?;
        is_intact(&lab)
    };
    unharmed("before anything happens")?;

    cluster::remember_old_member(n1, "oldnode3", Name::N3)?;
    cluster::join(&lab, Name::N3)?.fails()?;
    joiner.becomes("join-failed", "sealed")?;
    unharmed("another node has failed to join")?;

    joiner.direct("rollback --stop-incus")?;
    joiner.direct("wipe --yes")?;
    cluster::forget_member(n1, "oldnode3")?;
    n3.run("systemctl start incus.socket incus.service")?;
    let joining = cluster::begin_join(&lab, Name::N3, "n3")?;
    n3.wait_for(
        "the join mounts the pool",
        Duration::from_secs(200),
        &format!("grep {MOUNTPOINT} /proc/1/mountinfo"),
    )?;
    n3.run("systemctl kill --signal=KILL incus.service")?;
    joining.end(n3)?.fails()?;
    unharmed("another node's Incus was killed in its join")?;
    joiner.direct("rollback --stop-incus")?;
    joiner.direct("wipe --yes")?;
    // Half a member may be left.
    n1.attempt("incus cluster remove --force --yes n3")?;
    n3.run("systemctl start incus.socket incus.service")?;
    cluster::join(&lab, Name::N3)?.succeeds()?;
    joiner.becomes("joined", "guarded")?;
    unharmed("another node has joined")?;

    removed_by_force(&lab, n1, n3, &joiner)?;
    unharmed("another member was removed by force")
}

/// The member goes on running with a database of yesterday. It deletes nothing.
fn removed_by_force(lab: &Lab, n1: &Machine, n3: &Machine, guard: &Guard<'_>) -> Result<()> {
    incus(
        n1,
        &format!(
            "storage volume create {POOL} victim --target n3 || incus storage volume create {POOL} victim"
        ),
    )?;
    cluster::forget_member(n1, "n3")?;
    n3.wait_for(
        "the removed member's pool is sealed",
        REMOVAL_LIMIT,
        "guardctl status --json | grep join-partial",
    )?;
    let deleted = n3.attempt_within(
        &format!("timeout 60 incus storage volume delete {POOL} vol1"),
        Duration::from_secs(90),
    )?;
    ensure!(deleted.status != 0, "a removed member has deleted a volume: {}", deleted.output);
    guard.becomes("join-partial", "sealed")?;
    is_intact(lab)
}

/// Each change of the node's state.
fn transitions(guard: &Guard<'_>) -> Result<Vec<String>> {
    let histories = guard.json("history -n 100")?;
    let nodes = histories.as_array().context("guardctl history printed no list")?;
    let all = nodes.iter().filter_map(|node| node["transitions"].as_array()).flatten();
    Ok(all.map(ToString::to_string).collect())
}

/// What deletes in the guest's volume, once a second the whole time.
struct Work<'a> {
    host: &'a Machine,
}

impl<'a> Work<'a> {
    fn begin(host: &'a Machine) -> Result<Self> {
        let work = "cd /data; rm -f /root/failed /root/done; while sleep 1; do mkdir d && echo 1 >d/a && rm d/a && rm -r d \
                    && echo 1 >>/root/done || { echo 1 >>/root/failed; rm -rf d; }; done";
        host.run(&format!("systemd-run --quiet --unit=lab-guest incus exec guest -- /bin/sh -c '{work}'"))?;
        Ok(Self { host })
    }

    /// It has done something since it was asked last, and nothing has failed.
    fn goes_on(&self) -> Result<()> {
        let inside = |line: &str| self.host.run(&format!("incus exec guest -- /bin/sh -c '{line}'"));
        inside("cat /root/done >/root/seen; true")?;
        let more = "incus exec guest -- /bin/sh -c 'cat /root/done' | wc -l";
        let seen = "incus exec guest -- /bin/sh -c 'cat /root/seen' | wc -l";
        self.host.wait_for(
            "the guest deletes in its volume",
            Duration::from_secs(60),
            &format!("test $({more}) -gt $({seen})"),
        )?;
        let failed = inside("cat /root/failed 2>/dev/null; true")?;
        ensure!(
            failed.trim().is_empty(),
            "a deletion in the guest's volume failed {} times",
            failed.lines().count()
        );
        Ok(())
    }
}
