//! Modes follow what an Incus does on its way into a cluster. The Incus is a stand-in, so that each
//! of its states can be held for as long as it takes; the real one has a suite of its own.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::harness::attempt::{rm_is_denied, rm_passes};
use crate::harness::guarded::{Guarded, exit_code};
use crate::harness::mount::Mount;
use crate::harness::registry::Test;
use crate::harness::standin_node::{StandinNode, settings};
use crate::harness::wait;

pub(super) const TESTS: &[Test] = &[
    Test::new("node_becomes_a_member_and_needs_no_operator", becomes_a_member).within_seconds(240),
    Test::new("node_whose_join_failed_is_sealed_for_its_own_daemon_too", join_fails)
        .within_seconds(240),
    Test::new("node_late_failure_after_the_join_is_no_failed_join", late_failure)
        .within_seconds(240),
    Test::new("node_that_is_no_member_is_sealed", stranger).within_seconds(240),
    Test::new("node_member_stays_guarded_without_its_daemon", daemon_dies).within_seconds(240),
    Test::new("node_two_on_one_host_are_told_apart", two_nodes).within_seconds(300),
    Test::new("node_that_policy_follows_no_more_has_the_policys_mode", followed_no_more)
        .within_seconds(240),
];

/// A root that follows a node of its own.
pub(super) fn ground(name: &str, more: &str) -> Result<(Guarded, StandinNode)> {
    let unit = format!("standin-{name}.service");
    let ground = Guarded::new(&format!("node-{name}"), &format!("{}\n{more}", settings(&unit)))?;
    let node = StandinNode::new(ground.root(), &unit)?;
    Ok((ground, node))
}

/// Nobody deletes, the storage daemon included.
pub(super) fn is_sealed(node: &StandinNode, pool: &Path) -> Result<()> {
    rm_is_denied(&pool.join("file0"))?;
    ensure!(
        !node.deletes(&pool.join("file1"))?,
        "the daemon of a node that has to be sealed may delete"
    );
    ensure!(pool.join("file1").exists(), "it was denied, and is gone");
    Ok(())
}

/// The storage daemon deletes, and nobody else does.
pub(super) fn is_guarded(node: &StandinNode, pool: &Path) -> Result<()> {
    rm_is_denied(&pool.join("file0"))?;
    let file = pool.join("of-the-daemon");
    fs::write(&file, "content\n").with_context(|| format!("write {}", file.display()))?;
    ensure!(node.deletes(&file)?, "the daemon of a node that has to be guarded may not delete");
    ensure!(!file.exists(), "it was deleted, and is there");
    Ok(())
}

pub(super) fn wait_until_guarded(ground: &Guarded, node: &StandinNode, pool: &Path) -> Result<()> {
    ground.wait_for_mode(pool, "guarded")?;
    is_guarded(node, pool)
}

fn becomes_a_member() -> Result<()> {
    let (ground, mut node) = ground("member", "")?;
    node.start()?;
    let _agent = ground.installation.start()?;
    node.wait_for_state(&ground, "standalone")?;
    let own = ground.pool("own")?;
    wait_until_guarded(&ground, &node, own.path())?;

    node.begin_join()?;
    let joining = node.wait_for_state(&ground, "joining")?;
    ensure!(joining["mode"] == "sealed", "{joining}");
    is_sealed(&node, own.path())?;
    // The pool that the join mounts is sealed from the first moment on.
    let shared = ground.mount("shared")?;
    is_sealed(&node, shared.path())?;
    let report =
        wait::until_some("the agent knows the pool", wait::LIMIT, || ground.report(shared.path()))?;
    ensure!(report["mode"] == "sealed" && report["mode_cause"] == "join", "{report}");

    // A member is one, also while its operation still runs.
    node.become_member()?;
    node.wait_for_state(&ground, "joined")?;
    node.wait_for_looks(&ground, 2)?;
    node.end_join(200)?;
    node.wait_for_looks(&ground, 2)?;
    node.wait_for_state(&ground, "joined")?;
    wait_until_guarded(&ground, &node, own.path())?;
    wait_until_guarded(&ground, &node, shared.path())?;

    let record = ground.wait_for_record("the transition", |record| {
        record["kind"] == "node" && record["node"]["to"] == "joined"
    })?;
    let because = record["node"]["because"].as_str().unwrap_or_default();
    ensure!(record["node"]["from"] == "joining" && record["node"]["mode"] == "guarded", "{record}");
    ensure!(because.contains("list of members"), "{record}");
    let history = ground.installation.guardctl_json(&["history"])?;
    let transitions =
        history[0]["transitions"].as_array().context("a history without transitions")?;
    let last = transitions.last().context("an empty history")?;
    ensure!(last["to"] == "joined" && last["because"] == because, "{history}");
    Ok(())
}

/// A node whose join has just failed, with a pool that the join has mounted.
fn failed(ground: &Guarded, node: &mut StandinNode) -> Result<Mount> {
    node.begin_join()?;
    node.wait_for_state(ground, "joining")?;
    let pool = ground.pool("shared")?;
    node.fail_join()?;
    node.wait_for_state(ground, "join-failed")?;
    Ok(pool)
}

/// A member with a pool.
pub(super) fn member(ground: &Guarded, node: &mut StandinNode) -> Result<Mount> {
    node.become_member()?;
    node.wait_for_state(ground, "joined")?;
    let pool = ground.pool("shared")?;
    wait_until_guarded(ground, node, pool.path())?;
    Ok(pool)
}

fn join_fails() -> Result<()> {
    let (ground, mut node) = ground("failed", "")?;
    node.start()?;
    let _agent = ground.installation.start()?;
    let pool = failed(&ground, &mut node)?;
    is_sealed(&node, pool.path())?;
    tells_of_failure(&ground, Some("join-failed"))?;
    // Neither the end of the daemon nor an operator's unseal is a reason to weaken.
    node.kill()?;
    node.wait_for_looks(&ground, 2)?;
    is_sealed(&node, pool.path())?;
    ground.guardctl(&["seal", "shared"])?;
    let text = ground.guardctl(&["unseal", "shared"])?;
    ensure!(text.contains("keeps it sealed") && text.contains("guardctl history"), "{text}");
    is_sealed(&node, pool.path())?;
    let report = ground.report(pool.path())?.context("the pool is not there")?;
    ensure!(report["mode"] == "sealed" && report["mode_cause"] == "join", "{report}");
    // A release goes before the state, for as long as it lasts.
    ground.guardctl(&["release", "shared", "--ttl", "1h", "--reason", "test"])?;
    rm_passes(&pool.path().join("file5"))?;
    ground.guardctl(&["seal", "shared"])?;
    is_sealed(&node, pool.path())?;
    ground.guardctl(&["unseal", "shared"])?;
    // The retry succeeds, and nobody has to say so.
    node.start()?;
    node.begin_join()?;
    node.wait_for_state(&ground, "joining")?;
    node.become_member()?;
    node.end_join(200)?;
    node.wait_for_state(&ground, "joined")?;
    wait_until_guarded(&ground, &node, pool.path())?;
    tells_of_failure(&ground, None)
}

/// A node whose join has failed makes the posture `degraded`, and `guardctl status` end with 7, for
/// as long as that lasts.
fn tells_of_failure(ground: &Guarded, state: Option<&str>) -> Result<()> {
    wait::until("the posture follows the node", wait::LIMIT, || {
        let output = ground.installation.guardctl(&["status", "--json"])?;
        let status: Value = serde_json::from_slice(&output.stdout)?;
        let reason = &status["posture"]["reasons"][0];
        Ok(match state {
            Some(state) => {
                let detail = reason["detail"].as_str().unwrap_or_default();
                let fix = reason["fix"].as_str().unwrap_or_default();
                exit_code(&output)? == 7
                    && reason["code"] == "node-failed"
                    && detail.contains(state)
                    && fix.contains("guardctl rollback")
                    && fix.contains("docs/RUNBOOK.md")
            }
            None => exit_code(&output)? == 0 && reason.is_null(),
        })
    })
}

fn late_failure() -> Result<()> {
    let (ground, mut node) = ground("late", "")?;
    node.start()?;
    let _agent = ground.installation.start()?;
    node.begin_join()?;
    node.wait_for_state(&ground, "joining")?;
    let pool = ground.pool("shared")?;
    is_sealed(&node, pool.path())?;
    node.become_member()?;
    node.end_join(400)?;
    node.wait_for_state(&ground, "joined")?;
    wait_until_guarded(&ground, &node, pool.path())?;
    let history = ground.installation.guardctl_json(&["history"])?;
    ensure!(
        !history.to_string().contains("\"join-failed\""),
        "it was taken for a failed join: {history}"
    );
    Ok(())
}

fn stranger() -> Result<()> {
    let (ground, mut node) = ground("stranger", "")?;
    node.start()?;
    let _agent = ground.installation.start()?;
    node.begin_join()?;
    node.wait_for_state(&ground, "joining")?;
    let pool = ground.pool("shared")?;
    node.become_stranger()?;
    node.end_join(400)?;
    node.wait_for_state(&ground, "join-partial")?;
    is_sealed(&node, pool.path())?;
    tells_of_failure(&ground, Some("join-partial"))?;
    node.become_member()?;
    node.wait_for_state(&ground, "joined")?;
    wait_until_guarded(&ground, &node, pool.path())
}

fn daemon_dies() -> Result<()> {
    let (ground, mut node) = ground("dies", "")?;
    node.start()?;
    let _agent = ground.installation.start()?;
    let pool = member(&ground, &mut node)?;
    node.kill()?;
    let unconfirmed = node.wait_for_state(&ground, "unconfirmed")?;
    ensure!(unconfirmed["kept"] == "joined" && unconfirmed["mode"] == "guarded", "{unconfirmed}");
    is_guarded(&node, pool.path())?;
    node.start()?;
    node.wait_for_state(&ground, "joined")?;
    is_guarded(&node, pool.path())
}

fn two_nodes() -> Result<()> {
    let (ground, mut one) = ground("one", "")?;
    let unit = "standin-two.service";
    let root = ground.root().with_extension("two");
    fs::create_dir_all(&root)?;
    let more = format!(
        "{}\n[[root]]\npath = \"{}\"\nfilesystems = [\"tmpfs\"]\n{}",
        settings("standin-one.service"),
        root.display(),
        settings(unit)
    );
    ground.installation.write_policy(&ground.policy(&more))?;
    let mut two = StandinNode::new(&root, unit)?;
    one.start()?;
    two.start()?;
    let _agent = ground.installation.start()?;
    let of_one = failed(&ground, &mut one)?;
    two.become_member()?;
    two.wait_for_state(&ground, "joined")?;
    let of_two = Mount::tmpfs(root.join("pool"))?;
    crate::harness::guarded::populate(of_two.path())?;
    wait_until_guarded(&ground, &two, of_two.path())?;
    is_sealed(&one, of_one.path())?;
    // The one's daemon is nobody in the other's pool.
    ensure!(!one.deletes(&of_two.path().join("file3"))?, "a stranger's daemon may delete");
    one.become_member()?;
    two.become_stranger()?;
    one.wait_for_state(&ground, "joined")?;
    two.wait_for_state(&ground, "join-partial")?;
    wait_until_guarded(&ground, &one, of_one.path())?;
    is_sealed(&two, of_two.path())
}

fn followed_no_more() -> Result<()> {
    let (ground, mut node) = ground("no-more", "")?;
    node.start()?;
    let _agent = ground.installation.start()?;
    let pool = failed(&ground, &mut node)?;
    is_sealed(&node, pool.path())?;
    let alone = "join = \"none\"\nactors = [{ cgroup = \"/system.slice/standin-no-more.service\" \
                 }]";
    ground.installation.write_policy(&ground.policy(alone))?;
    wait_until_guarded(&ground, &node, pool.path())?;
    let nodes = ground.status()?["nodes"].clone();
    ensure!(nodes.as_array().is_some_and(Vec::is_empty), "{nodes}");
    // Followed again, it is what it was.
    ground.installation.write_policy(&ground.policy(&settings("standin-no-more.service")))?;
    node.wait_for_state(&ground, "join-failed")?;
    is_sealed(&node, pool.path())
}
