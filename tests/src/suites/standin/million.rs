//! A recursive deleter that does not give up: everything is counted, little is written.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::unistd::{SysconfVar, sysconf};
use serde_json::Value;

use crate::harness::attempt::{rm_is_denied, rm_passes};
use crate::harness::guarded::{Guarded, populate};
use crate::harness::mount::Mount;
use crate::harness::registry::Test;
use crate::peers::own::Running;

pub(super) const TESTS: &[Test] =
    &[Test::new("million_denied_unlinks_reconcile_and_stay_small", million).within_seconds(600)];

const TIMES: u64 = 1_000_000;
/// Memory that an idle agent may hold, in KiB.
const IDLE_MEMORY: u64 = 16 * 1024;

fn reconciled(ground: &Guarded) -> Result<[u64; 4]> {
    let status = ground.status()?;
    let number =
        |name: &str| status["reconciled"][name].as_u64().with_context(|| format!("no {name}"));
    Ok([number("decisions")?, number("emitted")?, number("aggregated")?, number("lost")?])
}

/// CPU ticks of a process so far: user and system.
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let field = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok());
    field(11).zip(field(12)).map(|(user, system)| user + system).context("no times in stat")
}

/// CPU ticks of the children that have been waited for: the deleter, not the agent.
fn ticks_of_ended_children() -> Result<u64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?;
    let microseconds = (usage.user_time() + usage.system_time()).num_microseconds();
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
    Ok(u64::try_from(microseconds * per_second / 1_000_000)?)
}

fn million() -> Result<()> {
    let ground = Guarded::new("million", "[audit]\nfull_records = 8\nincident_interval = \"1s\"")?;
    let agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let (idle_memory, idle_ticks) = (agent.memory_kib()?, ticks(agent.pid())?);
    ensure!(idle_memory <= IDLE_MEMORY, "an idle agent holds {idle_memory} KiB");
    let before = reconciled(&ground)?;
    let before_deleting = ticks_of_ended_children()?;
    let start = Instant::now();
    let peer = Running::unlinking(&pool.path().join("file0"), TIMES)?;
    let pid = peer.pid();
    peer.must_end_well()?;
    let took = start.elapsed();
    let deleters_ticks = ticks_of_ended_children()? - before_deleting;

    let incident = ground.wait_for_record("the incident's end", |record| {
        let incident = &record["incident"];
        record["kind"] == "incident" && incident["tgid"] == pid && incident["ended"] == true
    })?["incident"]
        .clone();
    let after = reconciled(&ground)?;
    let [decisions, emitted, aggregated, lost] =
        std::array::from_fn(|index| after[index] - before[index]);
    ensure!(decisions == TIMES, "{decisions} of {TIMES} decisions were counted");
    ensure!(
        emitted + aggregated + lost == TIMES,
        "{emitted} + {aggregated} + {lost} is not {TIMES}"
    );
    let told = |name: &str| incident[name].as_u64().unwrap_or(u64::MAX);
    let counts = [told("count"), told("emitted"), told("aggregated"), told("lost")];
    ensure!(counts == [TIMES, emitted, aggregated, lost], "the incident tells {counts:?}");
    let records = ground.installation.audit_records()?;
    let of_peer =
        |record: &&Value| record["kind"] == "decision" && record["decision"]["tgid"] == pid;
    let shown = records.iter().filter(of_peer).count() as u64;
    ensure!(shown == emitted && shown == 8, "{emitted} were emitted, {shown} are in the audit log");
    let size = fs::metadata(ground.installation.audit())?.len();
    ensure!(size < 1_000_000, "the audit log has {size} bytes");
    ensure!(took > Duration::ZERO && pool.path().join("file0").exists(), "the file is gone");
    println!(
        "note: {TIMES} denied unlinks in {took:.1?}: {emitted} emitted, {aggregated} aggregated, \
         {lost} lost; audit log {size} bytes; agent VmRSS {idle_memory} KiB before, {} KiB after, \
         {} CPU ticks meanwhile beside {deleters_ticks} of the deleter",
        agent.memory_kib()?,
        ticks(agent.pid())? - idle_ticks
    );
    let elsewhere = Mount::tmpfs("/var/lib/guard-standin-million")?;
    populate(elsewhere.path())?;
    rm_passes(&elsewhere.path().join("volume"))?;
    rm_is_denied(&pool.path().join("file0"))
}
