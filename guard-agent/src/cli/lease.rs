//! `guardctl lease`: the running leases, and their early end.

use std::io::Write;

use super::error::CliError;
use super::global::{Global, expect_reply, write_json};
use super::text;
use super::text::{duration, safe, time};
use crate::model::audit::record::LeaseKind;
use crate::model::control::report::LeaseReport;
use crate::model::control::{Reply, Request};
use crate::model::exit::Exit;

#[derive(Debug, clap::Subcommand)]
pub enum LeaseCommand {
    /// All running leases.
    List,
    /// End a lease now.
    Revoke {
        /// The lease's id, as `guardctl lease list` shows it.
        id: String,
    },
}

/// Lists or revokes.
pub fn run(
    global: &Global,
    command: &LeaseCommand,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    match command {
        LeaseCommand::List => list(global, out),
        LeaseCommand::Revoke { id } => revoke(global, id, out),
    }
}

fn list(global: &Global, out: &mut impl Write) -> Result<Exit, CliError> {
    let leases = expect_reply!(global, Request::Leases, Reply::Leases(leases) => leases);
    if global.json {
        write_json(out, &leases)?;
    } else if leases.is_empty() {
        writeln!(out, "no leases")?;
    } else {
        out.write_all(render(&leases).as_bytes())?;
    }
    Ok(Exit::Ok)
}

fn revoke(global: &Global, id: &str, out: &mut impl Write) -> Result<Exit, CliError> {
    let request = Request::LeaseRevoke { id: id.to_owned() };
    let lease = expect_reply!(global, request, Reply::LeaseRevoked(lease) => lease);
    if global.json {
        write_json(out, &lease)?;
    } else {
        writeln!(out, "lease {} on pool {} is revoked", safe(&lease.id), safe(&lease.pool))?;
    }
    Ok(Exit::Ok)
}

/// The leases as a table, each with its reason below it; empty if there are none.
pub fn render(leases: &[LeaseReport]) -> String {
    if leases.is_empty() {
        return String::new();
    }
    let heading = ["ID", "POOL", "KIND", "LEFT", "ENDS", "UID", "LOGIN"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(leases.iter().map(|lease| {
        vec![
            safe(&lease.id),
            safe(&lease.pool),
            kind_name(lease.kind).to_owned(),
            duration(lease.remaining_seconds),
            time(lease.ends),
            lease.uid.to_string(),
            lease.login_uid.map_or("-".to_owned(), |uid| uid.to_string()),
        ]
    }));
    let aligned = text::table("  ", &rows);
    let mut lines = aligned.lines();
    let mut shown = format!("{}\n", lines.next().unwrap_or_default());
    for (line, lease) in lines.zip(leases) {
        shown += &format!("{line}\n{}", text::wrap("    reason: ", 6, &safe(&lease.reason)));
    }
    shown
}

fn kind_name(kind: LeaseKind) -> &'static str {
    match kind {
        LeaseKind::Release => "release",
        LeaseKind::Command => "command",
    }
}
