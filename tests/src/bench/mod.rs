//! Cost of a deletion with us in each tier, with nothing, and with the tools that a user would pick
//! instead, in one run.
//!
//! Runs in a VM with `-icount shift=0`: its clock advances one nanosecond an instruction, so that
//! every time is a count of instructions. Two kinds: the kernel's statistics of each BPF program
//! (with the cost of measuring, which the empty programs show), and the CPU time of a thread that
//! deletes. Of a case that can be repeated three runs are made, and the lowest figures stand: the
//! machine's other work only adds. Work in other threads, like that of readers of the events, is in
//! neither.
//!
//! The tier `bpf-lsm` is measured in every way, as "guard: …". `fmod-ret` has the same programs,
//! and the same cases as "guard, fmod-ret: …", after the others are unloaded. `fanotify` has none
//! and asks about no unlink; its cost is in listing a pool's directory, beside which stands the
//! cost of the answering process meanwhile: the listing process waits for it.
//!
//! The table is printed for people; `cargo xtask bench` reads the line that ends it.

mod agent;
mod growth;
mod measure;
mod peers;
mod results;
mod unlink;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use guard_common::Tier;

use results::Results;

/// A part of the benchmarks. `cargo xtask bench` knows the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Nothing, other watchers, and the tier bpf-lsm
    Unlink,
    /// Growth with pools, actors, depth and threads
    Growth,
    /// The agent's own figures
    Agent,
    /// The tier fmod-ret
    FmodRet,
    /// The tier fanotify
    Fanotify,
    /// The kernel's audit
    Audit,
}

/// Runs the named parts, or all of them if none is named.
pub fn run(only: &[Part]) -> Result<()> {
    let wants = |part| only.is_empty() || only.contains(&part);
    let _statistics =
        aya::sys::enable_stats(aya::sys::Stats::RunTime).context("enable BPF statistics")?;
    let mut results = Results::new();
    let grounds = unlink::Grounds::new()?;
    if wants(Part::Unlink) {
        grounds.without_us(&mut results)?;
        grounds.with_us(Tier::BpfLsm, &mut results)?;
    }
    if wants(Part::Growth) {
        growth::run(&grounds.guarded()?, &mut results)?;
    }
    if wants(Part::Agent) {
        agent::run(&mut results)?;
    }
    if wants(Part::FmodRet) {
        grounds.with_us(Tier::FmodRet, &mut results)?;
    }
    if wants(Part::Fanotify) {
        grounds.without_programs(&mut results)?;
    }
    if wants(Part::Audit) {
        grounds.audited(&mut results)?;
    }
    results.print();
    Ok(())
}
