//! Starts and ends a guard-agent with files of its own.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;
use std::{env, io};

use anyhow::{Context as _, Result, bail};
use guard_agent::host::bpf::Maps;
use guard_agent::host::bpf::layouts::{Layout, Layouts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::scratch::Scratch;
use super::{command, wait};

/// From start to READY, with programs loaded and the canary answered, on an emulated machine.
const START_LIMIT: Duration = Duration::from_secs(240);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const LOG: &str = "agent.log";

/// One agent's policy, state, run directory, audit log and pins. They outlive the agent's process,
/// so that it can be restarted on them; the pins are removed when this is dropped, which ends
/// enforcement.
#[derive(Debug)]
pub struct Installation {
    scratch: Scratch,
    pin_dir: PathBuf,
    keeps_pins: bool,
}

/// Directory of the pins that one test leaves to the next.
const KEPT_PINS: &str = "/sys/fs/bpf/guard-tests-kept";

impl Installation {
    /// A fresh one with this policy text.
    pub fn new(name: &str, policy: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let own_name = scratch.path().file_name().unwrap_or_default().to_owned();
        let pin_dir = Path::new("/sys/fs/bpf").join(own_name);
        let installation = Self { pin_dir, scratch, keeps_pins: false };
        for directory in [installation.state_dir(), installation.run_dir()] {
            fs::create_dir_all(&directory)
                .with_context(|| format!("create {}", directory.display()))?;
        }
        installation.write_policy(policy)?;
        Ok(installation)
    }

    /// The same on pins that are kept from test to test. Its agent adopts what an earlier one has
    /// loaded, which saves the verifier's seconds; counters and records of earlier tests are still
    /// there.
    pub fn on_kept_pins(name: &str, policy: &str) -> Result<Self> {
        let mut installation = Self::new(name, policy)?;
        (installation.pin_dir, installation.keeps_pins) = (KEPT_PINS.into(), true);
        Ok(installation)
    }

    pub fn policy(&self) -> PathBuf {
        self.scratch.join("policy.toml")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.scratch.join("state")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.scratch.join("run")
    }

    pub fn audit(&self) -> PathBuf {
        self.scratch.join("audit.jsonl")
    }

    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// The layout of the maps that speaks.
    pub fn layout(&self) -> Result<Layout> {
        let layout = Layouts::open(&self.pin_dir)?.current()?;
        layout.with_context(|| format!("no map layout speaks in {}", self.pin_dir.display()))
    }

    /// Every load of programs that is pinned, of any layout.
    pub fn loads(&self) -> Result<Vec<PathBuf>> {
        let mut loads = Vec::new();
        for layout in Layouts::open(&self.pin_dir)?.found()? {
            loads.extend(layout.pins.generations()?.into_iter().map(|load| load.directory));
        }
        Ok(loads)
    }

    /// Directory of its pinned maps.
    pub fn maps_dir(&self) -> Result<PathBuf> {
        Ok(self.layout()?.pins.maps())
    }

    /// The pinned maps, as the agent of this layout has them.
    pub fn maps(&self) -> Result<Maps> {
        Ok(Maps::open(&self.maps_dir()?)?)
    }

    /// Replaces the policy as an editor does: a new file, renamed over the old one.
    pub fn write_policy(&self, text: &str) -> Result<()> {
        let new = self.scratch.join("policy.toml.new");
        fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, self.policy())
            .with_context(|| format!("rename {} into place", new.display()))
    }

    /// The audit log's lines, parsed. A line that is just being written is none yet, and one that a
    /// killed agent has not written to its end stays so (docs/AUDIT.md).
    pub fn audit_records(&self) -> Result<Vec<serde_json::Value>> {
        let path = self.audit();
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let parsed = |line: &str| match serde_json::from_str(line) {
            Err(error) if error.is_eof() => None,
            parsed => Some(parsed.with_context(|| format!("parse {line}"))),
        };
        whole.lines().filter_map(parsed).collect()
    }

    /// Output of all its agents so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.scratch.join(LOG)).unwrap_or_default()
    }

    /// Starts the agent and waits until it says that it is ready.
    pub fn start(&self) -> Result<Agent> {
        let mut agent = self.spawn(&binary("GUARD_AGENT")?, &[])?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts the agent that was built with another label, and waits until it is ready.
    pub fn start_upgraded(&self) -> Result<Agent> {
        let mut agent = self.spawn(&binary("GUARD_AGENT_UPGRADE")?, &[])?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts the agent that has another layout of the maps, and waits until it is ready.
    pub fn start_other_layout(&self) -> Result<Agent> {
        let mut agent = self.spawn(&binary("GUARD_AGENT_LAYOUT")?, &[])?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts an agent that may well refuse to run: waits for nothing.
    pub fn spawn(&self, program: &Path, more_arguments: &[&str]) -> Result<Agent> {
        self.spawn_command(Command::new(program), more_arguments)
    }

    /// The same with whatever starts the agent: its arguments come behind those of the command.
    pub fn spawn_command(&self, mut command: Command, more_arguments: &[&str]) -> Result<Agent> {
        let notify_path = self.scratch.join("notify");
        if notify_path.exists() {
            fs::remove_file(&notify_path)
                .with_context(|| format!("remove {}", notify_path.display()))?;
        }
        let notify = UnixDatagram::bind(&notify_path)
            .with_context(|| format!("bind {}", notify_path.display()))?;
        let log_path = self.scratch.join(LOG);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .context("open the agent's log")?;
        let child = command
            .arg("run")
            .arg("--policy")
            .arg(self.policy())
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--audit")
            .arg(self.audit())
            .arg("--pin-dir")
            .arg(&self.pin_dir)
            .args(more_arguments)
            .env("NOTIFY_SOCKET", &notify_path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        notify.set_nonblocking(true).context("prepare the notify socket")?;
        Ok(Agent { child, notify, log: log_path, status: String::new() })
    }

    /// Ends enforcement in every tier, also the parts without a pin: responders and sealed mounts.
    /// Stop the agent before.
    pub fn unload(&self) -> Result<()> {
        let (pins, state) = (self.pin_dir.to_string_lossy(), self.state_dir());
        let arguments = ["unload", "--pin-dir", &pins, "--state-dir", &state.to_string_lossy()];
        command::run(&binary("GUARD_AGENT")?.to_string_lossy(), &arguments)?;
        Ok(())
    }

    /// Output of `guardctl status`, in any posture.
    pub fn status(&self) -> Result<serde_json::Value> {
        let output = self.guardctl(&["status", "--json"])?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("parse the status: {}", command::text(&output)))
    }

    /// Runs guardctl against this agent, with any result.
    pub fn guardctl(&self, arguments: &[&str]) -> Result<Output> {
        let run_dir = self.run_dir();
        let run_dir = run_dir.to_string_lossy();
        // In front: behind a `--` it would be an argument of the command there.
        let mut all = vec!["--run-dir", &*run_dir];
        all.extend(arguments);
        // Places for the commands that can answer without the agent.
        let (state_dir, audit) = (self.state_dir(), self.audit());
        if matches!(arguments.first(), Some(&"status" | &"pools" | &"events")) {
            for (option, place) in
                [("--pin-dir", self.pin_dir()), ("--state-dir", &*state_dir), ("--audit", &*audit)]
            {
                all.extend([option, place.to_str().context("a place that is UTF-8")?]);
            }
        }
        command::attempt(&binary("GUARDCTL")?.to_string_lossy(), &all)
    }

    /// Runs guardctl, which must succeed, with `--json` and returns its output.
    pub fn guardctl_json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let mut all = arguments.to_vec();
        all.push("--json");
        let output = self.guardctl(&all)?;
        let text = command::text(&output);
        if !output.status.success() {
            bail!("guardctl {}: {}: {}", all.join(" "), output.status, text.trim());
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("parse what guardctl said: {text}"))
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        if !self.keeps_pins {
            // Best effort: without pins the kernel lets go of programs and maps.
            let _ = fs::remove_dir_all(&self.pin_dir);
        }
    }
}

/// A running agent. It is killed when dropped; its pins stay, as they do on a host.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    notify: UnixDatagram,
    log: PathBuf,
    /// Its last status for the service manager.
    status: String,
}

impl Agent {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in KiB.
    pub fn memory_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .context("read its status")?;
        let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok());
        number.context("no VmRSS in its status")
    }

    /// Waits for `READY=1`; fails at once if the agent ends before.
    pub fn wait_ready(&mut self) -> Result<()> {
        wait::until("guard-agent says READY=1", START_LIMIT, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("guard-agent ended before it was ready: {status}");
            }
            Ok(self.notifications()?.iter().any(|line| line == "READY=1"))
        })
        .with_context(|| format!("the agent's log:\n{}", self.log()))
    }

    /// Lines that it has sent to the service manager since the last call.
    fn notifications(&mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut message = [0; 4096];
        loop {
            match self.notify.recv(&mut message) {
                Ok(size) => lines
                    .extend(String::from_utf8_lossy(&message[..size]).lines().map(str::to_owned)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        let texts = lines.iter().rev().find_map(|line| line.strip_prefix("STATUS="));
        if let Some(text) = texts {
            text.clone_into(&mut self.status);
        }
        Ok(lines)
    }

    /// Waits until its last status for the service manager has this in it; returns all of it.
    pub fn wait_status_text(&mut self, part: &str) -> Result<String> {
        wait::until(&format!("the status text has `{part}`"), STOP_LIMIT, || {
            self.notifications()?;
            Ok(self.status.contains(part))
        })
        .with_context(|| format!("the status text is `{}`", self.status))?;
        Ok(self.status.clone())
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait::until_some("guard-agent ends", limit, || Ok(self.child.try_wait()?))
            .with_context(|| format!("the agent's log:\n{}", self.log()))
    }

    /// SIGTERM, and waits for it to end.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(STOP_LIMIT)
    }

    /// SIGTERM to the agent below strace(1), which ends with it.
    pub fn stop_traced(mut self) -> Result<()> {
        let children = format!("/proc/{0}/task/{0}/children", self.pid());
        let children = fs::read_to_string(&children).with_context(|| format!("read {children}"))?;
        let pid = children.split_whitespace().next().context("strace has no child")?.parse()?;
        kill(Pid::from_raw(pid), Signal::SIGTERM)
            .context("send SIGTERM to the agent below strace")?;
        self.wait(STOP_LIMIT)?;
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("kill guard-agent")?;
        self.child.wait().context("wait for guard-agent")?;
        Ok(())
    }

    /// For SIGSTOP, SIGCONT and others.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("the agent's pid")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("send {signal} to guard-agent"))
    }

    /// Output of all agents of this installation so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that `cargo xtask` names in the environment.
pub fn binary(variable: &str) -> Result<PathBuf> {
    let path = env::var_os(variable)
        .with_context(|| format!("{variable} is not set: run this with `cargo xtask test`"))?;
    Ok(PathBuf::from(path))
}
