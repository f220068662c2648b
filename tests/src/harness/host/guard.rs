//! The package under test on a host: installed by apt, run by systemd, asked by guardctl.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::machine::Machine;
use super::runner::Ended;
use crate::harness::wait;

/// Directory in which the payload's disk is unpacked.
const PLACE: &str = "/root/payload";
/// The policy file.
pub const POLICY: &str = "/etc/guard-agent/policy.toml";
/// For apt on an emulated machine, also while deleters take its processors.
const INSTALL_LIMIT: Duration = Duration::from_secs(600);
/// For the agent to load its programs, also while deleters take the processors of an emulated
/// machine: 66 s were seen.
const START_LIMIT: Duration = Duration::from_secs(300);
/// An emulated machine's agent may take longer than a second to answer, and is no stopped one for
/// that.
const PATIENCE: &str = "35s";
/// For the agent to take note of a change.
const NOTICE: Duration = Duration::from_secs(60);

/// The packages that a scenario may install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Package {
    /// The one under test.
    Current,
    /// A later version of it.
    Next,
    /// A later version whose maps have another layout.
    NextLayout,
}

impl Package {
    fn file(self) -> &'static str {
        match self {
            Self::Current => "guard-agent.deb",
            Self::Next => "guard-agent-next.deb",
            Self::NextLayout => "guard-agent-next-layout.deb",
        }
    }
}

/// A host's guard-agent.
#[derive(Clone, Copy, Debug)]
pub struct Guard<'a> {
    host: &'a Machine,
}

impl<'a> Guard<'a> {
    /// Installs the package as a person does, and waits until it enforces.
    pub fn install(host: &'a Machine) -> Result<Self> {
        unpack(host)?;
        let guard = Self { host };
        guard.apt_install(Package::Current)?;
        guard.enforces()?;
        Ok(guard)
    }

    /// The guard-agent of a host that has it.
    pub fn of(host: &'a Machine) -> Self {
        Self { host }
    }

    /// Waits until the agent answers, in any posture.
    pub fn answers(&self) -> Result<()> {
        wait::until("guard-agent answers", NOTICE, || {
            Ok(self.json("status").is_ok_and(|status| status["agent"]["pid"].is_u64()))
        })
        .with_context(|| self.journal())
    }

    /// `apt install` of one of the packages.
    pub fn apt_install(&self, package: Package) -> Result<String> {
        self.apt(&format!("install {PLACE}/{}", package.file()))
    }

    /// `apt-get`, which must succeed.
    pub fn apt(&self, arguments: &str) -> Result<String> {
        let script =
            format!("DEBIAN_FRONTEND=noninteractive apt-get --yes --allow-downgrades {arguments}");
        let ended = self.host.attempt_within(&script, INSTALL_LIMIT)?;
        ensure!(ended.status == 0, "apt-get {arguments}: {}", ended.output);
        Ok(ended.output)
    }

    /// Waits until the posture is `enforcing`.
    pub fn enforces(&self) -> Result<()> {
        wait::until("guard-agent enforces", START_LIMIT, || {
            Ok(self.json("status").is_ok_and(|status| status["posture"]["state"] == "enforcing"))
        })
        .with_context(|| self.journal())
    }

    /// Runs guardctl, with any result.
    pub fn control(&self, arguments: &str) -> Result<Ended> {
        let command = format!("GUARDCTL_TIMEOUT={PATIENCE} guardctl {arguments}");
        self.host.attempt_within(&command, Duration::from_secs(400))
    }

    /// Runs guardctl, which must succeed.
    pub fn direct(&self, arguments: &str) -> Result<String> {
        let ended = self.control(arguments)?;
        ensure!(
            ended.status == 0,
            "guardctl {arguments}: \
             {}\n{}",
            ended.output.trim(),
            self.journal()
        );
        Ok(ended.output)
    }

    /// Answer of guardctl as JSON, with any exit code.
    pub fn json(&self, arguments: &str) -> Result<Value> {
        let ended = self.control(&format!("{arguments} --json 2>/dev/null"))?;
        serde_json::from_str(&ended.output)
            .with_context(|| format!("guardctl {arguments} --json said: {}", ended.output))
    }

    /// The agent's report on the host's Incus node.
    pub fn node(&self) -> Result<Value> {
        let status = self.json("status")?;
        let nodes = status["nodes"].as_array().context("status has no nodes")?;
        let own = nodes.iter().find(|node| node["root"] == "/var/lib/incus");
        own.cloned().context("status does not name the node /var/lib/incus")
    }

    /// Waits until the node is in a state; its pools' mode must be `mode` then.
    pub fn becomes(&self, state: &str, mode: &str) -> Result<()> {
        let mut last = Value::Null;
        let waited = wait::until("the node's state", NOTICE, || {
            last = self.node()?;
            Ok(last["state"] == state)
        });
        waited.with_context(|| {
            format!(
                "wanted {state}; the last look: \
                 {last}\n{}",
                self.journal()
            )
        })?;
        ensure!(last["mode"] == mode, "wanted the mode {mode}: {last}");
        Ok(())
    }

    /// Waits until the node is in one of some states, and returns it.
    pub fn wait_for_state(&self, states: &[&str]) -> Result<String> {
        let mut last = Value::Null;
        let waited = wait::until("the node's state", NOTICE, || {
            // An agent that was killed is away for a moment.
            last = self.node().unwrap_or_default();
            Ok(last["state"].as_str().is_some_and(|state| states.contains(&state)))
        });
        waited.with_context(|| {
            format!("wanted one of {states:?}; the last look: {last}\n{}", self.journal())
        })?;
        Ok(last["state"].as_str().unwrap_or_default().to_owned())
    }

    /// Each change of the node's state, oldest first.
    pub fn transitions(&self) -> Result<Vec<Value>> {
        let histories = self.json("history -n 100")?;
        let nodes = histories.as_array().context("guardctl history printed no list")?;
        Ok(nodes
            .iter()
            .filter_map(|node| node["transitions"].as_array())
            .flatten()
            .cloned()
            .collect())
    }

    /// Denials in all pools of the host.
    pub fn denied(&self) -> Result<u64> {
        let pools = self.json("pools")?;
        let pools = pools.as_array().context("guardctl pools printed no list")?;
        Ok(pools.iter().filter_map(|pool| pool["counters"]["denied"].as_u64()).sum())
    }

    /// Denials since the programs were loaded, in pools that are gone too.
    pub fn denied_ever(&self) -> Result<u64> {
        let status = self.json("status")?;
        let counters = status["counters"].as_object().context("status has no counters")?;
        let denials = counters.iter().filter(|(name, _)| name.starts_with("denied"));
        Ok(denials.filter_map(|(_, count)| count.as_u64()).sum())
    }

    /// The agent's last lines in the journal.
    pub fn journal(&self) -> String {
        let said =
            self.host.attempt("journalctl -b -u guard-agent --no-pager -n 25 -o short-monotonic");
        said.map_or_else(|error| format!("and no journal: {error:#}"), |ended| ended.output)
    }
}

/// Brings the payload's files into the host.
pub fn unpack(host: &Machine) -> Result<()> {
    let script = format!(
        "mkdir -p {PLACE} && dd if=/dev/vdb iflag=direct bs=1M status=none 2>/dev/null | tar \
         --extract --directory {PLACE}; ls {PLACE}/guard-agent.deb"
    );
    host.run(&script).map(drop)
}
