//! What a deletion costs with us in each tier, with nothing, and with what a user would pick instead, in one run.
//!
//! Runs in a VM with `-icount shift=0`: its clock advances one nanosecond an instruction, so that every
//! time is a count of instructions. Two kinds: what the kernel's statistics say of each BPF program (with
//! what that measuring costs, which the empty programs show), and the CPU time of a thread that deletes. Of a case that
//! can be repeated three runs are made, and the lowest figures stand: what else the machine did meanwhile only adds.
//! Work in other threads, like that of whoever reads the events, is in neither.
//!
//! The tier `bpf-lsm` is measured in every way, as "guard: …". `fmod-ret` has the same programs, and the same cases
//! as "guard, fmod-ret: …", after the others are unloaded. `fanotify` has none and asks about no unlink; what it
//! costs is in listing a pool's directory, beside which stands what the process that answers has taken meanwhile:
//! who lists waits for it.
//!
//! The table is printed for people; `cargo xtask bench` reads the line that ends it.

mod agent;
mod growth;
mod measure;
mod peers;
mod results;
mod unlink;

use anyhow::{Context as _, Result};
use guard_common::Tier;

use results::Results;

/// Runs all of it.
pub fn run() -> Result<()> {
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime).context("enable BPF statistics")?;
    let mut results = Results::new();
    let grounds = unlink::Grounds::new()?;
    grounds.without_us(&mut results)?;
    let guarded = grounds.with_us(Tier::BpfLsm, &mut results)?;
    growth::run(&guarded, &mut results)?;
    drop(guarded);
    agent::run(&mut results)?;
    drop(grounds.with_us(Tier::FmodRet, &mut results)?);
    grounds.without_programs(&mut results)?;
    grounds.audited(&mut results)?;
    results.print();
    Ok(())
}
