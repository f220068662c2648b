//! Runs the fault lab in a VM. The faults are package `guard-tests`' business (`guard-tests lab`),
//! but for one that comes from outside: now and then the whole VM stands still.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;

use crate::kernel::Kernel;
use crate::test::guest;
use crate::vm;
use crate::{build, setup};

#[derive(Args)]
pub(crate) struct Arguments {
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Kernel,
    /// How long faults are injected
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Chooses the faults and what is random about them; without it, the clock does
    #[arg(long)]
    seed: Option<u64>,
    /// Only this fault; may be given several times
    #[arg(long, value_name = "FAULT")]
    only: Vec<String>,
}

/// The command `cargo xtask lab`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    /// For the boot, the first start, and the last fault to be over.
    const BESIDE: Duration = Duration::from_secs(600);
    const SUSPEND_EVERY: Duration = Duration::from_secs(20);
    setup::ensure(&setup::Use::WITHOUT_INCUS, &[arguments.kernel])?;
    let binaries = build::for_tests()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = arguments.seed.unwrap_or(now.as_secs());
    let only: String =
        arguments.only.iter().map(|name| format!(" --only {}", vm::quoted(name))).collect();
    let command = format!("lab --seconds {} --seed {seed}{only}", arguments.seconds);
    let mut boot = guest::machine(arguments.kernel, &binaries, &command);
    boot.limit = Some(Duration::from_secs(arguments.seconds) + BESIDE);
    boot.suspend_every = Some(SUSPEND_EVERY);
    eprintln!("xtask: booting a VM, seed {seed} …");
    vm::show(&boot)
}
