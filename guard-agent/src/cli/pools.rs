//! `guardctl pools`: the pools and their modes.

use std::io::Write;

use super::text::{duration, safe};
use super::{CliError, Global, expect_reply, text, write_json};
use crate::audit::record::ModeCause;
use crate::control::report::PoolReport;
use crate::control::{Reply, Request};
use crate::exit::Exit;

/// Shows the pools.
pub fn run(global: &Global, out: &mut impl Write) -> Result<Exit, CliError> {
    let pools = expect_reply!(global, Request::Pools, Reply::Pools(pools) => pools);
    if global.json {
        write_json(out, &pools)?;
    } else if pools.is_empty() {
        writeln!(out, "no pools")?;
    } else {
        out.write_all(render(&pools).as_bytes())?;
    }
    Ok(Exit::Ok)
}

/// The pools as a table, each with its place below it; empty if there are none.
pub fn render(pools: &[PoolReport]) -> String {
    let heading = ["NAME", "MODE", "BY", "DENIED", "ALLOWED", "WOULD-DENY"];
    let rows = pools.iter().map(row).collect();
    let places =
        pools.iter().map(|pool| place(&pool.filesystem, &pool.device, &pool.pool_id, &pool.mountpoints));
    table(&heading, rows, places)
}

/// Rows below a heading, each with the pool's place in a line of its own; empty if there are none.
pub(super) fn table(
    heading: &[&str],
    mut rows: Vec<Vec<String>>,
    places: impl Iterator<Item = String>,
) -> String {
    if rows.is_empty() {
        return String::new();
    }
    rows.insert(0, heading.iter().map(|title| (*title).to_owned()).collect());
    let aligned = text::table("  ", &rows);
    let mut lines = aligned.lines();
    let mut shown = format!("{}\n", lines.next().unwrap_or_default());
    for (line, place) in lines.zip(places) {
        shown += &format!("{line}\n{}", text::wrap("    ", 6, &place));
    }
    shown
}

fn row(pool: &PoolReport) -> Vec<String> {
    vec![
        safe(&pool.name),
        mode(&pool.mode.to_string(), pool.remaining_seconds),
        cause_name(pool.mode_cause).to_owned(),
        pool.counters.denied.to_string(),
        pool.counters.allowed.to_string(),
        pool.counters.would_deny.to_string(),
    ]
}

/// A mode, and for how long it lasts.
pub(super) fn mode(name: &str, remaining_seconds: Option<u64>) -> String {
    match remaining_seconds {
        Some(seconds) => format!("{name} ({} left)", duration(seconds)),
        None => name.to_owned(),
    }
}

/// What a pool is and where, in a line.
pub(super) fn place(filesystem: &str, device: &str, id: &str, mountpoints: &[String]) -> String {
    let mounted = match mountpoints {
        [] => "detached".to_owned(),
        mountpoints => {
            let safe: Vec<String> = mountpoints.iter().map(|path| safe(path)).collect();
            format!("at {}", safe.join(" "))
        }
    };
    format!("{} {}, id {}, {mounted}", safe(filesystem), safe(device), safe(id))
}

/// Who or what set a mode, in a word.
pub fn cause_name(cause: ModeCause) -> &'static str {
    match cause {
        ModeCause::Policy => "policy",
        ModeCause::Operator => "operator",
        ModeCause::Expiry => "expiry",
        ModeCause::Join => "join",
    }
}
