//! A node's evidence is lost, delayed or false, or the agent dies: modes are never weaker than the
//! proven facts allow, and the agent stays alive.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::node::{ground, is_guarded, is_sealed, member, wait_until_guarded};
use crate::harness::guarded::Guarded;
use crate::harness::registry::Test;
use crate::harness::standin_node::StandinNode;
use crate::harness::wait;
use crate::peers::own::Running;

pub(super) const TESTS: &[Test] = &[
    Test::new("node_whose_daemon_hangs_holds_up_nobody", daemon_hangs).within_seconds(300),
    Test::new("node_whose_join_hangs_stays_sealed", join_hangs).within_seconds(240),
    Test::new("node_with_a_damaged_database_is_never_weaker", damaged_database).within_seconds(300),
    Test::new("node_whose_files_vanish_under_a_pool_is_sealed", files_vanish).within_seconds(240),
    Test::new("node_agent_killed_in_a_sealed_state_leaves_no_gap", agent_killed_sealed)
        .within_seconds(400),
    Test::new("node_agent_restarted_on_a_healthy_node_guards_at_once", agent_killed_guarded)
        .within_seconds(400),
    Test::new("node_without_evidence_and_journal_is_sealed", nothing_is_known).within_seconds(240),
    Test::new("node_socket_is_not_dialled_while_its_daemon_is_stopped", idle_socket)
        .within_seconds(240),
    Test::new(
        "node_agent_killed_before_it_wrote_a_seal_down_leaves_it",
        agent_killed_before_writing,
    )
    .within_seconds(240),
    Test::new("node_journal_that_cannot_be_written_withholds_what_weakens", unwritable_journal)
        .within_seconds(300),
];

fn proven_at(ground: &Guarded) -> Result<Value> {
    Ok(ground.status()?["posture"]["proven_at"].clone())
}

/// The agent answers and goes on although the daemon does not.
fn agent_is_alive(ground: &Guarded) -> Result<()> {
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        ground.status()?;
        best = best.min(start.elapsed());
    }
    println!("note: beside a daemon that hangs, a status takes {best:.1?}");
    ensure!(best < Duration::from_secs(2), "a status takes {best:.1?}");
    let before = proven_at(ground)?;
    wait::until("enforcement is proven again", wait::LIMIT, || Ok(proven_at(ground)? != before))
}

fn daemon_hangs() -> Result<()> {
    let (ground, mut node) = ground("hangs", "[canary]\ninterval = \"1s\"")?;
    node.start()?;
    let _agent = ground.installation.start()?;
    let pool = member(&ground, &mut node)?;
    node.hang()?;
    // Some missing answers are no news.
    let report = node.wait_for_looks(&ground, 2)?;
    ensure!(report["state"] == "joined" && report["mode"] == "guarded", "{report}");
    agent_is_alive(&ground)?;
    is_guarded(&node, pool.path())?;
    // Another life of the daemon has time to answer, and then is a member again.
    node.kill()?;
    node.start()?;
    node.wait_for_looks(&ground, 2)?;
    is_guarded(&node, pool.path())
}

fn join_hangs() -> Result<()> {
    let (ground, mut node) = ground("hangs-joining", "[canary]\ninterval = \"1s\"")?;
    node.start()?;
    let _agent = ground.installation.start()?;
    node.begin_join()?;
    node.wait_for_state(&ground, "joining")?;
    let pool = ground.pool("shared")?;
    node.hang()?;
    // It is no sign of the join's end.
    let report = node.wait_for_looks(&ground, 2)?;
    ensure!(report["state"] == "joining" && report["mode"] == "sealed", "{report}");
    agent_is_alive(&ground)?;
    is_sealed(&node, pool.path())
}

fn damaged_database() -> Result<()> {
    let (ground, mut node) = ground("damaged", "")?;
    node.start()?;
    let _agent = ground.installation.start()?;
    let pool = member(&ground, &mut node)?;
    // Proven facts are kept.
    node.damage()?;
    wait::until("the agent sees the damage", wait::LIMIT, || {
        Ok(node.report(&ground)?["evidence"]["config"]["is"] == "unreadable")
    })?;
    let report = node.report(&ground)?;
    ensure!(report["state"] == "joined" && report["mode"] == "guarded", "{report}");
    is_guarded(&node, pool.path())?;
    // A pool that appears now may come from anywhere: it is sealed, and it alone.
    let new = ground.pool("new")?;
    let report = node.wait_for_looks(&ground, 2)?;
    ensure!(report["mode"] == "guarded" && report["unconfirmed"][0] == "new", "{report}");
    is_sealed(&node, new.path())?;
    is_guarded(&node, pool.path())?;
    node.repair()?;
    node.wait_for_state(&ground, "joined")?;
    is_guarded(&node, pool.path())?;
    wait_until_guarded(&ground, &node, new.path())?;
    // And nothing is proven by it.
    node.become_stranger()?;
    node.wait_for_state(&ground, "join-partial")?;
    is_sealed(&node, pool.path())?;
    node.damage()?;
    wait::until("the agent sees the damage", wait::LIMIT, || {
        Ok(node.report(&ground)?["evidence"]["config"]["is"] == "unreadable")
    })?;
    ensure!(node.report(&ground)?["mode"] == "sealed", "{}", node.report(&ground)?);
    is_sealed(&node, pool.path())
}

fn files_vanish() -> Result<()> {
    let (ground, mut node) = ground("vanish", "")?;
    node.start()?;
    let _agent = ground.installation.start()?;
    node.wait_for_state(&ground, "standalone")?;
    let pool = ground.pool("own")?;
    wait_until_guarded(&ground, &node, pool.path())?;
    fs::remove_dir_all(ground.root().join("database")).context("remove the database")?;
    let partial = node.wait_for_state(&ground, "join-partial")?;
    ensure!(partial["mode"] == "sealed", "{partial}");
    is_sealed(&node, pool.path())
}

/// Kills the agent and starts another one. Meanwhile the node's own daemon must not delete a single
/// file.
fn survives_the_agent(
    ground: &Guarded,
    node: &StandinNode,
    pool: &Path,
    state: &str,
) -> Result<()> {
    let agent = ground.installation.start()?;
    is_sealed(node, pool)?;
    node.wait_for_state(ground, state)?;
    let mut daemon = Running::unlinking(&pool.join("file2"), u64::MAX)?;
    node.adopt(daemon.pid())?;
    agent.kill()?;
    is_sealed(node, pool)?;
    let agent = ground.installation.start()?;
    is_sealed(node, pool)?;
    node.wait_for_looks(ground, 1)?;
    is_sealed(node, pool)?;
    daemon.must_run().with_context(|| format!("the agent was killed in state {state}"))?;
    agent.kill()
}

fn agent_killed_sealed() -> Result<()> {
    let (ground, mut node) = ground("killed", "")?;
    node.start()?;
    let agent = ground.installation.start()?;
    node.begin_join()?;
    node.wait_for_state(&ground, "joining")?;
    let pool = ground.pool("shared")?;
    agent.kill()?;
    survives_the_agent(&ground, &node, pool.path(), "joining")?;
    // The next agent finds changes made while none ran.
    node.lay_down_end()?;
    survives_the_agent(&ground, &node, pool.path(), "join-failed")?;
    // Also without the daemon, as after a crash.
    node.kill()?;
    survives_the_agent(&ground, &node, pool.path(), "join-failed")?;
    node.become_stranger()?;
    node.start()?;
    survives_the_agent(&ground, &node, pool.path(), "join-partial")?;
    // Evidence that has gone while no agent ran does not free the pool.
    node.damage()?;
    survives_the_agent(&ground, &node, pool.path(), "join-partial")
}

fn agent_killed_guarded() -> Result<()> {
    let (ground, mut node) = ground("healthy", "")?;
    node.start()?;
    let agent = ground.installation.start()?;
    node.wait_for_state(&ground, "standalone")?;
    let pool = ground.pool("own")?;
    wait_until_guarded(&ground, &node, pool.path())?;
    agent.kill()?;
    is_guarded(&node, pool.path())?;
    let agent = ground.installation.start()?;
    is_guarded(&node, pool.path())?;
    // Also a member's, whose daemon goes on deleting through it all.
    node.become_member()?;
    node.wait_for_state(&ground, "joined")?;
    wait_until_guarded(&ground, &node, pool.path())?;
    agent.kill()?;
    is_guarded(&node, pool.path())?;
    let agent = ground.installation.start()?;
    is_guarded(&node, pool.path())?;
    node.wait_for_state(&ground, "joined")?;
    // And one whose daemon is down when the agent starts.
    node.kill()?;
    agent.kill()?;
    let _agent = ground.installation.start()?;
    is_guarded(&node, pool.path())?;
    let unconfirmed = node.wait_for_state(&ground, "unconfirmed")?;
    ensure!(unconfirmed["kept"] == "joined", "{unconfirmed}");
    Ok(())
}

fn nothing_is_known() -> Result<()> {
    let (ground, mut node) = ground("nothing", "")?;
    node.damage()?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    is_sealed(&node, pool.path())?;
    let report = node.wait_for_looks(&ground, 2)?;
    ensure!(report["state"] == "unknown" && report["mode"] == "sealed", "{report}");
    is_sealed(&node, pool.path())?;
    node.repair()?;
    node.start()?;
    node.wait_for_state(&ground, "standalone")?;
    wait_until_guarded(&ground, &node, pool.path())
}

fn idle_socket() -> Result<()> {
    let (ground, mut node) = ground("idle", "")?;
    // As systemd holds it for a daemon that is not running: a connection would start it.
    let listener = UnixListener::bind(node.socket()).context("bind the socket")?;
    listener.set_nonblocking(true)?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let report = node.wait_for_looks(&ground, 3)?;
    ensure!(report["evidence"]["daemon"]["is"] == "stopped", "{report}");
    // Also in a state in which it looks more often.
    node.write_config(Some("10.99.0.2:8443"), 2)?;
    node.wait_for_state(&ground, "unconfirmed")?;
    node.wait_for_looks(&ground, 3)?;
    is_guarded(&node, pool.path())?;
    let dialled = listener.accept();
    ensure!(
        dialled.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock),
        "the socket of a stopped daemon was dialled: {dialled:?}"
    );
    drop(listener);
    // Once it runs, it is asked.
    node.become_member()?;
    node.start()?;
    node.wait_for_state(&ground, "joined")?;
    wait_until_guarded(&ground, &node, pool.path())
}

fn unwritable_journal() -> Result<()> {
    let (ground, mut node) = ground("unwritable", "")?;
    node.start()?;
    let _agent = ground.installation.start()?;
    node.wait_for_state(&ground, "standalone")?;
    let pool = ground.pool("shared")?;
    wait_until_guarded(&ground, &node, pool.path())?;
    let journals = Unwritable::new(&ground)?;
    // A stronger mode is in force all the same.
    node.begin_join()?;
    node.wait_for_state(&ground, "joining")?;
    is_sealed(&node, pool.path())?;
    let is_degraded = |ground: &Guarded| -> Result<bool> {
        let posture = ground.status()?["posture"].clone();
        Ok(posture["state"] == "degraded" && posture.to_string().contains("journal"))
    };
    wait::until("the posture says so", wait::LIMIT, || is_degraded(&ground))?;
    // A weaker mode waits.
    node.become_member()?;
    node.end_join(200)?;
    node.wait_for_state(&ground, "joined")?;
    node.wait_for_looks(&ground, 1)?;
    is_sealed(&node, pool.path())?;
    journals.repair()?;
    wait_until_guarded(&ground, &node, pool.path())?;
    wait::until("the posture is good again", wait::LIMIT, || Ok(!is_degraded(&ground)?))
}

/// Journals of nodes that cannot be replaced: nothing can be made in a file, as on a disk that is
/// full.
struct Unwritable {
    journals: PathBuf,
    aside: PathBuf,
}

impl Unwritable {
    fn new(ground: &Guarded) -> Result<Self> {
        let journals = ground.installation.state_dir().join("nodes");
        let aside = journals.with_extension("aside");
        ensure!(fs::read_dir(&journals)?.count() > 0, "no journal in {}", journals.display());
        fs::rename(&journals, &aside)?;
        fs::write(&journals, "")?;
        Ok(Self { journals, aside })
    }

    /// They are as they were before.
    fn repair(self) -> Result<()> {
        fs::remove_file(&self.journals)?;
        Ok(fs::rename(&self.aside, &self.journals)?)
    }
}

fn agent_killed_before_writing() -> Result<()> {
    let (ground, mut node) = ground("unwritten", "")?;
    node.start()?;
    let agent = ground.installation.start()?;
    node.wait_for_state(&ground, "standalone")?;
    let pool = ground.pool("shared")?;
    wait_until_guarded(&ground, &node, pool.path())?;
    let journals = Unwritable::new(&ground)?;
    node.begin_join()?;
    node.wait_for_state(&ground, "joining")?;
    is_sealed(&node, pool.path())?;
    // The next agent finds a journal that says "standalone", and no evidence.
    agent.kill()?;
    journals.repair()?;
    node.damage()?;
    node.hang()?;
    let _agent = ground.installation.start()?;
    is_sealed(&node, pool.path())?;
    node.wait_for_looks(&ground, 1)?;
    is_sealed(&node, pool.path())
}
