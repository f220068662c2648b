//! `guardctl seal` and `guardctl unseal`: denies every deletion in a pool, and takes that back.

use std::io::Write;

use super::text::safe;
use super::{CliError, Global, expect_reply, write_json};
use crate::control::{Reply, Request};
use crate::exit::Exit;

#[derive(Debug, clap::Args)]
pub struct SealArgs {
    /// Name, mountpoint, id or device of the pool.
    pub pool: String,
}

/// Seals a pool.
pub fn run(global: &Global, args: &SealArgs, out: &mut impl Write) -> Result<Exit, CliError> {
    let request = Request::Seal { pool: args.pool.clone() };
    let pool = expect_reply!(global, request, Reply::Sealed(pool) => pool);
    if global.json {
        write_json(out, &pool)?;
    } else {
        writeln!(out, "pool {} is {}", safe(&pool.name), pool.mode)?;
    }
    Ok(Exit::Ok)
}

/// Returns a pool to the mode that policy gives it.
pub fn unseal(global: &Global, args: &SealArgs, out: &mut impl Write) -> Result<Exit, CliError> {
    let request = Request::Unseal { pool: args.pool.clone() };
    let pool = expect_reply!(global, request, Reply::Unsealed(pool) => pool);
    if global.json {
        write_json(out, &pool)?;
    } else {
        writeln!(out, "pool {} is {}", safe(&pool.name), pool.mode)?;
    }
    Ok(Exit::Ok)
}
