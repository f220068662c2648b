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

/// The pools as a table; empty if there are none.
pub fn render(pools: &[PoolReport]) -> String {
    if pools.is_empty() {
        return String::new();
    }
    let heading =
        ["NAME", "MODE", "BY", "FILESYSTEM", "DEVICE", "DENIED", "ALLOWED", "WOULD-DENY", "ID", "MOUNTED AT"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(pools.iter().map(row));
    text::table("  ", &rows)
}

fn row(pool: &PoolReport) -> Vec<String> {
    let mode = match pool.remaining_seconds {
        Some(seconds) => format!("{} ({} left)", pool.mode, duration(seconds)),
        None => pool.mode.to_string(),
    };
    let mounted = match pool.mountpoints.as_slice() {
        [] => "(detached)".to_owned(),
        mountpoints => mountpoints.iter().map(|path| safe(path)).collect::<Vec<_>>().join(" "),
    };
    vec![
        safe(&pool.name),
        mode,
        cause_name(pool.mode_cause).to_owned(),
        safe(&pool.filesystem),
        safe(&pool.device),
        pool.counters.denied.to_string(),
        pool.counters.allowed.to_string(),
        pool.counters.would_deny.to_string(),
        safe(&pool.pool_id),
        mounted,
    ]
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
