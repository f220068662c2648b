//! `guardctl status`, `pools` and `events`: from the agent, or without one from its pins and files.

use std::io::Write;

use super::error::CliError;
use super::events::EventsArgs;
use super::global::{Global, write_json};
use super::{events, pools, status};
use crate::cli::client::ANSWER_TIMEOUT;
use crate::cli::client::ClientError;
use crate::cli::offline::Places;
use crate::cli::offline::command::{self as offline, Answer, Reached};
use crate::model::audit::Filter;
use crate::model::control::{Reply, Request};
use crate::model::exit::Exit;

/// Shows the status; the exit code is the posture's.
pub(super) fn status(
    global: &Global,
    places: &Places,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let report = match offline::ask(global, places, &Request::Status)? {
        Answer::Agent(Reply::Status(report)) => report,
        Answer::Agent(_) => {
            return Err(ClientError::OtherAnswer { request: Request::Status.name() }.into());
        }
        Answer::Silence(silence) => return offline::status(global, places, silence, out),
    };
    if global.json {
        write_json(out, &report)?;
    } else {
        out.write_all(status::render(&report).as_bytes())?;
    }
    Ok(status::exit(report.posture.posture.state))
}

/// Shows the pools.
pub(super) fn pools(
    global: &Global,
    places: &Places,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    match offline::ask(global, places, &Request::Pools)? {
        Answer::Agent(Reply::Pools(report)) => {
            pools::show(global, &report, out)?;
            Ok(Exit::Ok)
        }
        Answer::Agent(_) => Err(ClientError::OtherAnswer { request: Request::Pools.name() }.into()),
        Answer::Silence(silence) => offline::pools(global, places, &silence, out),
    }
}

/// Shows events until there are no more; followed, until the agent or the reader ends it.
pub(super) fn events(
    global: &Global,
    args: &EventsArgs,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let filter = Filter { pool: args.pool.clone(), kind: args.kind, since: args.since };
    // Searching the log may take long; whether there is an agent that answers must not.
    let mut client = match offline::reach(global, &args.places)? {
        Reached::Agent(client) => client,
        Reached::Silence(silence) => return offline::events(global, args, filter, &silence, out),
    };
    client.wait_at_most(Some(global.timeout.unwrap_or(ANSWER_TIMEOUT)))?;
    let request = Request::Events { follow: args.follow, history: args.lines, filter };
    let lines = match client.request(&request)? {
        Reply::Events { lines, .. } => lines,
        _ => return Err(ClientError::OtherAnswer { request: request.name() }.into()),
    };
    let mut shown = 0;
    while args.follow || shown < lines {
        if shown == lines {
            out.flush()?;
            client.wait_at_most(None)?;
        }
        let Some(line) = client.line()? else { return Err(ClientError::Closed.into()) };
        let line = if global.json { line } else { events::render_line(&line) };
        writeln!(out, "{line}")?;
        shown += 1;
        if shown > lines {
            out.flush()?;
        }
    }
    Ok(Exit::Ok)
}
