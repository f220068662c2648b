//! Runs the demonstration in the VM with a real Ceph cluster beside it and Incus in it. What is shown is package
//! `guard-tests`' business (`guard-tests demo`); this boots, streams, and passes the status on.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::kernel::Kernel;
use crate::test::guest;
use crate::vm::{self, Boot};
use crate::{build, setup};

#[derive(Args)]
pub struct Arguments {
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Kernel,
}

/// The command `cargo xtask demo`.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&setup::Use::WITH_INCUS, &[arguments.kernel])?;
    let binaries = build::for_tests()?;
    let mut boot =
        Boot::new(arguments.kernel, format!("exec {} demo", vm::quoted(&binaries.tests.to_string_lossy())));
    boot.ceph = true;
    boot.environment = guest::environment(&binaries, arguments.kernel, "default");
    boot.environment.push(guest::incus()?);
    if io::stdout().is_terminal() {
        boot.environment.push(("GUARD_DEMO_COLOUR".to_owned(), "1".to_owned()));
    }
    eprintln!("xtask: booting a VM with a Ceph cluster of its own …");
    vm::show(&boot)
}
