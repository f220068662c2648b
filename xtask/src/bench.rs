//! Runs the benchmarks in a VM that counts instructions. What is measured is package `guard-tests`'
//! business (`guard-tests bench`); this boots, streams, and passes the status on.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::kernel::Kernel;
use crate::test::guest;
use crate::vm::{self, Boot};
use crate::{build, setup};

/// Longest time for all of it.
const LIMIT: Duration = Duration::from_secs(1500);

#[derive(Args)]
pub struct Arguments {
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Kernel,
}

/// The command `cargo xtask bench`.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&setup::Use::WITHOUT_INCUS, &[arguments.kernel])?;
    let binaries = build::for_tests()?;
    let mut boot =
        Boot::new(arguments.kernel, format!("exec {} bench", vm::quoted(&binaries.tests.to_string_lossy())));
    boot.icount = true;
    boot.limit = Some(LIMIT);
    boot.environment = guest::environment(&binaries, arguments.kernel, "icount");
    eprintln!("xtask: booting a VM with one CPU that counts instructions …");
    vm::show(&boot)
}
