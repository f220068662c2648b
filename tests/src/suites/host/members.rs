//! A cluster of three, an agent on every member: an act of one node, or upon it, does not affect
//! the others.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::harness::host::cluster::{self, MOUNTPOINT, POOL, incus, is_intact};
use crate::harness::host::container::{self, Work};
use crate::harness::host::guard::Guard;
use crate::harness::host::{Lab, Machine, Name, State};
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] =
    &[Test::new("members_are_not_sealed_by_a_node_that_joins_fails_and_is_removed", another_node)
        .within_seconds(3000)
        .only_in_full()];
/// Time for which a member that was removed by force may still delete.
const REMOVAL_LIMIT: Duration = Duration::from_secs(5);

fn another_node() -> Result<()> {
    let lab = Lab::start(State::Members, &Name::ALL)?;
    let (n1, n2, n3) = (lab.host(Name::N1), lab.host(Name::N2), lab.host(Name::N3));
    let guards = [Guard::install(n1)?, Guard::install(n2)?];
    for guard in &guards {
        guard.becomes("joined", "guarded")?;
    }
    let joiner = Guard::install(n3)?;
    container::start(n1, n2)?;
    let work = Work::begin(n2)?;
    let before = [guards[0].transitions()?, guards[1].transitions()?];
    let unharmed = |when: &str| {
        for (guard, before) in guards.iter().zip(&before) {
            let now = guard.transitions()?;
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
    unharmed("another member was removed by force")?;

    joiner.direct("rollback --stop-incus")?;
    joiner.direct("wipe --yes")?;
    n3.run("systemctl start incus.socket incus.service")?;
    cluster::join(&lab, Name::N3)?.succeeds()?;
    joiner.becomes("joined", "guarded")?;
    n3.run("systemctl stop incus.socket incus.service")?;
    cluster::forget_member(n1, "n3")?;
    n3.run("systemctl start incus.socket; systemctl start --no-block incus.service")?;
    deletes_nothing(&lab, n3, &joiner)?;
    unharmed("another member was removed while it was away")
}

/// The member goes on running with a database of yesterday. It deletes nothing.
fn removed_by_force(lab: &Lab, n1: &Machine, n3: &Machine, guard: &Guard<'_>) -> Result<()> {
    incus(
        n1,
        &format!(
            "storage volume create {POOL} victim --target n3 || incus storage volume create {POOL} \
             victim"
        ),
    )?;
    cluster::forget_member(n1, "n3")?;
    n3.wait_for(
        "the removed member's pool is sealed",
        REMOVAL_LIMIT,
        "guardctl status --json | grep join-partial",
    )?;
    deletes_nothing(lab, n3, guard)?;
    guard.becomes("join-partial", "sealed")
}

fn deletes_nothing(lab: &Lab, n3: &Machine, guard: &Guard<'_>) -> Result<()> {
    let deleted = n3.attempt_within(
        &format!("timeout 60 incus storage volume delete {POOL} vol1"),
        Duration::from_secs(90),
    )?;
    ensure!(deleted.status != 0, "a removed member has deleted a volume: {}", deleted.output);
    // Incus 6.0 waits for the others and says nothing else, so nobody knows that it is a member no
    // more.
    let state = guard.wait_for_state(&["join-partial", "unconfirmed"])?;
    let mode = guard.node()?["mode"].clone();
    let denies_incus = if state == "join-partial" { mode == "sealed" } else { mode == "held" };
    ensure!(denies_incus, "{state}, and its mode is {mode}");
    is_intact(lab)
}
