//! The demonstration: what an operator would see on a host on which a join has failed, from the mount to
//! the release. Every command is shown, run, and held to what it should do.

use std::env;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::harness::agent::binary;
use crate::harness::ceph::{CephMount, Cluster};
use crate::harness::{command, tree, wait};

const FILES: usize = 1000;
const ROOT: &str = "/var/lib/incus";
const POOL: &str = "/var/lib/incus/storage-pools/shared";
const WITNESS: &str = "/mnt/witness";
const POLICY: &str = "/etc/guard-agent/policy.toml";
/// Set by `cargo xtask demo` on a terminal. The VM's console always is one, and says nothing of the reader's.
const COLOUR: &str = "GUARD_DEMO_COLOUR";
/// From start to enforcing, on an emulated machine.
const START_LIMIT: Duration = Duration::from_secs(60);
/// The line that sums up an incident comes when its process has ended.
const INCIDENT_LIMIT: Duration = Duration::from_secs(20);

/// Runs in the VM, with a Ceph cluster beside it.
pub fn run() -> Result<()> {
    let stage = Stage::new()?;
    stage.say("A CephFS that other hosts work on. Two mounts of it: what the cluster really has is read by");
    stage.say(&format!("{WITNESS}, a client of its own that is never guarded."));
    let witness = stage.mount("/", WITNESS, "noshare")?;
    tree::fill(&witness.path().join("pool-a/custom/default_data"), FILES, 20)?;
    stage.say("The barrier: preset incus, root /var/lib/incus. Then a join mounts the pool, and fails.");
    fs::create_dir_all(ROOT).with_context(|| format!("create {ROOT}"))?;
    let _agent = stage.start_agent()?;
    let _pool = stage.mount("/pool-a", POOL, "")?;
    stage.count(FILES)?;
    stage.run("guardctl status", Expect::Success, usize::MAX)?;

    stage.say("The operator cleans up, to try again.");
    let output = stage.run(&format!("rm -rf {ROOT}"), Expect::Failure, 3)?;
    let refused = output.lines().filter(|line| line.ends_with("Operation not permitted")).count();
    ensure!(refused == FILES, "rm was refused {refused} times, not {FILES}");
    stage.count(FILES)?;

    stage.say("What the audit log has of it: the first denials in full, then their exact number.");
    stage.await_incident()?;
    stage.run("guardctl events -n 12", Expect::Success, usize::MAX)?;

    stage.say("On purpose, for a minute, with a reason:");
    let release = "guardctl release shared --ttl 1m --reason 'pool is retired, ticket 4711'";
    stage.run(release, Expect::Success, usize::MAX)?;
    stage.run(&format!("rm -rf {POOL}/*"), Expect::Success, 3)?;
    stage.count(0)?;
    stage.run("guardctl events -n 2 --kind lease", Expect::Success, usize::MAX)?;
    stage.close(&format!(
        "Shown: rm -rf {ROOT} was refused {refused} times on a real CephFS and lost none of {FILES} files; \
         after a release the same files could be deleted."
    ));
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Success,
    Failure,
}

/// Shows commands and what came of them.
struct Stage {
    cluster: Cluster,
    colour: bool,
}

impl Stage {
    fn new() -> Result<Self> {
        let cluster = Cluster::from_environment()?;
        Ok(Self { cluster, colour: env::var_os(COLOUR).is_some() })
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn say(&self, text: &str) {
        println!("{}", self.paint("36", &format!("# {text}")));
    }

    fn prompt(&self, line: &str) {
        println!("{}", self.paint("1", &format!("$ {line}")));
    }

    fn close(&self, text: &str) {
        println!("\n{}", self.paint("1;32", text));
    }

    /// Runs a line of shell. Shows the first lines of what it printed, returns all of it.
    fn run(&self, line: &str, expected: Expect, shown: usize) -> Result<String> {
        self.prompt(line);
        let path = format!("{}:{}", programs()?, env::var("PATH").unwrap_or_default());
        let output = Command::new("sh")
            .args(["-c", line])
            .env("PATH", path)
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

    /// Mounts a directory of the cluster. The secret is not shown.
    fn mount(&self, directory: &str, path: &str, more: &str) -> Result<CephMount> {
        let (device, more_shown) = (self.cluster.device(directory), if more.is_empty() { "" } else { "," });
        let monitor = &self.cluster.monitor;
        self.prompt(&format!(
            "mount -t ceph {device} {path} -o mon_addr={monitor},secret=…{more_shown}{more}"
        ));
        let mount = CephMount::of(directory, path, more)?;
        println!();
        Ok(mount)
    }

    /// Starts the agent with its usual files, and waits until it enforces.
    fn start_agent(&self) -> Result<Agent> {
        let parent = Path::new(POLICY).parent().context("the policy is in a directory")?;
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        fs::write(POLICY, "version = 1\n\n[[root]]\npreset = \"incus\"\njoin = \"none\"\n")
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
        let line = format!("find {WITNESS}/pool-a -type f | wc -l");
        let output = self.run(&line, Expect::Success, usize::MAX)?;
        ensure!(output.trim() == expected.to_string(), "counted {} files, not {expected}", output.trim());
        Ok(())
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
