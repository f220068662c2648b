//! A member in a cluster of several: what others do is nothing to it, what is done to it counts at
//! once, and missing answers take nothing from its guests.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::node::{ground, is_guarded, is_sealed, member, wait_until_guarded};
use crate::harness::attempt::{passes, rm_is_denied};
use crate::harness::registry::Test;
use crate::harness::standin_node::StandinNode;
use crate::harness::wait;
use crate::peers::container;

pub(super) const TESTS: &[Test] = &[
    Test::new("node_another_members_join_and_removal_seal_nothing", others).within_seconds(240),
    Test::new("node_removed_by_force_deletes_nothing_any_more", removed).within_seconds(240),
    Test::new("node_that_does_not_answer_for_long_is_held_and_its_guests_go_on", held)
        .within_seconds(360),
    Test::new("node_that_left_may_make_a_pool_of_its_own", left).within_seconds(240),
    Test::new("node_whose_pool_is_its_own_by_an_operators_word", adopted).within_seconds(240),
];

/// From the first missing answer to `held`, on an emulated machine.
const HELD: Duration = Duration::from_secs(150);

fn others() -> Result<()> {
    let (ground, mut node) = ground("others", "")?;
    node.start()?;
    let _agent = ground.installation.start()?;
    let pool = member(&ground, &mut node)?;
    let before = ground.installation.guardctl_json(&["history"])?;
    for code in [103, 400, 103, 200] {
        node.another_joins(code)?;
    }
    node.removes(false)?;
    node.wait_for_looks(&ground, 2)?;
    is_guarded(&node, pool.path())?;
    let after = ground.installation.guardctl_json(&["history"])?;
    ensure!(before == after, "others have changed its state: {after}");
    Ok(())
}

fn removed() -> Result<()> {
    let (ground, mut node) = ground("removed", "")?;
    node.start()?;
    let _agent = ground.installation.start()?;
    let pool = member(&ground, &mut node)?;
    node.removes(true)?;
    let report = node.wait_for_state(&ground, "join-partial")?;
    ensure!(report["mode"] == "sealed", "{report}");
    is_sealed(&node, pool.path())?;
    // Only its cluster's word brings it back.
    node.answers_again()?;
    node.wait_for_state(&ground, "joined")?;
    wait_until_guarded(&ground, &node, pool.path())
}

/// A guest deletes in its volume: a container that has a part of the pool.
fn guest_deletes(volume: &Path) -> Result<()> {
    fs::write(volume.join("of-the-guest"), "content\n")?;
    container::with_own_root(volume, |data| {
        passes("unlink by the guest", fs::remove_file(data.join("of-the-guest")))
    })
}

fn held() -> Result<()> {
    let (ground, mut node) = ground("held", "")?;
    node.start()?;
    let agent = ground.installation.start()?;
    let pool = member(&ground, &mut node)?;
    let volume = pool.path().join("volume");
    node.is_blocked()?;
    node.wait_for_looks(&ground, 2)?;
    is_guarded(&node, pool.path())?;
    let report = wait::until_some("the node is held", HELD, || {
        let report = node.report(&ground)?;
        Ok((report["mode"] == "held").then_some(report))
    })?;
    ensure!(report["state"] == "unconfirmed" && report["kept"] == "joined", "{report}");
    is_held(&node, pool.path(), &volume)?;
    ground.wait_for_decision("held", "/file0")?;
    // Through a restart of the agent and of the daemon, for however long.
    agent.kill()?;
    is_held(&node, pool.path(), &volume)?;
    node.kill()?;
    node.start()?;
    let _agent = ground.installation.start()?;
    is_held(&node, pool.path(), &volume)?;
    let status = ground.status()?;
    ensure!(status["posture"]["state"] == "enforcing", "{}", status["posture"]);
    node.answers_again()?;
    node.wait_for_state(&ground, "joined")?;
    wait_until_guarded(&ground, &node, pool.path())
}

/// Guests go on; the host and the daemon delete nothing.
fn is_held(node: &StandinNode, pool: &Path, volume: &Path) -> Result<()> {
    rm_is_denied(&pool.join("file0"))?;
    ensure!(!node.deletes(&pool.join("file1"))?, "the daemon of a node that is held may delete");
    ensure!(pool.join("file1").exists(), "it was denied, and is gone");
    guest_deletes(volume)
}

fn left() -> Result<()> {
    let (ground, mut node) = ground("left", "")?;
    node.start()?;
    let _agent = ground.installation.start()?;
    let pool = member(&ground, &mut node)?;
    node.leave()?;
    node.wait_for_state(&ground, "left")?;
    // A pool that is still mounted is the cluster's.
    is_sealed(&node, pool.path())?;
    drop(pool);
    wait::until("the cluster's pool is gone", wait::LIMIT, || {
        Ok(ground.status()?["pools"].as_array().is_some_and(Vec::is_empty))
    })?;
    node.wait_for_looks(&ground, 2)?;
    let own = ground.pool("own")?;
    wait_until_guarded(&ground, &node, own.path())?;
    node.wait_for_state(&ground, "left")?;
    Ok(())
}

fn adopted() -> Result<()> {
    let (ground, mut node) = ground("adopted", "")?;
    node.start()?;
    let _agent = ground.installation.start()?;
    node.begin_join()?;
    node.wait_for_state(&ground, "joining")?;
    let pool = ground.pool("own")?;
    let refused = ground.installation.guardctl(&["node", "adopt", "--reason", "test"])?;
    ensure!(!refused.status.success(), "a pool was adopted while a join runs");
    node.fail_join()?;
    node.wait_for_state(&ground, "join-failed")?;
    is_sealed(&node, pool.path())?;
    let refused = ground.installation.guardctl(&["node", "forget", "--reason", "test"])?;
    ensure!(!refused.status.success(), "pools of a join were forgotten");
    is_sealed(&node, pool.path())?;
    ground.guardctl(&["node", "adopt", "--reason", "it was here before"])?;
    node.wait_for_state(&ground, "standalone")?;
    wait_until_guarded(&ground, &node, pool.path())?;
    ground.wait_for_record("the operator's word", |record| {
        let because = record["node"]["because"].as_str().unwrap_or_default();
        record["kind"] == "node" && because.contains("uid 0 (it was here before)")
    })?;
    Ok(())
}
