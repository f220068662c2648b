//! The incident on a real host: our package by apt, Incus by its own units, a join that fails with
//! the pool mounted, and everything that an operator does to try again.

use anyhow::{Result, ensure};

use crate::harness::host::cluster::{self, MOUNTPOINT, POOL, is_intact};
use crate::harness::host::guard::Guard;
use crate::harness::host::{Lab, Name, State};
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] =
    &[Test::new("incident_loses_nothing_and_the_next_join_succeeds", the_incident)
        .within_seconds(900)];

fn the_incident() -> Result<()> {
    let lab = Lab::start(State::Seed, &[Name::Store, Name::N1, Name::N2])?;
    let (n1, n2) = (lab.host(Name::N1), lab.host(Name::N2));
    let guard = Guard::install(n2)?;
    has_no_warning(&guard)?;

    cluster::remember_old_member(n1, "oldnode2", Name::N2)?;
    let said = cluster::join(&lab, Name::N2)?.fails()?;
    n2.run(&format!("mountpoint {MOUNTPOINT}"))?;
    println!("the join said: {}", said.trim());
    guard.becomes("join-failed", "sealed")?;

    let deleted = n2.attempt(&format!("timeout 100 incus storage delete {POOL}"))?;
    ensure!(deleted.status != 0, "storage delete succeeded on the failed node: {}", deleted.output);
    is_intact(&lab)?;
    n2.run("systemctl stop incus.service incus.socket")?;
    let removed = n2.attempt("rm -rf /var/lib/incus")?;
    ensure!(removed.status != 0, "rm -rf of the directory succeeded");
    is_intact(&lab)?;
    ensure!(guard.denied()? > 0, "nothing was denied");
    ensure!(
        guard.control("status")?.status == 7,
        "status does not tell of the failed node by its exit code"
    );

    guard.direct("rollback")?;
    ensure!(
        n2.attempt(&format!("grep {MOUNTPOINT} /proc/1/mountinfo"))?.status != 0,
        "the pool is still mounted"
    );
    guard.direct("wipe --yes")?;
    is_intact(&lab)?;

    cluster::forget_member(n1, "oldnode2")?;
    n2.run("systemctl start incus.socket incus.service")?;
    cluster::join(&lab, Name::N2)?.succeeds()?;
    guard.becomes("joined", "guarded")?;
    guard.enforces()?;
    is_intact(&lab)
}

/// Everything that the agent needs is there, by its own word.
fn has_no_warning(guard: &Guard<'_>) -> Result<()> {
    let said = guard.direct("doctor")?;
    let complaint = said.lines().find(|line| line.contains("warn") && !line.contains(" 0 warn"));
    ensure!(complaint.is_none(), "doctor warns: {said}");
    Ok(())
}
