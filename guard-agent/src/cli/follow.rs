//! A rollback that the agent carries out, followed: its steps, a sign of life now and then, a
//! limit, and an end by Ctrl-C that leaves it to the agent.

use std::path::Path;
use std::time::{Duration, Instant};

use super::error::{CliError, NodeError};
use super::global::Global;
use super::stop::Say;
use super::text::safe;
use crate::cli::client::ClientError;
use crate::host::wait::Interrupt;
use crate::model::control::report::RollbackReport;
use crate::model::control::{RefusalReport, Reply, Request};
use crate::model::exit::Exit;
use crate::model::rollback::Allowed;

/// Interval between requests for the rollback's progress.
const REDRAW_EVERY: Duration = Duration::from_millis(200);
/// Longest time until the agent notices that Incus was stopped.
const NOTICED: Duration = Duration::from_secs(15);
/// Longest absence of an agent that is restarted during the rollback.
const ABSENCE: Duration = Duration::from_secs(60);

/// Has the agent roll back, and follows that.
pub struct Follow<'a> {
    pub global: &'a Global,
    pub interrupt: &'a Interrupt,
    pub limit: Duration,
    /// Interval between two signs of life.
    pub every: Duration,
    /// Incus has just been stopped, which the agent notices a moment later.
    pub stopped: bool,
}

impl Follow<'_> {
    /// Asks for a rollback and follows it to its end.
    pub fn carry_out(
        &self,
        root: &Path,
        allowed: Allowed,
        say: &mut Say<'_>,
    ) -> Result<RollbackReport, CliError> {
        let start = Instant::now();
        let mut report = self.begin(root, allowed)?;
        let root = report.root.clone();
        let (mut shown, mut waited, mut told) = (0, false, start);
        loop {
            // An agent that was restarted begins its list anew.
            shown = shown.min(report.steps.len());
            for step in &report.steps[shown..] {
                let pool = step.pool.as_deref();
                let pool =
                    pool.map_or_else(|| "Incus's own".to_owned(), |pool| format!("pool {pool}"));
                say(&format!("{}: {}", safe(&pool), safe(&step.to_string())))?;
                told = Instant::now();
            }
            shown = report.steps.len();
            if report.waiting_for > 0 && !waited {
                waited = true;
                let count = report.waiting_for;
                say(&format!(
                    "{count} superblocks are unmounted everywhere; waiting for their end"
                ))?;
            }
            if !report.running {
                return Ok(report);
            }
            let (passed, limit) = (start.elapsed(), self.limit);
            if passed >= limit {
                return Err(
                    NodeError::Overdue { what: "the rollback", limit, next: next(&root) }.into()
                );
            }
            if told.elapsed() >= self.every {
                told = Instant::now();
                let (passed, limit) = (passed.as_secs(), limit.as_secs());
                say(&format!(
                    "rolling back: {passed} s of at most {limit} s (Ctrl-C: the agent goes on)"
                ))?;
            }
            if self.interrupt.sleep(REDRAW_EVERY) {
                let doing = "following the rollback";
                return Err(NodeError::Interrupted { doing, next: next(&root) }.into());
            }
            report = self.status(&root)?;
        }
    }

    fn begin(&self, root: &Path, allowed: Allowed) -> Result<RollbackReport, CliError> {
        let Allowed { lazy, force } = allowed;
        let end = Instant::now() + NOTICED;
        let root = root.to_string_lossy().into_owned();
        let request = Request::Rollback { root: Some(root), lazy, force };
        loop {
            let reply = self.global.ask(&request);
            let still_runs = |refusal: &RefusalReport| refusal.code == "daemon-runs";
            match reply {
                Ok(Reply::Rollback(report)) => return Ok(*report),
                Ok(_) => return Err(ClientError::OtherAnswer { request: request.name() }.into()),
                Err(CliError::Client(ClientError::Refused(refusal)))
                    if self.stopped && still_runs(&refusal) && Instant::now() < end =>
                {
                    if self.interrupt.sleep(REDRAW_EVERY) {
                        let (doing, next) =
                            ("asking for the rollback", "run the same command again");
                        return Err(NodeError::Interrupted { doing, next: next.to_owned() }.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks how it goes; an agent that is just being restarted is waited for, since it goes on by
    /// itself.
    fn status(&self, root: &str) -> Result<RollbackReport, CliError> {
        let end = Instant::now() + ABSENCE;
        loop {
            let request = Request::RollbackStatus { root: Some(root.to_owned()) };
            let name = request.name();
            match self.global.ask(&request) {
                Ok(Reply::Rollback(report)) => return Ok(*report),
                Ok(_) => return Err(ClientError::OtherAnswer { request: name }.into()),
                Err(CliError::Client(error))
                    if error.exit() == Exit::Unreachable && Instant::now() < end =>
                {
                    if self.interrupt.sleep(REDRAW_EVERY) {
                        let doing = "waiting for the agent";
                        return Err(NodeError::Interrupted { doing, next: next(root) }.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn next(root: &str) -> String {
    format!(
        "the agent goes on with it, and Incus is kept from starting where that was said above: \
         guardctl rollback --root {root} follows it"
    )
}
