//! Runs the demonstration in the VM with a real Ceph cluster beside it and Incus in it; or,
//! `--native`, the small one on this very machine. The content is package `guard-tests`' business
//! (`guard-tests demo`, `guard-tests native`); this boots or makes namespaces, streams, and passes
//! the status on.

use std::io::{self, IsTerminal as _};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::kernel::Kernel;
use crate::test::guest;
use crate::vm;
use crate::{build, setup};

#[derive(Args)]
pub(crate) struct Arguments {
    /// On this machine, without a VM: as root, in mount and process namespaces that end with it, on
    /// a tmpfs
    #[arg(long)]
    native: bool,
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Kernel,
}

/// The command `cargo xtask demo`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.native {
        return native();
    }
    setup::ensure(&setup::Use::WITH_INCUS, &[arguments.kernel])?;
    let binaries = build::for_tests()?;
    let mut boot = guest::machine(arguments.kernel, &binaries, "demo");
    boot.ceph = true;
    boot.environment.push(guest::incus()?);
    if io::stdout().is_terminal() {
        boot.environment.push(("GUARD_DEMO_COLOUR".to_owned(), "1".to_owned()));
    }
    eprintln!("xtask: booting a VM with a Ceph cluster of its own …");
    vm::show(&boot)
}

/// A mount namespace, so that nothing is mounted on the host; a process namespace, so that every
/// process ends with it and the agent takes this namespace for the host's.
const NAMESPACES: &[&str] = &[
    "--mount",
    "--propagation",
    "private",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--",
];

fn native() -> Result<ExitCode> {
    if !setup::is_root()? {
        bail!(
            "the native demonstration makes mounts and asks the kernel to refuse things: run it as \
             root"
        );
    }
    let binaries = build::for_this_machine()?;
    let mut command = Command::new("unshare");
    command.args(NAMESPACES).arg(binaries.join("guard-tests")).arg("native");
    command
        .env("GUARD_AGENT", binaries.join("guard-agent"))
        .env("GUARDCTL", binaries.join("guardctl"));
    if io::stdout().is_terminal() {
        command.env("GUARD_DEMO_COLOUR", "1");
    }
    let status = command.status().context("start unshare (package util-linux)")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
