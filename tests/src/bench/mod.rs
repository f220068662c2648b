//! What a deletion costs with us, with nothing, and with what a user would pick instead, in one run.
//!
//! Runs in a VM with `-icount shift=0`: its clock advances one nanosecond an instruction, so that every
//! time is a count of instructions. Two kinds: what the kernel's statistics say of each BPF program (with
//! what that measuring costs, which the empty programs show), and the CPU time of a thread that deletes. Of a case that
//! can be repeated three runs are made, and the lowest figures stand: what else the machine did meanwhile only adds.
//! Work in other threads, like that of whoever reads the events, is in neither.
//!
//! The table is printed for people; `cargo xtask bench` reads the line that ends it.

mod agent;
mod growth;
mod measure;
mod peers;
mod results;
mod unlink;

use anyhow::{Context as _, Result};

use results::Results;

/// Runs all of it.
pub fn run() -> Result<()> {
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime).context("enable BPF statistics")?;
    let mut results = Results::new();
    let grounds = unlink::Grounds::new()?;
    grounds.without_us(&mut results)?;
    let guarded = grounds.with_us(&mut results)?;
    growth::run(&guarded, &mut results)?;
    drop(guarded);
    agent::run(&mut results)?;
    grounds.audited(&mut results)?;
    results.print();
    Ok(())
}
