//! Description by `cargo xtask test` of the machine that it booted.

use std::env;

use anyhow::{Context as _, Result};

/// The kernel that was asked for, e.g. `6.12`.
pub fn kernel() -> Result<String> {
    env::var("GUARD_KERNEL")
        .context("GUARD_KERNEL is not set: start the suites by `cargo xtask test`")
}

/// The strongest tier that its kernel can have: `bpf-lsm`, or `fmod-ret` where `bpf` is not in the
/// list of active LSMs.
pub fn tier() -> Result<String> {
    env::var("GUARD_TIER").context("GUARD_TIER is not set: start the suites by `cargo xtask test`")
}
