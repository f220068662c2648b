//! `guardctl pools`: the pools and their modes.

use std::io::Write;

use super::error::CliError;
use super::global::{Global, write_json};
use super::text;
use super::text::{duration, safe};
use crate::model::audit::record::ModeCause;
use crate::model::control::report::PoolReport;

/// The pools, from an agent or without one.
pub(super) fn show(
    global: &Global,
    pools: &[PoolReport],
    out: &mut impl Write,
) -> Result<(), CliError> {
    if global.json {
        write_json(out, &pools)?;
    } else if pools.is_empty() {
        writeln!(out, "no pools")?;
    } else {
        out.write_all(render(pools).as_bytes())?;
    }
    Ok(())
}

/// The pools as a table, each with its place below it; empty if there are none.
pub fn render(pools: &[PoolReport]) -> String {
    if pools.is_empty() {
        return String::new();
    }
    let heading = ["NAME", "MODE", "BY", "DENIED", "ALLOWED", "WOULD-DENY"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(pools.iter().map(row));
    let aligned = text::table("  ", &rows);
    let mut lines = aligned.lines();
    let mut shown = format!("{}\n", lines.next().unwrap_or_default());
    for (line, pool) in lines.zip(pools) {
        shown += &format!("{line}\n{}", text::wrap("    ", 6, &place(pool)));
    }
    shown
}

fn row(pool: &PoolReport) -> Vec<String> {
    let mode = match pool.remaining_seconds {
        Some(seconds) => format!("{} ({} left)", pool.mode, duration(seconds)),
        None => pool.mode.to_string(),
    };
    vec![
        safe(&pool.name),
        mode,
        pool.mode_cause.map_or("-", cause_name).to_owned(),
        pool.counters.denied.to_string(),
        pool.counters.allowed.to_string(),
        pool.counters.would_deny.to_string(),
    ]
}

/// Kind and place of a pool, in a line.
fn place(pool: &PoolReport) -> String {
    let mounted = match pool.mountpoints.as_slice() {
        [] => "detached".to_owned(),
        mountpoints => {
            let mountpoints: Vec<String> = mountpoints.iter().map(|path| safe(path)).collect();
            format!("at {}", mountpoints.join(" "))
        }
    };
    format!(
        "{} {}, id {}, {mounted}",
        safe(&pool.filesystem),
        safe(&pool.device),
        safe(&pool.pool_id)
    )
}

/// The cause of a mode, in a word.
pub fn cause_name(cause: ModeCause) -> &'static str {
    match cause {
        ModeCause::Policy => "policy",
        ModeCause::Operator => "operator",
        ModeCause::Expiry => "expiry",
        ModeCause::Join => "join",
    }
}
