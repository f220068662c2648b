//! `guardctl seal` and `guardctl unseal`: denies every deletion in a pool, and takes that back.

use std::io::Write;

use guard_common::Mode;

use super::error::CliError;
use super::global::{Global, expect_reply, write_json};
use super::text::safe;
use crate::model::audit::record::ModeCause;
use crate::model::control::report::PoolReport;
use crate::model::control::{Reply, Request};
use crate::model::exit::Exit;

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

/// Takes an operator's seal back: the pool returns to the mode that it has without.
pub fn unseal(global: &Global, args: &SealArgs, out: &mut impl Write) -> Result<Exit, CliError> {
    let request = Request::Unseal { pool: args.pool.clone() };
    let pool = expect_reply!(global, request, Reply::Unsealed(pool) => pool);
    if global.json {
        write_json(out, &pool)?;
    } else {
        writeln!(out, "pool {} is {}", safe(&pool.name), pool.mode)?;
        if let Some(why) = still_sealed(&pool) {
            writeln!(out, "{why}")?;
        }
    }
    Ok(Exit::Ok)
}

/// Why a pool is sealed that no operator seals any more.
fn still_sealed(pool: &PoolReport) -> Option<String> {
    let root = safe(pool.root.as_deref().unwrap_or("(unknown)"));
    match pool.mode_cause? {
        _ if pool.mode.0 != Mode::Sealed => None,
        ModeCause::Join => Some(format!(
            "the operator's seal is gone; the state of the node {root} keeps it sealed until \
             evidence or a rollback changes that\n  why: guardctl history --root {root}\n  after a \
             failed join: guardctl rollback --root {root}\n  for a while all the same: guardctl \
             release {} --reason TEXT",
            safe(&pool.name)
        )),
        ModeCause::Policy => {
            Some(format!("the policy of the root {root} seals it: mode = \"sealed\""))
        }
        ModeCause::Operator | ModeCause::Expiry => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::control::report::{AnsweredBy, PoolCountersReport};
    use crate::model::events::Name;

    #[test]
    fn an_unseal_that_leaves_a_pool_sealed_says_why() {
        let pool = |mode, mode_cause| PoolReport {
            name: "shared".to_owned(),
            pool_id: String::new(),
            device: String::new(),
            filesystem: String::new(),
            source: String::new(),
            mountpoints: Vec::new(),
            root: Some("/var/lib/incus".to_owned()),
            mode: Name(mode),
            mode_cause: Some(mode_cause),
            generation: 1,
            release_ends: None,
            remaining_seconds: None,
            counters: PoolCountersReport::default(),
            answered_by: AnsweredBy::Agent,
        };
        let why = still_sealed(&pool(Mode::Sealed, ModeCause::Join)).unwrap();
        assert!(why.contains("guardctl history --root /var/lib/incus"), "{why}");
        assert!(why.contains("guardctl rollback --root /var/lib/incus"), "{why}");
        assert!(why.contains("guardctl release shared --reason"), "{why}");
        assert!(still_sealed(&pool(Mode::Sealed, ModeCause::Policy)).unwrap().contains("policy"));
        assert_eq!(still_sealed(&pool(Mode::Guarded, ModeCause::Join)), None);
    }
}
