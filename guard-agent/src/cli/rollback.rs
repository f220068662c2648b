//! `guardctl rollback`: has the agent unmount what a failed join has left, shows how that goes, and what remains.

use std::io::Write;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::node::{self, Node};
use super::text::safe;
use super::{CliError, Global, expect_reply, write_json};
use crate::control::report::RollbackReport;
use crate::control::{ClientError, Reply, Request};
use crate::exit::Exit;
use crate::rollback::{Remaining, RollbackOutcome};

#[derive(Debug, clap::Args)]
pub struct RollbackArgs {
    /// The node's guarded root; may be left out if there is only one node.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Detach what is busy: it is gone from the tree at once, and from the kernel with its last user.
    #[arg(long)]
    pub lazy: bool,
    /// Stop Incus first. It must not run: it would mount its pools again.
    #[arg(long)]
    pub stop_incus: bool,
}

/// How often the agent is asked how it goes.
const BEAT: Duration = Duration::from_millis(200);
/// How long an agent that was restarted in the middle of it may be away.
const ABSENCE: Duration = Duration::from_secs(60);

/// Rolls back.
pub fn run(global: &Global, args: &RollbackArgs, out: &mut impl Write) -> Result<Exit, CliError> {
    let root = args.root.as_deref().map(|root| root.to_string_lossy().into_owned());
    if args.stop_incus {
        let node = Node::find(global, args.root.as_deref())?;
        node::stop_incus(&node, &mut |line| if global.json { Ok(()) } else { Ok(writeln!(out, "{line}")?) })?;
    }
    let mut say = |line: &str| if global.json { Ok(()) } else { Ok(writeln!(out, "{line}")?) };
    let report = carry_out(global, root, args.lazy, &mut say)?;
    if global.json {
        write_json(out, &report)?;
    } else {
        out.write_all(verdict(&report).as_bytes())?;
    }
    Ok(if is_released(&report) { Exit::Ok } else { Exit::Failure })
}

/// Asks for a rollback and follows it to its end.
pub fn carry_out(
    global: &Global,
    root: Option<String>,
    lazy: bool,
    say: &mut dyn FnMut(&str) -> Result<(), CliError>,
) -> Result<RollbackReport, CliError> {
    let request = Request::Rollback { root, lazy };
    let mut report = expect_reply!(global, request, Reply::Rollback(report) => *report);
    let root = Some(report.root.clone());
    let (mut shown, mut waited) = (0, false);
    loop {
        // An agent that was restarted begins its list anew.
        shown = shown.min(report.steps.len());
        for step in &report.steps[shown..] {
            let pool =
                step.pool.as_deref().map_or_else(|| "Incus's own".to_owned(), |pool| format!("pool {pool}"));
            say(&format!("{}: {}", safe(&pool), safe(&step.to_string())))?;
        }
        shown = report.steps.len();
        if report.waiting_for > 0 && !waited {
            waited = true;
            say(&format!(
                "{} superblocks are unmounted everywhere; waiting for their end",
                report.waiting_for
            ))?;
        }
        if !report.running {
            return Ok(report);
        }
        sleep(BEAT);
        report = status(global, &root)?;
    }
}

/// Asks how it goes; an agent that is just being restarted is waited for, since it goes on by itself.
fn status(global: &Global, root: &Option<String>) -> Result<RollbackReport, CliError> {
    let end = Instant::now() + ABSENCE;
    loop {
        let request = Request::RollbackStatus { root: root.clone() };
        let name = request.name();
        match global.ask(&request) {
            Ok(Reply::Rollback(report)) => return Ok(*report),
            Ok(_) => return Err(ClientError::OtherAnswer { request: name }.into()),
            Err(CliError::Client(error)) if error.exit() == Exit::Unreachable && Instant::now() < end => {
                sleep(BEAT);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether nothing is left, as kernel and state machine say.
pub fn is_released(report: &RollbackReport) -> bool {
    // An agent that has gone on with it from the journal alone knows no outcome if it was over by then.
    let ended = report.outcome.as_ref().map(RollbackOutcome::is_complete);
    !report.running && ended.unwrap_or(report.state == "released")
}

/// How it ended.
pub fn verdict(report: &RollbackReport) -> String {
    let root = safe(&report.root);
    let Some(outcome) = &report.outcome else {
        return format!("{root}: no rollback has run; the node is {}\n", report.state);
    };
    let mut text = String::new();
    if outcome.is_complete() {
        text.push_str(&format!("{root}: every superblock is gone; the node is {}\n", report.state));
    } else {
        let count = outcome.remaining.len();
        text.push_str(&format!("{root}: {count} superblocks remain, sealed; the node is {}\n", report.state));
    }
    for problem in &outcome.problems {
        text.push_str(&format!("  problem: {}\n", safe(problem)));
    }
    for remaining in &outcome.remaining {
        text.push_str(&remains(remaining));
    }
    text
}

fn remains(remaining: &Remaining) -> String {
    let mut text = format!("  pool {} (device {})\n", safe(&remaining.pool), remaining.device);
    for place in &remaining.mounts {
        text.push_str(&format!("    mounted: {}\n", safe(&place.to_string())));
    }
    for obstacle in &remaining.obstacles {
        text.push_str(&format!("    in the way: {}\n", safe(obstacle)));
    }
    for holder in &remaining.holders {
        let via: Vec<String> = holder.via.iter().map(ToString::to_string).collect();
        let command = safe(&holder.command);
        text.push_str(&format!(
            "    held by: {command} (process {}): {}\n",
            holder.pid,
            safe(&via.join(", "))
        ));
    }
    text.push_str(&format!("    fix: {}\n", safe(&remaining.fix)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollback::{Holder, MountPlace, StepReport, UnmountOutcome, Via};

    fn report(outcome: Option<RollbackOutcome>) -> RollbackReport {
        let place =
            MountPlace { namespace: 1, in_host: true, pid: 1, mountpoint: "/var/lib/incus/p".to_owned() };
        let step =
            StepReport { place, pool: Some("p".to_owned()), lazy: false, outcome: UnmountOutcome::Busy };
        RollbackReport {
            root: "/var/lib/incus".to_owned(),
            state: "join-failed".to_owned(),
            running: false,
            lazy: false,
            steps: vec![step],
            waiting_for: 0,
            outcome,
        }
    }

    #[test]
    fn what_remains_is_told_with_who_holds_it_and_what_to_do() {
        let holder = Holder {
            generation: 7,
            pid: 42,
            command: "vi\u{1b}".to_owned(),
            via: vec![Via::WorkingDirectory { path: "/var/lib/incus/p".to_owned() }],
        };
        let remaining = Remaining {
            pool: "p".to_owned(),
            generation: 7,
            device: "0:43".to_owned(),
            mounts: vec![MountPlace {
                namespace: 9,
                in_host: false,
                pid: 77,
                mountpoint: "/data".to_owned(),
            }],
            obstacles: Vec::new(),
            holders: vec![holder],
            fix: "end process 42".to_owned(),
        };
        let outcome = RollbackOutcome { steps: Vec::new(), remaining: vec![remaining], problems: Vec::new() };
        let report = report(Some(outcome));
        let text = verdict(&report);
        for part in
            ["1 superblocks remain", "/data in mount namespace 9 (of process 77)", "process 42", "fix: end"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('\u{1b}'));
        assert!(!is_released(&report));
    }

    #[test]
    fn a_complete_one_is_a_release() {
        assert!(is_released(&report(Some(RollbackOutcome::default()))));
        assert!(!is_released(&report(None)));
    }
}
