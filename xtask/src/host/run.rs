//! Runs `guard-tests` beside real hosts: on this machine, in namespaces that hold nothing else and
//! that take every machine with them when it ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use super::{Incus, KERNELS, environment, kernel};
use crate::build::TestBinaries;
use crate::kernel::Kernel;
use crate::setup::{self, Use, Wanted};
use crate::{build, dist, workspace};

/// Arguments of `cargo xtask vm --host`.
#[derive(Debug)]
pub(crate) struct Shell {
    pub kernel: Kernel,
    pub incus: Incus,
    /// Handed to `guard-tests host` as they are.
    pub arguments: Vec<String>,
}

/// Everything that real hosts of these versions of Incus need.
pub(crate) fn ensure(incus: &[Incus]) -> Result<()> {
    setup::ensure_all(Wanted {
        uses: &[Use::Bpf, Use::Vm, Use::Host],
        kernels: &KERNELS,
        hosts: incus,
    })
}

/// Starts hosts, and runs a command or shows a shell on one.
pub(crate) fn shell(shell: &Shell) -> Result<ExitCode> {
    ensure(&[shell.incus])?;
    let tests = build::for_this_machine()?.join("guard-tests");
    let environment = environment(shell.incus, kernel(shell.kernel)?)?;
    let mut command = beside(&tests)?;
    command.arg("host").args(&shell.arguments).envs(environment);
    let status = command.status().context("start unshare (package util-linux)")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)))
}

/// A command line that begins with `guard-tests`, as the first process of new network and PID
/// namespaces.
pub(crate) fn beside(tests: &Path) -> Result<Command> {
    let mut command = Command::new("unshare");
    command.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    if !setup::is_root()? {
        command.arg("--map-root-user");
    }
    command.arg("--").arg(tests).current_dir(workspace::root());
    Ok(command)
}

/// Packages that tests install on hosts: the one that is shipped, and two later versions of it, one
/// with another agent, one whose maps have another layout; under the names that `guard-tests`
/// knows.
pub(crate) fn make_payload(binaries: &TestBinaries) -> Result<()> {
    let deb = dist::for_tests(&workspace::target().join("host-package"))?;
    let directory = workspace::fresh_directory(payload())?;
    let current = directory.join("guard-agent.deb");
    fs::copy(&deb, &current).with_context(|| format!("copy {}", deb.display()))?;
    for (name, agent, step) in [
        ("guard-agent-next.deb", &binaries.upgraded_agent, 2),
        ("guard-agent-next-layout.deb", &binaries.layout_agent, 3),
    ] {
        let version = format!("{}-{step}", dist::VERSION);
        dist::with_another_agent(&deb, agent, &version, &directory.join(name))?;
    }
    Ok(())
}

/// Directory of the payload.
pub(crate) fn payload() -> PathBuf {
    workspace::target().join("host-payload")
}
