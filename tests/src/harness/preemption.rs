//! Preemption of kernel code on this machine.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::machine;
use super::mount::Mount;

const DEBUGFS: &str = "/sys/kernel/debug";
const CHOICE: &str = "/sys/kernel/debug/sched/preempt";

/// A kernel that preempts its own code at any instruction. Debian's does so only if it is told.
/// Dropped, this restores the earlier state.
#[derive(Debug)]
pub struct Full {
    before: String,
    _debugfs: Option<Mount>,
}

impl Full {
    pub fn switch_on() -> Result<Self> {
        let is_there = Path::new(CHOICE).exists();
        let debugfs = if is_there {
            None
        } else {
            Some(Mount::new("debugfs", "debugfs", DEBUGFS, "mode=700")?)
        };
        // Like `none (voluntary) full`.
        let choices = fs::read_to_string(CHOICE).with_context(|| format!("read {CHOICE}"))?;
        let before =
            choices.split(['(', ')']).nth(1).with_context(|| format!("{CHOICE} says {choices}"))?;
        fs::write(CHOICE, "full").with_context(|| format!("write to {CHOICE}"))?;
        Ok(Self { before: before.to_owned(), _debugfs: debugfs })
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        // Best effort: the machine goes with its tests.
        let _ = fs::write(CHOICE, &self.before);
    }
}

/// Whether the kernel runs a program on a processor where a task is preempted in the middle of it.
/// Else the program is left out, which passes what it would have denied (posture
/// `decisions-skipped`): in the tier `fmod-ret`, and before Linux 6.2 in `bpf-lsm` too.
pub fn programs_may_nest() -> Result<bool> {
    Ok(machine::tier()? == "bpf-lsm" && machine::kernel()? != "6.1")
}
