//! Facts about this host that need no agent: from pins, the mount table and files.
//!
//! It reads only. No map is written, no file made or moved, no pool touched (not even by `stat`),
//! and nothing is waited for: a dead server or a stopped agent must not delay an operator who asks
//! for the host's protection. It cannot prove anything: `report` lists the known facts, and those
//! that only an agent could know.

pub mod command;
mod files;
mod pins;
mod places;
mod report;
mod silence;

pub use places::Places;
pub(crate) use places::Why;
pub use report::{
    Counters, InForce, Known, LastPosture, Load, NodeOnFile, OfflinePosture, OfflineReport,
    Responder, Unknown,
};
pub use silence::{Cause, Silence, agent_pid, is_stopped};

use crate::host::clock;
use crate::model::control::report::{AnsweredBy, PoolReport};

/// Everything that is known, for `status`.
pub fn report(places: &Places, silence: Silence) -> OfflineReport {
    let now = clock::read();
    let boot_id = files::boot_id();
    let mut unknown = Vec::new();
    let in_force = note(&mut unknown, "the programs in force", pins::in_force(places, &boot_id));
    let kernel = note(&mut unknown, "pools, modes and counters", pins::pools(places, now));
    let (pools, counters) =
        kernel.map_or((None, None), |(pools, counters)| (Some(pools), Some(counters)));
    let leases = note(&mut unknown, "leases", files::leases(places, &boot_id, now.1.boot_ns));
    let nodes = note(&mut unknown, "nodes", files::nodes(places));
    let log = note(&mut unknown, "the audit log", files::log(places)).unwrap_or_default();
    OfflineReport {
        answered_by: AnsweredBy::PinsAndFiles,
        time: now.1.time,
        posture: OfflinePosture::unproven(silence, log.posture),
        in_force,
        agent: log.agent,
        policy: log.policy,
        pools,
        leases,
        nodes,
        counters,
        events: log.last,
        unknown,
    }
}

/// The pools alone, for `pools`.
pub fn pools(places: &Places) -> Result<Vec<PoolReport>, Unknown> {
    let now = clock::read();
    pins::pools(places, now)
        .map(|(pools, _)| pools)
        .map_err(|why| Unknown::of("pools and their modes", &why))
}

/// The value, if it could be read; else the failure is noted.
fn note<T>(unknown: &mut Vec<Unknown>, what: &str, result: Result<T, Why>) -> Option<T> {
    result.map_err(|why| unknown.push(Unknown::of(what, &why))).ok()
}
