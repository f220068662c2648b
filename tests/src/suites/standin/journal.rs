//! The agent dies at each system call with which it replaces a node's journal. Until the next one
//! has proof, nobody deletes: neither the kernel's state meanwhile nor the next agent's reading of
//! the journal is weaker.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::node::{ground, is_sealed, wait_until_guarded};
use crate::harness::agent::Agent;
use crate::harness::guarded::Guarded;
use crate::harness::registry::Test;
use crate::harness::standin_node::StandinNode;
use crate::harness::trap::Trap;
use crate::harness::wait;
use crate::peers::own::Running;

pub(super) const TESTS: &[Test] =
    &[Test::new("node_agent_killed_at_each_write_of_its_journal", killed_at_each_write)
        .within_seconds(600)];

/// Which file a call is about.
#[derive(Clone, Copy, Debug)]
enum Of {
    /// The journal's successor.
    New,
    /// The directory of both.
    Directory,
}

/// All calls of one replacement, in their order. At each, the earlier ones have happened.
const CALLS: [(&str, Of); 6] = [
    ("openat", Of::New),
    ("write", Of::New),
    ("fsync", Of::New),
    ("rename", Of::New),
    ("openat", Of::Directory),
    ("fsync", Of::Directory),
];

fn killed_at_each_write() -> Result<()> {
    let (ground, mut node) = ground("each-write", "")?;
    node.start()?;
    let mut agent = ground.installation.start()?;
    node.wait_for_state(&ground, "standalone")?;
    let pool = ground.pool("shared")?;
    wait_until_guarded(&ground, &node, pool.path())?;
    let new = successor_of_journal(&ground)?;
    let directory = new.parent().context("no directory")?.to_owned();
    for (call, of) in CALLS {
        let file = match of {
            Of::New => &new,
            Of::Directory => &directory,
        };
        // A stronger mode is in the kernel before it is written down.
        let trap = Trap::set(agent.pid(), file, call)?;
        node.lay_down_join()?;
        is_killed(agent, trap).with_context(|| format!("in a join, at {call} of {of:?}"))?;
        agent = next_agent(&ground, &node, pool.path())
            .with_context(|| format!("killed in a join, at {call} of {of:?}"))?;
        node.wait_for_state(&ground, "joining")?;
        is_sealed(&node, pool.path())?;

        // A weaker mode is written down before it is in the kernel.
        let trap = Trap::set(agent.pid(), file, call)?;
        node.become_member()?;
        node.lay_down_end()?;
        is_killed(agent, trap).with_context(|| format!("after a join, at {call} of {of:?}"))?;
        // Neither the end of the join nor membership can be proven now.
        node.damage()?;
        agent = next_agent(&ground, &node, pool.path())
            .with_context(|| format!("killed after a join, at {call} of {of:?}"))?;
        node.wait_for_looks(&ground, 1)?;
        is_sealed(&node, pool.path())?;
        node.repair()?;
        node.wait_for_state(&ground, "joined")?;
        wait_until_guarded(&ground, &node, pool.path())?;
    }
    Ok(())
}

/// Path of the journal's next content before it replaces the journal.
fn successor_of_journal(ground: &Guarded) -> Result<PathBuf> {
    let directory = ground.installation.state_dir().join("nodes");
    let mut entries =
        fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?;
    let journal = entries.next().context("no node has a journal")??.path();
    ensure!(entries.next().is_none(), "more than one file in {}", directory.display());
    let mut new = journal.into_os_string();
    new.push(".new");
    Ok(new.into())
}

fn is_killed(mut agent: Agent, trap: Trap) -> Result<()> {
    let status = agent.wait(wait::LIMIT)?;
    drop(trap);
    ensure!(status.signal() == Some(9), "the agent was not killed, but ended: {status}");
    Ok(())
}

/// The next agent. Nobody deletes before it, while it starts, and after that.
fn next_agent(ground: &Guarded, node: &StandinNode, pool: &Path) -> Result<Agent> {
    is_sealed(node, pool)?;
    let mut daemon = Running::unlinking(&pool.join("file2"), u64::MAX)?;
    node.adopt(daemon.pid())?;
    let agent = ground.installation.start()?;
    is_sealed(node, pool)?;
    daemon.must_run()?;
    Ok(agent)
}
