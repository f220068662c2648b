//! `guardctl release`: lets everyone delete in a pool, for a while and for a reason.

use std::io::Write;
use std::time::Duration;

use super::error::CliError;
use super::global::parse_duration;
use super::global::{Global, expect_reply, write_json};
use super::text::{duration, safe, time};
use crate::model::control::{Reply, Request};
use crate::model::exit::Exit;

#[derive(Debug, clap::Args)]
pub struct ReleaseArgs {
    /// Name, mountpoint, id or device of the pool.
    pub pool: String,
    /// Duration, such as 10m or 1h30m. Default: the policy's. The kernel ends it on time.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub ttl: Option<Duration>,
    /// The reason, which is written to the audit log.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
}

/// Releases a pool.
pub fn run(global: &Global, args: &ReleaseArgs, out: &mut impl Write) -> Result<Exit, CliError> {
    let request = Request::Release {
        pool: args.pool.clone(),
        ttl_seconds: args.ttl.map(|ttl| ttl.as_secs()),
        reason: args.reason.clone(),
    };
    let lease = expect_reply!(global, request, Reply::Released(lease) => lease);
    if global.json {
        write_json(out, &lease)?;
    } else {
        let (pool, id) = (safe(&lease.pool), safe(&lease.id));
        let (left, ends) = (duration(lease.remaining_seconds), time(lease.ends));
        writeln!(out, "pool {pool} is released for {left}, until {ends} (lease {id})")?;
        writeln!(out, "everyone can delete in it now; to end it: guardctl lease revoke {id}")?;
    }
    Ok(Exit::Ok)
}
