//! The incident: a join fails after the pool is mounted, and the operator cleans up, to try again.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::harness::command;
use crate::harness::incus::Stage;
use crate::harness::incus::cluster::{POOL, pool_mounts, remember_old_member};
use crate::harness::incus::machine::JOINER_ADDRESS;
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] =
    &[Test::new("incident_loses_nothing_and_the_next_join_succeeds", the_incident)
        .within_seconds(600)];

fn the_incident() -> Result<()> {
    let mut stage = Stage::new("incident")?;
    remember_old_member(&stage.seed, "oldnode2", JOINER_ADDRESS)?;
    let said = stage.join("node2")?.fails()?;
    ensure!(!pool_mounts()?.is_empty(), "the failed join left no pool mounted: {said}");
    stage.becomes(&["join-failed"], "sealed")?;

    let joiner = stage.joiner()?;
    let said = joiner.client_failing(&["storage", "delete", POOL], Duration::from_secs(100))?;
    ensure!(said.contains("not permitted"), "storage delete said: {said}");
    stage.is_intact()?;
    stage.joiner()?.stop()?;
    stage.remove_directory()?;
    ensure!(stage.denied()? > 0, "nothing was denied");
    stage.note("storage delete on the failed node, incusd stopped, rm -rf")?;

    stage.direct(&["rollback"])?;
    ensure!(pool_mounts()?.is_empty(), "the rollback left the pool mounted");
    stage.direct(&["wipe", "--yes"])?;
    stage.is_intact()?;
    ensure!(
        command::run("find", &["/var/lib/incus", "-mindepth", "1"])?.is_empty(),
        "the wipe left something"
    );

    stage.forget_member("oldnode2")?;
    stage.start_joiner()?;
    stage.join("node2")?.succeeds()?;
    stage.becomes(&["joined"], "guarded")?;
    stage.is_intact()?;
    stage.note("rollback, wipe, old member removed, joined")
}
