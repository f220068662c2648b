//! Cost of the agent itself.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use guard_common::Mode;

use super::measure::{cpu_time, cpu_time_of};
use super::results::Results;
use super::unlink::LOADED_LIMIT;
use crate::harness::agent::{Agent, Installation};
use crate::harness::mount::Mount;
use crate::harness::wait;

const ROOT: &str = "/var/lib/guard-bench-agent";
const DENIALS: usize = 100_000;
/// Denials that are recorded each. The ring buffer holds them all.
const RECORDED: usize = 300;

/// Runs all of it.
pub(super) fn run(results: &mut Results) -> Result<()> {
    fs::create_dir_all(ROOT).context("create a guarded root")?;
    let installation = Installation::new("bench-agent", &policy("guarded", 8))?;
    let began = Instant::now();
    let agent = installation.start()?;
    results.agent("start to enforcing", milliseconds(began.elapsed()), "ms");
    results.agent("idle VmRSS", memory(&agent, "VmRSS")?, "MiB");
    results.agent("VmHWM after the start", memory(&agent, "VmHWM")?, "MiB");

    let maps = installation.maps()?;
    let known = || -> Result<Vec<u32>> {
        let entries = maps.pools.entries()?;
        Ok(entries
            .into_iter()
            .filter(|(_, entry)| entry.magic == TMPFS)
            .map(|(_, entry)| entry.mode)
            .collect())
    };
    let began = Instant::now();
    let pool = Mount::tmpfs(Path::new(ROOT).join("pool"))?;
    wait::until("the mount is classified", LOADED_LIMIT, || Ok(!known()?.is_empty()))?;
    results.agent("mount to classified", milliseconds(began.elapsed()), "ms");
    let began = Instant::now();
    installation.write_policy(&policy("sealed", RECORDED as u32))?;
    wait::until("the new policy is in force", LOADED_LIMIT, || {
        Ok(known()? == [Mode::Sealed as u32])
    })?;
    results.agent("policy edit to in force", milliseconds(began.elapsed()), "ms");

    let file = pool.path().join("file");
    fs::write(&file, "").context("write a file")?;
    let lines = || -> Result<usize> {
        let records = installation.audit_records()?;
        Ok(records.iter().filter(|record| record["kind"] == "decision").count())
    };
    let (before, busy) = (lines()?, cpu_time_of(agent.pid())?);
    deny(&file, RECORDED)?;
    wait::until("the denials are in the audit log", LOADED_LIMIT, || {
        Ok(lines()? >= before + RECORDED)
    })?;
    let spent = cpu_time_of(agent.pid())? - busy;
    results.agent(
        "CPU for a record in the audit log",
        spent.as_secs_f64() * 1e6 / RECORDED as f64,
        "µs",
    );
    results.agent("records a second of one CPU", RECORDED as f64 / spent.as_secs_f64(), "");

    let (deleter, busy) = (cpu_time(), cpu_time_of(agent.pid())?);
    deny(&file, DENIALS)?;
    let deleters = cpu_time() - deleter;
    // It reports denials that it has only counted in the incident's next line.
    let all = (RECORDED + DENIALS) as u64;
    wait::until("the agent has counted them", LOADED_LIMIT, || Ok(counted(&installation)? >= all))?;
    let agents = cpu_time_of(agent.pid())? - busy;
    let million = 1e6 / DENIALS as f64;
    results.agent("CPU for a million denials", agents.as_secs_f64() * million * 1e3, "ms");
    results.agent(
        "the same beside the deleter's own",
        100.0 * agents.as_secs_f64() / deleters.as_secs_f64(),
        "%",
    );
    results.agent("VmRSS under load", memory(&agent, "VmRSS")?, "MiB");
    Ok(())
}

const TMPFS: u64 = 0x0102_1994;

fn policy(mode: &str, full_records: u32) -> String {
    format!(
        "version = 1\n[audit]\nfull_records = {full_records}\nincident_interval = \
         \"1s\"\n[[root]]\npath = \"{ROOT}\"\nfilesystems = [\"tmpfs\"]\nmode = \"{mode}\"\n"
    )
}

fn deny(file: &Path, times: usize) -> Result<()> {
    let denied = (0..times).filter(|_| fs::remove_file(file).is_err()).count();
    ensure!(denied == times, "{denied} of {times} deletions were denied");
    Ok(())
}

/// Denials of this process that the audit log tells of.
fn counted(installation: &Installation) -> Result<u64> {
    let records = installation.audit_records()?;
    let incidents = records
        .iter()
        .filter(|record| record["kind"] == "incident")
        .map(|record| &record["incident"]);
    let own = incidents.filter(|incident| incident["tgid"] == std::process::id());
    Ok(own.filter_map(|incident| incident["count"].as_u64()).max().unwrap_or_default())
}

fn memory(agent: &Agent, line: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let value = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let kilobytes = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kilobytes.with_context(|| format!("no {line}"))? / 1024.0)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
