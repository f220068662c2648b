//! The demonstration: the incident with a real Incus cluster, from a join that fails to the one
//! that succeeds. Every command is shown, run, and compared with its expected result.

use std::env;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::harness::agent::binary;
use crate::harness::incus::clean;
use crate::harness::incus::cluster::{self, FILES, ON_CEPH, WITNESS};
use crate::harness::incus::join;
use crate::harness::incus::machine::JOINER_ADDRESS;
use crate::harness::incus::node::{Node, Role};
use crate::harness::{command, wait};

const ROOT: &str = "/var/lib/incus";
const POLICY: &str = "/etc/guard-agent/policy.toml";
const PRESEED: &str = "/run/join.yaml";
/// Set by `cargo xtask demo` on a terminal. The VM's console always is one, and says nothing of the
/// reader's.
const COLOUR: &str = "GUARD_DEMO_COLOUR";
/// From start to enforcing, on an emulated machine.
const START_LIMIT: Duration = Duration::from_secs(60);
/// The line that sums up an incident comes when its process has ended.
const INCIDENT_LIMIT: Duration = Duration::from_secs(20);

/// Runs in the VM, with a Ceph cluster beside it.
pub fn run() -> Result<()> {
    let stage = Stage::new();
    stage.say(
        "node1, a cluster's only member, with a CephFS pool. It is made now, which takes a minute \
         or two …",
    );
    let (seed, _witness) = cluster::found()?;
    stage.say(
        "It remembers a member whose machine was reinstalled. What the pool really has is counted \
         through",
    );
    stage.say(&format!("{WITNESS}, a Ceph client of its own that nothing guards."));
    cluster::remember_old_member(&seed, "oldnode2", JOINER_ADDRESS)?;
    stage.on_node1(&seed, &["cluster", "list", "--columns", "nus", "--format", "compact"])?;
    stage.count(FILES)?;

    stage.say("This host is to become node2. The barrier, then Incus:");
    let _agent = stage.start_agent()?;
    let mut joiner = stage.start_incus()?;
    stage.prepare_join(&seed)?;
    stage.run(&format!("incus admin init --preseed <{PRESEED}"), Expect::Failure, 4)?;
    stage.say("The join has failed, and the pool is still mounted. The node is sealed.");
    stage.run("grep storage-pools/ /proc/self/mountinfo | cut -d' ' -f5", Expect::Success, 4)?;
    stage.say("A failed node makes the posture degraded; the exit code says so too.");
    stage.run("guardctl status", Expect::Failure, usize::MAX)?;

    stage.say(
        "The operator cleans up, to try again. Each of these commands has cost a cluster all its \
         files.",
    );
    let output = stage.run("incus storage delete shared", Expect::Failure, 4)?;
    ensure!(output.contains("not permitted"), "storage delete was not refused by the barrier");
    stage.count(FILES)?;
    stage.stop_incus(&mut joiner)?;
    let output = stage.run(&format!("rm -rf {ROOT}"), Expect::Failure, 3)?;
    let refused = output.lines().filter(|line| line.ends_with("Operation not permitted")).count();
    ensure!(refused >= FILES, "rm was refused {refused} times, not {FILES}");
    stage.count(FILES)?;
    stage.await_incident()?;
    stage.run("guardctl events -n 8", Expect::Success, usize::MAX)?;

    stage.say(
        "The way that works: unmount what the join left, prove that it is gone, empty the \
         directory.",
    );
    stage.run("guardctl rollback", Expect::Success, usize::MAX)?;
    stage.run("guardctl wipe --yes", Expect::Success, usize::MAX)?;
    stage.on_node1(&seed, &["cluster", "remove", "--force", "--yes", "oldnode2"])?;
    // The last one takes everything in its cgroup with it when it goes.
    drop(joiner);
    let joiner = stage.start_incus()?;
    stage.prepare_join(&seed)?;
    stage.run(&format!("incus admin init --preseed <{PRESEED}"), Expect::Success, 4)?;
    stage.await_member()?;
    stage.run("guardctl status", Expect::Success, usize::MAX)?;
    stage.say("A member, guarded: Incus deletes its volumes, nobody else does.");
    stage.run("incus storage volume create shared trial", Expect::Success, 4)?;
    stage.run("incus storage volume delete shared trial", Expect::Success, 4)?;
    stage.run("rm -rf /var/lib/incus/storage-pools/shared/custom", Expect::Failure, 2)?;
    stage.count(FILES)?;
    stage.say("On purpose, for a minute, with a reason:");
    let release = "guardctl release shared --ttl 1m --reason 'pool is retired, ticket 4711'";
    stage.run(release, Expect::Success, usize::MAX)?;
    stage.run("rm -rf /var/lib/incus/storage-pools/shared/custom/*", Expect::Success, 3)?;
    stage.count(0)?;
    stage.run("guardctl events -n 2 --kind lease", Expect::Success, usize::MAX)?;
    stage.close(&format!(
        "Shown: a join of a real Incus failed with its pool mounted; storage delete and rm -rf \
         {ROOT} were refused and lost none of {FILES} files; after rollback and wipe the node \
         joined; after a release the files could be deleted."
    ));
    drop(joiner);
    drop(seed);
    clean::all()
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    Success,
    Failure,
}

/// Shows commands and their results.
pub(crate) struct Stage {
    colour: bool,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self { colour: env::var_os(COLOUR).is_some() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(crate) fn say(&self, text: &str) {
        println!("{}", self.paint("36", &format!("# {text}")));
    }

    pub(crate) fn prompt(&self, line: &str) {
        println!("{}", self.paint("1", &format!("$ {line}")));
    }

    pub(crate) fn close(&self, text: &str) {
        println!("\n{}", self.paint("1;32", text));
    }

    /// Runs a line of shell. Shows the first lines of its output, returns all of it.
    pub(crate) fn run(&self, line: &str, expected: Expect, shown: usize) -> Result<String> {
        self.prompt(line);
        let path = format!("{}:{}", programs()?, env::var("PATH").unwrap_or_default());
        let output = Command::new("sh")
            .args(["-c", line])
            .env("PATH", path)
            .env_remove("CEPH_CONF")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("start {line}"))?;
        let text = command::text(&output);
        for shown in text.lines().take(shown) {
            println!("{shown}");
        }
        let hidden = text.lines().count().saturating_sub(shown);
        if hidden > 0 {
            println!("{}", self.paint("2", &format!("… and {hidden} more lines")));
        }
        let expect = if output.status.success() { Expect::Success } else { Expect::Failure };
        if expect == Expect::Failure {
            println!("{}", self.paint("33", &format!("({})", output.status)));
        }
        ensure!(expect == expected, "`{line}` ended with {}", output.status);
        println!();
        Ok(text)
    }

    /// Runs node1's client: it is another host, with a prompt of its own.
    fn on_node1(&self, seed: &Node, arguments: &[&str]) -> Result<()> {
        println!("{}", self.paint("1", &format!("node1$ incus {}", arguments.join(" "))));
        println!("{}\n", seed.client(arguments)?.trim_end());
        Ok(())
    }

    /// Takes a token from node1, and writes the preseed.
    fn prepare_join(&self, seed: &Node) -> Result<()> {
        println!("{}", self.paint("1", "node1$ incus cluster add node2"));
        let preseed = join::preseed(seed, "node2")?;
        fs::write(PRESEED, preseed).with_context(|| format!("write {PRESEED}"))?;
        self.run(&format!("sed 's/token: .*/token: …/' {PRESEED}"), Expect::Success, usize::MAX)?;
        Ok(())
    }

    fn start_incus(&self) -> Result<Node> {
        self.prompt("systemctl start incus");
        let node = Node::start(Role::Joiner)?;
        println!();
        Ok(node)
    }

    fn stop_incus(&self, node: &mut Node) -> Result<()> {
        self.prompt("systemctl stop incus");
        node.stop()?;
        println!();
        Ok(())
    }

    /// Starts the agent with its usual files, and waits until it enforces.
    fn start_agent(&self) -> Result<Agent> {
        let parent = Path::new(POLICY).parent().context("the policy is in a directory")?;
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        fs::write(
            POLICY,
            "version = 1\n\n[[root]]\npreset = \
             \"incus\"\n",
        )
        .context("write the policy")?;
        self.run(&format!("cat {POLICY}"), Expect::Success, usize::MAX)?;
        self.prompt("guard-agent run &");
        let log = File::create("/run/guard-agent.log").context("create the agent's log")?;
        let child = Command::new(binary("GUARD_AGENT")?)
            .arg("run")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start guard-agent")?;
        let mut agent = Agent { child };
        let guardctl = binary("GUARDCTL")?;
        wait::until("guard-agent enforces", START_LIMIT, || {
            if let Some(status) = agent.child.try_wait()? {
                let log = fs::read_to_string("/run/guard-agent.log").unwrap_or_default();
                anyhow::bail!("guard-agent ended: {status}\n{log}");
            }
            Ok(command::attempt(&guardctl.to_string_lossy(), &["status"])?.status.success())
        })?;
        println!();
        Ok(agent)
    }

    /// Counts the files of the pool through the independent mount.
    fn count(&self, expected: usize) -> Result<()> {
        let line = format!("find {WITNESS}/{ON_CEPH} -type f | wc -l");
        let output = self.run(&line, Expect::Success, usize::MAX)?;
        ensure!(
            output.trim() == expected.to_string(),
            "counted {} files, not {expected}",
            output.trim()
        );
        Ok(())
    }

    fn await_member(&self) -> Result<()> {
        let guardctl = binary("GUARDCTL")?;
        wait::until("the node is a member", START_LIMIT, || {
            let said = command::attempt(&guardctl.to_string_lossy(), &["status", "--json"])?;
            let status: serde_json::Value =
                serde_json::from_slice(&said.stdout).context("parse the status")?;
            Ok(status["nodes"][0]["state"] == "joined")
        })
    }

    fn await_incident(&self) -> Result<()> {
        let guardctl = binary("GUARDCTL")?;
        let arguments = ["events", "--json", "-n", "1", "--kind", "incident"];
        wait::until("the incident is summed up", INCIDENT_LIMIT, || {
            let said = command::run(&guardctl.to_string_lossy(), &arguments)?;
            Ok(said.contains("\"ended\":true"))
        })
    }
}

/// The directory of guardctl and guard-agent.
fn programs() -> Result<String> {
    let guardctl = binary("GUARDCTL")?;
    let directory = guardctl.parent().context("guardctl is in a directory")?;
    Ok(directory.to_string_lossy().into_owned())
}

/// The running agent; it ends with the demonstration.
struct Agent {
    child: Child,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
