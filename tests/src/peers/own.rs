//! Processes that tests run beside themselves: this program again, under a hidden command.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use nix::errno::Errno;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::disguise;

/// The task of a peer.
#[derive(Clone, Debug, Subcommand)]
pub enum Peer {
    /// Unlinks one file so often; ends well if every time was denied
    Unlink { file: PathBuf, times: u64 },
    /// Makes one file and unlinks it, so often; ends well if it was never denied
    Replace { file: PathBuf, times: u64 },
    /// Answers like an Incus daemon, as it is told on standard input
    Incusd { socket: PathBuf },
    /// Reads the kernel's audit, with a rule about deletions, until standard input ends
    Auditd,
    /// Makes the system calls that it is told on standard input, a socket
    Obey,
    /// Takes another program's file for its executable, then unlinks
    Disguise { by: disguise::By, executable: PathBuf, file: PathBuf },
}

impl Peer {
    pub fn run(&self) -> ExitCode {
        let result = match self {
            Self::Unlink { file, times } => unlink(file, *times),
            Self::Replace { file, times } => replace(file, *times),
            Self::Incusd { socket } => super::incusd::serve(socket),
            Self::Auditd => super::auditd::serve(),
            Self::Obey => super::obedient::obey(),
            Self::Disguise { by, executable, file } => disguise::disguise(*by, executable, file),
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("peer: {error:#}");
                ExitCode::FAILURE
            }
        }
    }
}

fn unlink(file: &Path, times: u64) -> Result<()> {
    let directory = file.parent().context("no directory")?;
    let directory =
        File::open(directory).with_context(|| format!("open {}", directory.display()))?;
    let name = file.file_name().context("no name")?;
    for number in 0..times {
        let outcome = unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir);
        ensure!(outcome == Err(Errno::EPERM), "attempt {number} was not denied: {outcome:?}");
    }
    Ok(())
}

fn replace(file: &Path, times: u64) -> Result<()> {
    for number in 0..times {
        File::create(file).with_context(|| format!("make {}", file.display()))?;
        let deleted = fs::remove_file(file);
        deleted.with_context(|| {
            format!("deletion {number} of {}, which had to pass", file.display())
        })?;
    }
    Ok(())
}

/// A running peer. It is killed when dropped.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Unlinks `file` again and again; ends with an error when one attempt is not denied.
    pub fn unlinking(file: &Path, times: u64) -> Result<Self> {
        let program = std::env::current_exe().context("where is this program?")?;
        Self::unlinking_by(&program, file, times)
    }

    /// The same by a copy of this program.
    pub fn unlinking_by(program: &Path, file: &Path, times: u64) -> Result<Self> {
        Self::start(program, "unlink", file, times)
    }

    /// A copy of this program that makes `file` and unlinks it again and again; ends with an error
    /// when it is denied.
    pub fn replacing_by(program: &Path, file: &Path, times: u64) -> Result<Self> {
        Self::start(program, "replace", file, times)
    }

    fn start(program: &Path, what: &str, file: &Path, times: u64) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(["peer", what]).arg(file).arg(times.to_string()).stdin(Stdio::null());
        Ok(Self(command.spawn().context("start a peer")?))
    }

    /// `rm -rf` of everything in a directory, again and again.
    pub fn removing(directory: &Path) -> Result<Self> {
        let script = "while :; do rm -rf \"$1\" 2>/dev/null; done";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(directory).stdin(Stdio::null());
        Ok(Self(command.spawn().context("start sh")?))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Fails if it has ended.
    pub fn must_run(&mut self) -> Result<()> {
        let ended = self.0.try_wait().context("wait for a peer")?;
        ensure!(ended.is_none(), "a peer has ended: {ended:?}");
        Ok(())
    }

    /// Waits for its end, which must be a good one.
    pub fn must_end_well(mut self) -> Result<()> {
        let status = self.0.wait().context("wait for a peer")?;
        ensure!(status.success(), "a peer ended with {status}");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
