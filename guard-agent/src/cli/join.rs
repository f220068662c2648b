//! `guardctl join`: joins a cluster in two phases. Prepare: preflight, then the agent seals the
//! node's pools before the first of them is mounted. Commit: the pools become guarded once this
//! server is proven to be a member; else they stay sealed, or are rolled back.
//!
//! The agent's state machine tells from evidence how the join ended, not the command: a join can
//! report a failure although the node has joined, and the other way round. If guardctl is killed,
//! the agent carries on.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::error::{CliError, NodeError};
use super::follow::Follow;
use super::global::{Global, expect_reply, parse_duration, write_json};
use super::join_command;
use super::node::{self, Node};
use super::rollback;
use super::stop::{Say, Stop, StopArgs};
use super::text::safe;
use crate::cli::preflight::command::{self as preflight, Checked, PreflightArgs};
use crate::host::doctor::Check;
use crate::host::service::{Host, Reach, Scope};
use crate::host::wait::{EVERY, Interrupt, Patience};
use crate::model::control::report::{PoolReport, RollbackReport};
use crate::model::control::{Reply, Request};
use crate::model::exit::Exit;
use crate::model::rollback::Allowed;

#[derive(Debug, clap::Args)]
pub struct JoinArgs {
    #[command(flatten)]
    pub preflight: PreflightArgs,
    /// Join although preflight has failed.
    #[arg(long)]
    pub despite_findings: bool,
    /// Action after a failed join: leave the pools sealed, or stop Incus and roll back.
    #[arg(long, value_enum, default_value_t = OnFailure::Hold)]
    pub on_failure: OnFailure,
    /// Longest wait, after the command has ended, for evidence that the node has joined.
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = parse_duration)]
    pub wait: Duration,
    /// Longest time for the command. After that it is ended; a join that Incus has begun continues,
    /// sealed.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    pub command_timeout: Duration,
    #[command(flatten)]
    pub stop: StopArgs,
    /// The command that joins, instead of a preseed.
    #[arg(
        last = true,
        value_name = "COMMAND",
        required_unless_present = "preseed",
        conflicts_with = "preseed"
    )]
    pub command: Vec<std::ffi::OsString>,
}

/// After a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnFailure {
    Hold,
    Rollback,
}

/// Result of `guardctl join`.
#[derive(Debug, Serialize)]
pub struct JoinReport {
    pub root: PathBuf,
    pub preflight: Vec<Check>,
    /// The command's end; `None` if it was not started.
    pub command: Option<String>,
    /// State of the node at the end.
    pub state: String,
    pub joined: bool,
    pub warning: Option<String>,
    pub rollback: Option<RollbackReport>,
}

/// Interval between requests to the agent.
const REDRAW_EVERY: Duration = Duration::from_millis(250);
/// A state that says "failed" counts when it has stood for so long after the command's end:
/// evidence of a membership comes last, and the raft leader may take its time.
const SETTLED: Duration = Duration::from_secs(15);

/// Joins.
pub fn run(global: &Global, args: &JoinArgs, out: &mut impl Write) -> Result<Exit, CliError> {
    node::require_host()?;
    let Checked { root, checks, preseed } = preflight::check(global, &args.preflight)?;
    let mut report = JoinReport {
        root: root.clone(),
        preflight: checks,
        command: None,
        state: String::new(),
        joined: false,
        warning: None,
        rollback: None,
    };
    if !global.json {
        preflight::show(&report.preflight, out)?;
    }
    if !preflight::is_fit(&report.preflight) && !args.despite_findings {
        if !global.json {
            writeln!(
                out,
                "not joined: correct the findings marked FAIL above (or --despite-findings)"
            )?;
        } else {
            write_json(out, &report)?;
        }
        return Ok(Exit::Degraded);
    }
    let mut say = |line: &str| if global.json { Ok(()) } else { Ok(writeln!(out, "{line}")?) };
    let (interrupt, host) = (Interrupt::catch()?, Host::this());
    let node = Node::find(global, Some(&root))?;
    let preseed = preseed.as_deref();
    let join = Join { global, args, preseed, node: &node, host: &host, interrupt: &interrupt };
    join.run(&mut report, &mut say)?;
    if global.json {
        write_json(out, &report)?;
    }
    Ok(if report.joined { Exit::Ok } else { Exit::Failure })
}

/// Name of the state of a member.
const JOINED: &str = "joined";

struct Join<'a> {
    global: &'a Global,
    args: &'a JoinArgs,
    preseed: Option<&'a str>,
    node: &'a Node,
    host: &'a Host,
    interrupt: &'a Interrupt,
}

impl Join<'_> {
    fn run(&self, report: &mut JoinReport, say: &mut Say<'_>) -> Result<(), CliError> {
        self.may_start(say)?;
        self.prepare(say)?;
        let ended = self.start(say).and_then(|()| self.command(say));
        // Also when it could not be started: nothing comes any more.
        let told = self.tell_end();
        report.command = Some(ended?);
        told?;
        say(&format!("the command ended with {}", report.command.as_deref().unwrap_or_default()))?;
        report.state = self.settled_state(say)?;
        report.joined = report.state == JOINED;
        self.conclude(report, say)
    }

    fn prepare(&self, say: &mut Say<'_>) -> Result<(), CliError> {
        let request = Request::JoinPrepare { root: self.root() };
        let root = expect_reply!(self.global, request, Reply::NodeState { root, .. } => root);
        say(&format!(
            "{}: prepared: whatever is mounted below it from now on is sealed until the node has \
             joined",
            safe(&root)
        ))
    }

    /// Fails if something keeps Incus from starting.
    fn may_start(&self, say: &mut Say<'_>) -> Result<(), CliError> {
        match self.stop().reach(say)? {
            Some(Reach::Held(hold)) => Err(NodeError::Held { path: hold.path }.into()),
            Some(Reach::Masked(units)) => Err(NodeError::Masked { units: units.join(" ") }.into()),
            Some(Reach::Down(_) | Reach::Up) | None => Ok(()),
        }
    }

    /// Starts the sockets of an Incus that was stopped: the incus client cannot. Not before the
    /// pools are sealed.
    fn start(&self, say: &mut Say<'_>) -> Result<(), CliError> {
        match self.stop().start(&[], say) {
            // The operator's own command may start it, the incus client does not.
            Err(CliError::Node(NodeError::NotStarted { .. })) if self.preseed.is_none() => {
                say("Incus does not run, and no unit of systemd starts it: left to the command")
            }
            started => started.map(|_| ()),
        }
    }

    fn stop(&self) -> Stop<'_> {
        let Self { args, node, host, interrupt, .. } = self;
        Stop { node, host, args: &args.stop, interrupt, scope: Scope::Daemon }
    }

    fn root(&self) -> Option<String> {
        Some(self.node.root.to_string_lossy().into_owned())
    }

    /// Without this the preparation would end by its time limit.
    fn tell_end(&self) -> Result<(), CliError> {
        match self.global.ask(&Request::JoinCommandEnded { root: self.root() }) {
            // An agent that is being restarted treats a preparation as over anyway.
            Err(error) if error.exit() == Exit::Unreachable => Ok(()),
            answer => answer.map(|_| ()),
        }
    }

    fn command(&self, say: &mut Say<'_>) -> Result<String, CliError> {
        let Self { global, args, preseed, node, interrupt, .. } = self;
        let mut command = join_command::build(node, *preseed, &args.command, global.json)?;
        join_command::run(&mut command, &Patience::new(args.command_timeout, interrupt), say)
    }

    /// The node's state, once it says something that lasts.
    fn settled_state(&self, say: &mut Say<'_>) -> Result<String, CliError> {
        let start = Instant::now();
        let end = start + self.args.wait;
        let (mut last, mut since, mut told) = (String::new(), start, start);
        loop {
            let state = match self.node_state() {
                // The agent may be restarted meanwhile; it goes on from its last state.
                Err(error) if error.exit() == Exit::Unreachable && Instant::now() < end => {
                    last.clone()
                }
                state => state?,
            };
            if state != last {
                (last, since) = (state, Instant::now());
            }
            let is_failure = matches!(last.as_str(), "join-failed" | "join-partial" | "standalone");
            if last == JOINED || (is_failure && since.elapsed() >= SETTLED) || Instant::now() >= end
            {
                return Ok(last);
            }
            if told.elapsed() >= EVERY {
                told = Instant::now();
                let (passed, limit) = (start.elapsed().as_secs(), self.args.wait.as_secs());
                say(&format!(
                    "the node is {last}: {passed} s of at most {limit} s (Ctrl-C ends the wait)"
                ))?;
            }
            if self.interrupt.sleep(REDRAW_EVERY) {
                return Ok(last);
            }
        }
    }

    fn node_state(&self) -> Result<String, CliError> {
        let request = Request::RollbackStatus { root: self.root() };
        Ok(expect_reply!(self.global, request, Reply::Rollback(report) => report.state))
    }

    fn conclude(&self, report: &mut JoinReport, say: &mut Say<'_>) -> Result<(), CliError> {
        let well = report.command.as_deref() == Some("exit status: 0");
        let root = safe(&report.root.display().to_string());
        if report.joined {
            if !well {
                report.warning = Some(
                    "the command failed although this node is a member: a late step of the join \
                     did not come out well; see the Incus log"
                        .to_owned(),
                );
            }
            say(&format!("{root}: joined: its pools are guarded"))?;
            return report
                .warning
                .iter()
                .try_for_each(|warning| say(&format!("warning: {warning}")));
        }
        let pools = rollback::pools(self.global, self.node)?;
        if self.interrupt.came() {
            return say(&format!(
                "{root}: interrupted: the node is {}; {}. What Incus has begun goes on: guardctl \
                 status",
                report.state,
                modes(&pools)
            ));
        }
        say(&format!("{root}: not joined: the node is {}; {}", report.state, modes(&pools)))?;
        match rollback::ask(self.global, Some(&self.node.root)) {
            // Nothing is stopped for a rollback that the node's state refuses.
            Err(refusal) if refusal.exit() == Exit::Refused => {
                let why = crate::model::errors::chain(&refusal);
                return say(&format!(
                    "no rollback: {why}. Incus was left as it is: correct the failure, then \
                     join again"
                ));
            }
            asked => drop(asked?),
        }
        match self.args.on_failure {
            OnFailure::Hold => say(&format!(
                "next: guardctl rollback --stop-incus --root {root}, then guardctl preflight, and \
                 join again (with another address: first step 3 of docs/RUNBOOK.md)"
            )),
            OnFailure::Rollback => self.roll_back(report, say),
        }
    }

    fn roll_back(&self, report: &mut JoinReport, say: &mut Say<'_>) -> Result<(), CliError> {
        let stop = self.stop();
        if !self.args.stop.stop_instances {
            rollback::no_guests(self.node, &rollback::pools(self.global, self.node)?)?;
        }
        let stopped = stop.stop(say)?;
        let (global, interrupt) = (self.global, self.interrupt);
        let follow =
            Follow { global, interrupt, limit: rollback::WAIT, every: EVERY, stopped: true };
        let done = follow.carry_out(&self.node.root, Allowed::default(), say)?;
        say(rollback::verdict(&done).trim_end())?;
        rollback::after(&stop, stopped.hold.as_ref(), true, rollback::is_released(&done), say)?;
        report.state.clone_from(&done.state);
        report.rollback = Some(done);
        Ok(())
    }
}

/// The modes of the node's pools, by the agent's report.
fn modes(pools: &[PoolReport]) -> String {
    if pools.is_empty() {
        return "no pool of it is mounted".to_owned();
    }
    let mode = |pool: &PoolReport| format!("{} is {}", safe(&pool.name), pool.mode);
    format!("its pools: {}", pools.iter().map(mode).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
