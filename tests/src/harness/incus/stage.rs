//! A cluster of one node with a pool and files in it, a joiner that may come in, a guard-agent, and
//! the independent mount. Made anew for each scenario.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use super::clean;
use super::cluster::{self, FILES, ON_CEPH, POOL, pool_mounts};
use super::join::{self, Joining, Step};
use super::node::{Node, Role, log_tail};
use crate::harness::agent::{Agent, Installation};
use crate::harness::ceph::CephMount;
use crate::harness::{command, tree, wait};

const POLICY: &str = "version = 1\n[[root]]\npreset = \"incus\"\n";
/// For the agent to take note of a change.
pub const NOTICE: Duration = Duration::from_secs(30);

/// For the daemon of a failed node, which may never be ready.
const RESTART_LIMIT: Duration = Duration::from_secs(60);
/// For `storage delete` on a failed node, whose database may never answer.
const DELETE_LIMIT: Duration = Duration::from_secs(60);

/// All of it.
#[derive(Debug)]
pub struct Stage {
    pub agent: Option<Agent>,
    pub joiner: Option<Node>,
    pub seed: Node,
    witness: CephMount,
    pub installation: Installation,
    name: &'static str,
}

impl Stage {
    /// The seed has a pool with files, the agent runs, and the joiner's incusd is up.
    pub fn new(name: &'static str) -> Result<Self> {
        let (seed, witness) = cluster::found()?;
        let installation = Installation::on_kept_pins("incus", POLICY)?;
        let agent = Some(installation.start()?);
        let mut stage = Self { agent, joiner: None, seed, witness, installation, name };
        stage.start_joiner()?;
        ensure!(stage.files()? == FILES, "the witness does not see the files");
        Ok(stage)
    }

    /// Starts the joiner's incusd and waits until it is ready.
    pub fn start_joiner(&mut self) -> Result<()> {
        // The last one takes everything in its cgroup with it when it goes.
        self.joiner = None;
        self.joiner = Some(Node::start(Role::Joiner)?);
        Ok(())
    }

    pub fn joiner(&mut self) -> Result<&mut Node> {
        self.joiner.as_mut().context("the joiner's incusd was never started")
    }

    /// Starts a join under a name.
    pub fn join(&self, name: &str) -> Result<Joining> {
        join::begin(name, &join::preseed(&self.seed, name)?)
    }

    /// A join during which `act` is done the moment the joiner reaches `step`.
    pub fn join_and(
        &self,
        name: &str,
        step: Step,
        act: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<join::Joined> {
        let preseed = join::preseed(&self.seed, name)?;
        let acting = join::at(step, act)?;
        let joined = join::begin(name, &preseed)?.end()?;
        let acted =
            acting.join().map_err(|_| anyhow!("the thread that follows the join panicked"))?;
        acted.with_context(|| {
            format!(
                "the join said: \
                 {}\n{}",
                joined.text,
                log_tail(Role::Joiner)
            )
        })?;
        Ok(joined)
    }

    /// A join that is cut short with SIGKILL at a step. Returns whether the pool is left mounted.
    pub fn join_killed_at(&mut self, name: &str, step: Step) -> Result<bool> {
        let pid = Pid::from_raw(i32::try_from(self.joiner()?.pid()).context("incusd's pid")?);
        let kill = move || signal::kill(pid, Signal::SIGKILL).context("kill incusd");
        let joined = self.join_and(name, step, kill)?;
        ensure!(!joined.success, "the join succeeded although incusd was killed at {step:?}");
        self.joiner()?.wait_end(NOTICE)?;
        Ok(!pool_mounts()?.is_empty())
    }

    /// Removes a member's row, as `incus cluster remove --force`.
    pub fn forget_member(&self, name: &str) -> Result<()> {
        self.seed.client(&["cluster", "remove", "--force", "--yes", name]).map(drop)
    }

    /// The pool as the filesystem's other clients see it.
    pub fn on_ceph(&self) -> PathBuf {
        self.witness.path().join(ON_CEPH)
    }

    /// All files of the pool, by the independent mount.
    pub fn files(&self) -> Result<usize> {
        let pool = self.on_ceph();
        if pool.exists() { tree::count(&pool) } else { Ok(0) }
    }

    /// Nothing is missing.
    pub fn is_intact(&self) -> Result<()> {
        let files = self.files()?;
        ensure!(files >= FILES, "LOST: the independent mount sees {files} of {FILES} files");
        Ok(())
    }

    /// The agent's report on the joiner's node: state, mode and reason.
    pub fn node(&self) -> Result<Value> {
        let status = self.installation.status().with_context(|| self.agent_log())?;
        let nodes = status["nodes"].as_array().context("status has no nodes")?;
        let own = nodes.iter().find(|node| node["root"] == "/var/lib/incus");
        own.cloned().context("status does not name the node")
    }

    /// Waits until the agent holds the node to be in one of these states; its pools' mode must be
    /// `mode` then.
    pub fn becomes(&self, wanted: &[&str], mode: &str) -> Result<()> {
        let node = self.await_state(wanted)?;
        ensure!(node["mode"] == mode, "wanted the mode {mode}: {node}");
        Ok(())
    }

    fn await_state(&self, wanted: &[&str]) -> Result<Value> {
        let mut last = Value::Null;
        let waited = wait::until("the node's state", NOTICE, || {
            last = self.node()?;
            Ok(wanted.iter().any(|state| last["state"] == **state))
        });
        waited.with_context(|| {
            format!(
                "wanted {wanted:?}; the last look: {last}\n{}\n{}",
                log_tail(Role::Joiner),
                self.agent_log()
            )
        })?;
        Ok(last)
    }

    pub fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let answer = self.installation.guardctl_json(arguments);
        answer.with_context(|| self.agent_log())
    }

    /// Runs guardctl, which must succeed.
    pub fn direct(&self, arguments: &[&str]) -> Result<String> {
        let output = self.installation.guardctl(arguments)?;
        let text = command::text(&output);
        ensure!(
            output.status.success(),
            "guardctl {}: {}\n{}",
            arguments.join(" "),
            text.trim(),
            self.agent_log()
        );
        Ok(text)
    }

    fn agent_log(&self) -> String {
        let log = self.installation.log();
        let lines: Vec<&str> = log.lines().collect();
        format!(
            "the end of the agent's \
             log:\n{}",
            lines[lines.len().saturating_sub(12)..].join("\n")
        )
    }

    /// Cleans a failed node as an operator does for a fresh start: asks Incus to delete the pool,
    /// stops Incus, removes its directory. Each step has cost clusters their data; here nothing may
    /// be lost. A daemon that does not come up any more cannot be asked.
    pub fn clean_up(&mut self) -> Result<()> {
        if !self.joiner()?.runs()? {
            self.joiner = None;
            let joiner = self.joiner.insert(Node::spawn(Role::Joiner)?);
            if let Err(error) = joiner.wait_ready(RESTART_LIMIT) {
                println!("incusd of the failed node does not come up: {}", error.root_cause());
            }
        }
        let joiner = self.joiner()?;
        if joiner.runs()? {
            let said = joiner.client_failing(&["storage", "delete", POOL], DELETE_LIMIT)?;
            println!("incus storage delete said: {}", said.trim());
        }
        self.is_intact()?;
        self.stop_joiner()?;
        self.remove_directory()
    }

    /// SIGTERM, and as systemd does, SIGKILL if that does not help.
    pub fn stop_joiner(&mut self) -> Result<()> {
        let joiner = self.joiner()?;
        if joiner.runs()? {
            joiner.signal(Signal::SIGTERM)?;
            if joiner.wait_end(NOTICE).is_err() {
                joiner.kill()?;
            }
        }
        Ok(())
    }

    /// `rm -rf` of the node's directory. If the pool is mounted below it, it must fail.
    pub fn remove_directory(&self) -> Result<()> {
        if pool_mounts()?.is_empty() {
            command::attempt("rm", &["-rf", "/var/lib/incus"])?;
        } else {
            command::run_failing("rm", &["-rf", "/var/lib/incus"])?;
        }
        self.is_intact()
    }

    /// Denials in all pools of the node.
    pub fn denied(&self) -> Result<u64> {
        let pools = self.ask(&["pools"])?;
        let pools = pools.as_array().context("guardctl pools printed no list")?;
        Ok(pools.iter().filter_map(|pool| pool["counters"]["denied"].as_u64()).sum())
    }

    /// The row of the report for this scenario: the outcome for the node, and for the files.
    pub fn note(&self, what: &str) -> Result<()> {
        let (state, mode) = match self.agent {
            Some(_) => {
                let node = self.node()?;
                (node["state"].to_string(), node["mode"].to_string())
            }
            None => ("no agent".to_owned(), "as it was".to_owned()),
        };
        println!(
            "note: {}: {what}; state {}, mode {}, files before {FILES}, after {}",
            self.name,
            state.trim_matches('"'),
            mode.trim_matches('"'),
            self.files()?
        );
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Enforcement ends with the pins; they are kept, so the pools must go first.
        self.joiner = None;
        self.agent = None;
        // The next scenario finds and reports the remains.
        let _ = clean::all();
    }
}
