//! `guardctl join`: joins a cluster in two phases. Prepare: preflight, then the agent seals the node's pools before
//! the first of them is mounted. Commit: the pools become guarded once this server is proven to be a member; else
//! they stay sealed, or are rolled back.
//!
//! How it ended is told by the agent's state machine, from evidence, not by the command: a join can report a failure
//! although the node has joined, and the other way round. If guardctl is killed, the agent carries on.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::node::{self, Node, NodeError};
use super::preflight::{self, PreflightArgs};
use super::text::safe;
use super::{CliError, Global, expect_reply, parse_duration, rollback, write_json};
use crate::control::report::RollbackReport;
use crate::control::{Reply, Request};
use crate::doctor::Check;
use crate::exit::Exit;

#[derive(Debug, clap::Args)]
pub struct JoinArgs {
    #[command(flatten)]
    pub preflight: PreflightArgs,
    /// A preseed for `incus admin init --preseed`.
    #[arg(long, value_name = "FILE", required_unless_present = "command")]
    pub preseed: Option<PathBuf>,
    /// Join although preflight forbids it.
    #[arg(long)]
    pub despite_findings: bool,
    /// What to do when the join has failed: leave the pools sealed, or stop Incus and roll back.
    #[arg(long, value_enum, default_value_t = OnFailure::Hold)]
    pub on_failure: OnFailure,
    /// How long to wait, after the command has ended, until it is known whether the node has joined.
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = parse_duration)]
    pub wait: Duration,
    /// The command that joins, instead of a preseed.
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "preseed")]
    pub command: Vec<std::ffi::OsString>,
}

/// After a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnFailure {
    Hold,
    Rollback,
}

/// How it went.
#[derive(Debug, Serialize)]
pub struct Report {
    pub root: PathBuf,
    pub preflight: Vec<Check>,
    /// How the command ended; `None` if it was not started.
    pub command: Option<String>,
    /// State of the node at the end.
    pub state: String,
    pub joined: bool,
    pub warning: Option<String>,
    pub rollback: Option<RollbackReport>,
}

/// How often the agent is asked.
const BEAT: Duration = Duration::from_millis(250);
/// A state that says "failed" counts when it has stood for so long after the command's end: evidence of a
/// membership comes last, and the raft leader may take its time.
const SETTLED: Duration = Duration::from_secs(15);

/// Joins.
pub fn run(global: &Global, args: &JoinArgs, out: &mut impl Write) -> Result<Exit, CliError> {
    node::require_host()?;
    let preseed = match &args.preseed {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .map_err(|source| NodeError::Io { operation: "read the preseed", source })?,
        ),
        None => None,
    };
    let (root, checks) = preflight::check(global, &args.preflight, preseed.as_deref())?;
    let mut report = Report {
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
            writeln!(out, "not joined: correct what FAILs above (or --despite-findings)")?;
        } else {
            write_json(out, &report)?;
        }
        return Ok(Exit::Degraded);
    }
    let mut say = |line: &str| if global.json { Ok(()) } else { Ok(writeln!(out, "{line}")?) };
    prepare(global, &root, &mut say)?;
    let ended = command(global, args);
    // Also when it could not be started: nothing comes any more.
    let told = tell_end(global, &root);
    report.command = Some(ended?);
    told?;
    say(&format!("the command ended with {}", report.command.as_deref().unwrap_or_default()))?;
    report.state = settled_state(global, &root, args.wait)?;
    report.joined = report.state == JOINED;
    conclude(global, args, &mut report, &mut say)?;
    if global.json {
        write_json(out, &report)?;
    }
    Ok(if report.joined { Exit::Ok } else { Exit::Failure })
}

/// Name of the state of a member.
const JOINED: &str = "joined";

fn prepare(
    global: &Global,
    root: &Path,
    say: &mut dyn FnMut(&str) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let request = Request::JoinPrepare { root: Some(root.to_string_lossy().into_owned()) };
    let root = expect_reply!(global, request, Reply::NodeState { root, .. } => root);
    say(&format!(
        "{}: prepared: whatever is mounted below it from now on is sealed until the node has joined",
        safe(&root)
    ))
}

/// Without this the preparation would end by its time limit.
fn tell_end(global: &Global, root: &Path) -> Result<(), CliError> {
    let request = Request::JoinCommandEnded { root: Some(root.to_string_lossy().into_owned()) };
    match global.ask(&request) {
        // An agent that is being restarted treats a preparation as over anyway.
        Err(error) if error.exit() == Exit::Unreachable => Ok(()),
        answer => answer.map(|_| ()),
    }
}

/// Runs the command to its end. Its output is the operator's; with `--json` both go to standard error.
fn command(global: &Global, args: &JoinArgs) -> Result<String, CliError> {
    let io = |operation| move |source| CliError::from(NodeError::Io { operation, source });
    let mut command = match (&args.preseed, args.command.split_first()) {
        (Some(path), _) => {
            let mut command = Command::new("incus");
            command.args(["admin", "init", "--preseed"]);
            command.stdin(File::open(path).map_err(io("open the preseed"))?);
            command
        }
        (None, Some((program, arguments))) => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        (None, None) => {
            return Err(NodeError::Io {
                operation: "run the command",
                source: io::ErrorKind::InvalidInput.into(),
            }
            .into());
        }
    };
    if global.json {
        let errors = std::os::fd::AsFd::as_fd(&io::stderr())
            .try_clone_to_owned()
            .map_err(io("share standard error"))?;
        command.stdout(Stdio::from(errors));
    }
    // One that cannot be started has changed nothing; the preparation ends by itself.
    let status = command.status().map_err(io("start the command"))?;
    Ok(status.to_string())
}

/// The node's state, once it says something that lasts.
fn settled_state(global: &Global, root: &Path, wait: Duration) -> Result<String, CliError> {
    let end = Instant::now() + wait;
    let (mut last, mut since) = (String::new(), Instant::now());
    loop {
        let state = match node_state(global, root) {
            // The agent may be restarted meanwhile; it goes on where it was.
            Err(error) if error.exit() == Exit::Unreachable && Instant::now() < end => last.clone(),
            state => state?,
        };
        if state != last {
            (last, since) = (state, Instant::now());
        }
        let is_failure = matches!(last.as_str(), "join-failed" | "join-partial" | "standalone");
        if last == JOINED || (is_failure && since.elapsed() >= SETTLED) || Instant::now() >= end {
            return Ok(last);
        }
        sleep(BEAT);
    }
}

fn node_state(global: &Global, root: &Path) -> Result<String, CliError> {
    let root = Some(root.to_string_lossy().into_owned());
    Ok(expect_reply!(global, Request::RollbackStatus { root }, Reply::Rollback(report) => report.state))
}

fn conclude(
    global: &Global,
    args: &JoinArgs,
    report: &mut Report,
    say: &mut dyn FnMut(&str) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let well = report.command.as_deref() == Some("exit status: 0");
    let root = safe(&report.root.display().to_string());
    if report.joined {
        if !well {
            report.warning = Some(
                "the command failed although this node is a member: a late step of the join did not come out well; \
                 see the Incus log"
                    .to_owned(),
            );
        }
        say(&format!("{root}: joined: its pools are guarded"))?;
        return report.warning.iter().try_for_each(|warning| say(&format!("warning: {warning}")));
    }
    say(&format!("{root}: not joined: the node is {}; its pools are sealed", report.state))?;
    match args.on_failure {
        OnFailure::Hold => say(&format!(
            "next: guardctl rollback --stop-incus --root {root}, then guardctl preflight, and join again"
        )),
        OnFailure::Rollback => {
            let node = Node::find(global, Some(&report.root))?;
            node::stop_incus(&node, say)?;
            let root = Some(report.root.to_string_lossy().into_owned());
            let done = rollback::carry_out(global, root, false, say)?;
            say(rollback::verdict(&done).trim_end())?;
            report.state.clone_from(&done.state);
            report.rollback = Some(done);
            Ok(())
        }
    }
}
