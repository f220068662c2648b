//! Stopping an operator's Incus: kept from starting first, its instances left alone, every wait
//! told and limited. And starting it again.

use std::process::Command;
use std::time::Duration;

use super::error::{CliError, NodeError};
use super::global::parse_duration;
use super::node::{self, Node};
use super::text::safe;
use crate::host::incus;
use crate::host::process::ticks_per_second;
use crate::host::service;
use crate::host::service::{
    Consent, Hold, Host, LiveSystemctl, Manager, Reach, Scope, ServiceError, Unit,
};
use crate::host::wait;
use crate::host::wait::{Interrupt, Patience};
use crate::host::wipe::instances;
use crate::host::wipe::instances::{Instance, Question};
use crate::model::join::Daemon;

#[derive(Clone, Debug, clap::Args)]
pub struct StopArgs {
    /// If Incus has to be stopped, stop its instances too (incus admin shutdown). Otherwise they
    /// keep running, or block the command.
    #[arg(long)]
    pub stop_instances: bool,
    /// Longest time for Incus to stop. Debian's unit allows 330 s before systemd kills it.
    #[arg(long, value_name = "DURATION", default_value = "6m", value_parser = parse_duration)]
    pub stop_timeout: Duration,
}

impl Default for StopArgs {
    fn default() -> Self {
        Self { stop_instances: false, stop_timeout: STOP }
    }
}

/// As the option has it.
const STOP: Duration = Duration::from_secs(360);

/// Takes a line for the operator.
pub type Say<'a> = dyn FnMut(&str) -> Result<(), CliError> + 'a;

/// Longest time for systemd to answer, or to start a socket.
const ANSWER: Duration = Duration::from_secs(60);
/// Longest time for a daemon to end, after systemd has said that it has.
const END: Duration = Duration::from_secs(10);

/// The result of a stop.
#[derive(Clone, Debug, Default)]
pub struct Stopped {
    pub hold: Option<Hold>,
}

/// One stop, hold or start of a node's Incus.
pub struct Stop<'a> {
    pub node: &'a Node,
    pub host: &'a Host,
    pub args: &'a StopArgs,
    pub interrupt: &'a Interrupt,
    pub scope: Scope,
}

impl Stop<'_> {
    /// Keeps Incus from starting, stops it, and proves that it is gone.
    pub fn stop(&self, say: &mut Say<'_>) -> Result<Stopped, CliError> {
        node::require_host()?;
        self.stop_here(say)
    }

    fn stop_here(&self, say: &mut Say<'_>) -> Result<Stopped, CliError> {
        let running = instances(self.node, daemon_pid(self.node)?)?;
        let unit = self.unit(say)?;
        let mut stopped = Stopped::default();
        if let Some(unit) = &unit {
            let consent =
                Consent { instances: running.len(), may_stop_them: self.args.stop_instances };
            service::may_stop(unit, consent)?;
            stopped.hold = self.hold_unit(unit, say)?;
        }
        if self.args.stop_instances && !running.is_empty() {
            self.shut_down(say)?;
        }
        if let Some(unit) = &unit {
            say(&format!("stopping {}; instances run on", unit.name))?;
            let units = self.systemctl(self.args.stop_timeout, say, |systemctl| {
                service::stop(systemctl, unit, self.scope)
            })?;
            if !units.is_empty() {
                say(&format!("stopped: {}", units.join(", ")))?;
            }
        }
        self.end_process(say)?;
        if unit.is_none() {
            say(&format!(
                "nothing keeps Incus from starting on this host: leave it stopped until this is \
                 over. Then: {}",
                self.host.manager.start_command(&[])
            ))?;
        }
        Ok(stopped)
    }

    /// Keeps an Incus that does not run from starting. Does nothing if Incus runs, if no systemd
    /// manages it, or if the agent will refuse the operator.
    pub fn hold(&self, say: &mut Say<'_>) -> Result<Option<Hold>, CliError> {
        if node::require_host().is_err() || daemon_pid(self.node)?.is_some() {
            return Ok(None);
        }
        self.hold_here(say)
    }

    fn hold_here(&self, say: &mut Say<'_>) -> Result<Option<Hold>, CliError> {
        match self.unit(say)? {
            Some(unit) => self.hold_unit(&unit, say),
            None => Ok(None),
        }
    }

    fn hold_unit(&self, unit: &Unit, say: &mut Say<'_>) -> Result<Option<Hold>, CliError> {
        let hold = self.systemctl(ANSWER, say, |systemctl| {
            service::hold_unit(systemctl, &self.host.places, unit, self.scope)
        })?;
        let Some(hold) = hold else {
            say(&format!("{} is masked, and does not start", unit.name))?;
            return Ok(None);
        };
        let path = hold.path.display();
        let until = if hold.outlives_boot { "" } else { " until the next boot" };
        say(&format!("{} is kept from starting{until}: {path}", unit.name))?;
        Ok(Some(hold))
    }

    /// The hold that an earlier command has left.
    pub fn found_hold(&self) -> Result<Option<Hold>, CliError> {
        Ok(Hold::find(&self.host.places, &self.node.unit)?)
    }

    /// Ends the hold. Nothing is started.
    pub fn lift(&self, hold: &Hold, say: &mut Say<'_>) -> Result<(), CliError> {
        self.systemctl(ANSWER, say, |systemctl| service::lift(systemctl, hold))?;
        say(&format!("{} may start again ({} is gone)", self.node.unit, hold.path.display()))
    }

    /// Makes Incus reachable. `ran`: the units that ran before the stop.
    pub fn start(&self, ran: &[String], say: &mut Say<'_>) -> Result<Vec<String>, CliError> {
        if self.unit(say)?.is_none() {
            return match daemon_pid(self.node)? {
                Some(_) => Ok(Vec::new()),
                None => {
                    Err(NodeError::NotStarted { command: self.host.manager.start_command(&[]) }
                        .into())
                }
            };
        }
        let unit = &self.node.unit;
        let started =
            self.systemctl(ANSWER, say, |systemctl| service::start(systemctl, unit, ran))?;
        if !started.is_empty() {
            say(&format!("started: {}", started.join(", ")))?;
        }
        Ok(started)
    }

    /// Command with which an operator starts it.
    pub fn start_command(&self, say: &mut Say<'_>) -> Result<String, CliError> {
        let unit = &self.node.unit;
        let units = match self.unit(say)? {
            Some(_) => {
                self.systemctl(ANSWER, say, |systemctl| service::by_hand(systemctl, unit))?
            }
            None => Vec::new(),
        };
        Ok(self.host.manager.start_command(&units))
    }

    /// Whether the incus client can reach the daemon. `None`: systemd does not manage it.
    pub fn reach(&self, say: &mut Say<'_>) -> Result<Option<Reach>, CliError> {
        if self.unit(say)?.is_none() {
            return Ok(None);
        }
        let unit = &self.node.unit;
        let reach = self.systemctl(ANSWER, say, |systemctl| {
            service::reach(systemctl, &self.host.places, unit)
        })?;
        Ok(Some(reach))
    }

    /// The daemon's unit, if systemd manages this host and knows it.
    pub fn unit(&self, say: &mut Say<'_>) -> Result<Option<Unit>, CliError> {
        if self.host.manager != Manager::Systemd {
            return Ok(None);
        }
        let name = &self.node.unit;
        let unit = self.systemctl(ANSWER, say, |systemctl| service::look(systemctl, name))?;
        Ok(Some(unit).filter(Unit::is_known))
    }

    fn systemctl<T>(
        &self,
        limit: Duration,
        say: &mut Say<'_>,
        work: impl FnOnce(&mut LiveSystemctl<'_>) -> Result<T, ServiceError>,
    ) -> Result<T, CliError> {
        // The output's reader may have gone: the stop is completed all the same.
        let mut alive = |line: &str| drop(say(line));
        let patience = Patience::new(limit, self.interrupt);
        let program = &self.host.systemctl;
        Ok(work(&mut LiveSystemctl { program, patience, alive: &mut alive })?)
    }

    /// Has Incus stop all its instances, and itself.
    fn shut_down(&self, say: &mut Say<'_>) -> Result<(), CliError> {
        if daemon_pid(self.node)?.is_none() {
            return Err(NodeError::CannotStopInstances.into());
        }
        say("stopping the instances (incus admin shutdown)")?;
        let mut command = Command::new("incus");
        command.args(["admin", "shutdown"]);
        self.node.address(&mut command);
        let (what, limit) = ("incus admin shutdown", self.args.stop_timeout);
        let mut alive = |passed: Duration| {
            let (passed, limit) = (passed.as_secs(), limit.as_secs());
            drop(say(&format!("{what}: {passed} s of at most {limit} s (Ctrl-C ends the wait)")));
        };
        let failed = |source| ServiceError::Run { program: "incus", source };
        let patience = Patience::new(limit, self.interrupt);
        let said = wait::run(&mut command, &patience, &mut alive).map_err(failed)?;
        said.map_err(|early| ServiceError::early(early, what, limit))?;
        // Its exit code says little: the connection may break before the answer. Instances that
        // still run are counted.
        let left = instances(self.node, daemon_pid(self.node)?)?;
        if left.is_empty() { Ok(()) } else { Err(NodeError::instances(self.node, &left).into()) }
    }

    /// Ends a daemon that no unit has started, and proves that none is left.
    fn end_process(&self, say: &mut Say<'_>) -> Result<(), CliError> {
        let end = std::time::Instant::now() + END;
        loop {
            match daemon(self.node)? {
                Daemon::Stopped => return Ok(()),
                Daemon::Unknown => return Err(NodeError::DaemonUnknown.into()),
                Daemon::Running { incarnation, .. } if std::time::Instant::now() >= end => {
                    return Err(NodeError::StillRuns { pid: incarnation.pid }.into());
                }
                Daemon::Running { incarnation, .. } => {
                    say(&format!("SIGTERM to incusd (process {})", incarnation.pid))?;
                    let patience = Patience::new(self.args.stop_timeout, self.interrupt);
                    let mut alive = |line: &str| drop(say(line));
                    service::terminate(
                        incarnation.pid,
                        incarnation.start_ticks,
                        &patience,
                        &mut alive,
                    )?;
                }
            }
        }
    }
}

/// Whether a node's daemon runs.
pub fn daemon(node: &Node) -> Result<Daemon, NodeError> {
    Ok(incus::sight(&node.incus, &node::mount_table()?, ticks_per_second()).daemon)
}

/// Its process, if it certainly runs.
pub fn daemon_pid(node: &Node) -> Result<Option<u32>, NodeError> {
    Ok(match daemon(node)? {
        Daemon::Running { incarnation, .. } => Some(incarnation.pid),
        Daemon::Stopped | Daemon::Unknown => None,
    })
}

/// The instances of a node that run.
pub fn instances(node: &Node, daemon: Option<u32>) -> Result<Vec<Instance>, NodeError> {
    let question = Question { proc_root: &node.incus.proc_root, root: &node.place, daemon };
    let operation = "look for instances in /proc";
    instances::find(&question).map_err(|source| NodeError::Io { operation, source })
}

/// Text for the operator: a hold stays, and the command that ends it.
pub fn held(hold: &Hold) -> String {
    format!(
        "Incus is kept from starting, since it would mount the pools again. To have it back all \
         the same: guardctl rollback --release-hold (by hand: {})",
        safe(&hold.end_by_hand())
    )
}

#[cfg(test)]
#[path = "stop_tests.rs"]
mod tests;
