//! Instructions per decision, beside an empty LSM program in the same run.
//!
//! Runs in a VM with `-icount shift=0`: its clock advances one nanosecond an instruction, so that the
//! kernel's own statistics of BPF programs (run time and run count) are counts of instructions. They
//! include what measuring costs; the empty program shows how much that is.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{Lsm, loaded_programs};
use aya::{Btf, Ebpf};

use crate::harness::agent::Installation;
use crate::harness::mount::Mount;

const FILES: usize = 2_000;
const ROOT: &str = "/var/lib/guard-bench";
const CGROUP: &str = "/sys/fs/cgroup/guard-bench";

/// Instructions a run and runs, by program.
type Measured = BTreeMap<String, (f64, u64)>;

/// Runs all cases and prints the table.
pub fn run() -> Result<()> {
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime).context("enable BPF statistics")?;
    let elsewhere = Mount::tmpfs(Path::new("/mnt/guard-bench"))?;
    fs::create_dir_all(format!("{ROOT}/pool")).context("create the guarded root")?;
    let pool = Mount::tmpfs(Path::new("/var/lib/guard-bench/pool"))?;

    let nothing = unlink_loop(elsewhere.path(), true)?;
    println!("{:<44} {:>14} {:>14} {:>12}", "case", "path_unlink", "inode_unlink", "whole unlink");
    row("no program", &Measured::new(), "", nothing);

    let mut empty = load_empty()?;
    let (measured, whole) = measure(|| unlink_loop(elsewhere.path(), true))?;
    row("empty programs", &measured, "empty", whole);
    detach(&mut empty);

    let installation = Installation::new("bench", &policy("ceph"))?;
    let began = Instant::now();
    let agent = installation.start()?;
    println!("start to enforcing: {} ms of the VM's clock", began.elapsed().as_millis());
    let (measured, whole) = measure(|| unlink_loop(elsewhere.path(), true))?;
    row("unprotected (kind of filesystem not guarded)", &measured, "guard", whole);

    installation.write_policy(&policy("tmpfs"))?;
    crate::harness::wait::until("the pool to be guarded", Duration::from_secs(60), || {
        Ok(fs::write(pool.path().join("probe"), "").is_ok()
            && fs::remove_file(pool.path().join("probe")).is_err())
    })?;
    let (measured, whole) = measure(|| unlink_loop(elsewhere.path(), true))?;
    row("unprotected (guarded kind, outside every root)", &measured, "guard", whole);

    fs::create_dir_all(CGROUP).context("create the actor's cgroup")?;
    let own = fs::read_to_string("/proc/self/cgroup").context("read the own cgroup")?;
    crate::harness::wait::until("the actor's cgroup to be known", Duration::from_secs(60), || {
        enter(CGROUP)?;
        let removed = fs::write(pool.path().join("probe"), "").is_ok()
            && fs::remove_file(pool.path().join("probe")).is_ok();
        Ok(removed)
    })?;
    let (measured, whole) = measure(|| unlink_loop(pool.path(), true))?;
    row("guarded, allowed as actor", &measured, "guard", whole);
    enter(&format!("/sys/fs/cgroup{}", own.trim().trim_start_matches("0::")))?;

    let (measured, whole) = measure(|| denied_loop(pool.path()))?;
    row("guarded, denied (8 records, then aggregated)", &measured, "guard", whole);
    println!("agent: {}", memory(agent.pid())?);
    for program in loaded_programs().flatten().filter(|program| name(program).starts_with("guard_")) {
        println!(
            "verified instructions: {} {}",
            name(&program),
            program.verified_instruction_count().unwrap_or_default()
        );
    }
    Ok(())
}

fn policy(filesystem: &str) -> String {
    format!(
        "version = 1\n[[root]]\npath = \"{ROOT}\"\nfilesystems = [\"{filesystem}\"]\nactors = [{{ cgroup = \"/guard-bench\" }}]\n"
    )
}

fn load_empty() -> Result<Ebpf> {
    let path = std::env::var("GUARD_EMPTY_OBJECT").context("GUARD_EMPTY_OBJECT names the empty programs")?;
    let mut ebpf = Ebpf::load_file(&path).with_context(|| format!("load {path}"))?;
    let btf = Btf::from_sys_fs()?;
    for hook in ["path_unlink", "inode_unlink"] {
        let program = ebpf.program_mut(&format!("empty_{hook}")).context("the empty program")?;
        let program: &mut Lsm = program.try_into()?;
        program.load(hook, &btf)?;
        program.attach()?;
    }
    Ok(ebpf)
}

fn detach(ebpf: &mut Ebpf) {
    for (_, program) in ebpf.programs_mut() {
        if let aya::programs::Program::Lsm(program) = program {
            // A program that stays attached shows up in the next rows.
            let _ = program.unload();
        }
    }
}

/// Runs a loop; returns what each program took a run, and what the loop took an unlink.
fn measure(work: impl FnOnce() -> Result<f64>) -> Result<(Measured, f64)> {
    let before = statistics();
    let whole = work()?;
    let after = statistics();
    let mut measured = Measured::new();
    for (name, (time, runs)) in after {
        let (time_before, runs_before) = before.get(&name).copied().unwrap_or_default();
        let runs = runs - runs_before;
        if runs > 0 {
            measured.insert(name, ((time - time_before) as f64 / runs as f64, runs));
        }
    }
    Ok((measured, whole))
}

fn name(program: &aya::programs::ProgramInfo) -> String {
    program.name_as_str().unwrap_or_default().to_owned()
}

/// Run time and run count by program; kernel names end after fifteen characters.
fn statistics() -> BTreeMap<String, (u64, u64)> {
    let programs = loaded_programs().flatten();
    programs
        .map(|program| (name(&program), (program.run_time().as_nanos() as u64, program.run_count())))
        .collect()
}

/// Creates files and unlinks them; instructions an unlink.
fn unlink_loop(directory: &Path, allowed: bool) -> Result<f64> {
    let files: Vec<_> = (0..FILES).map(|number| directory.join(format!("f{number}"))).collect();
    for file in &files {
        fs::write(file, "").with_context(|| format!("write {}", file.display()))?;
    }
    let began = Instant::now();
    let removed = files.iter().filter(|file| fs::remove_file(file).is_ok()).count();
    let took = began.elapsed();
    ensure!(removed == if allowed { FILES } else { 0 }, "{removed} of {FILES} files were removed");
    Ok(took.as_nanos() as f64 / FILES as f64)
}

fn denied_loop(directory: &Path) -> Result<f64> {
    unlink_loop(directory, false)
}

fn enter(cgroup: &str) -> Result<()> {
    let procs = Path::new(cgroup).join("cgroup.procs");
    fs::write(&procs, std::process::id().to_string()).with_context(|| format!("enter {cgroup}"))
}

fn memory(pid: impl std::fmt::Display) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(status
        .lines()
        .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"))
        .collect::<Vec<_>>()
        .join(", "))
}

fn row(case: &str, measured: &Measured, prefix: &str, whole: f64) {
    // The kernel cuts names: `guard_path_unli`, `empty_inode_unl`.
    let of = |hook: &str| {
        let wanted: String = format!("{prefix}_{hook}").chars().take(15).collect();
        measured.get(&wanted).map_or_else(|| "-".to_owned(), |(instructions, _)| format!("{instructions:.0}"))
    };
    println!("{case:<44} {:>14} {:>14} {whole:>12.0}", of("path_unlink"), of("inode_unlink"));
}
