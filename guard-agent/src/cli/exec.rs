//! `guardctl exec`: lets one command, and what it starts, delete in a pool.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

use super::{CliError, Global, expect_reply, parse_duration};
use crate::control::{ClientError, Reply, Request};
use crate::exit::Exit;

/// What a shell says of a command that is not there, and of one that cannot be run.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// Name, mountpoint, id or device of the pool.
    #[arg(long)]
    pub pool: String,
    /// How long at most, e.g. 10m; the policy's default if it is left out. The kernel ends it on time.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub ttl: Option<Duration>,
    /// Why; it is written to the audit log.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// The command and its arguments, after `--`.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// The command could not be run.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {what}")]
pub struct ExecError {
    operation: &'static str,
    what: PathBuf,
    #[source]
    source: io::Error,
}

impl ExecError {
    /// What to do about it.
    pub fn fix(&self) -> String {
        "run guardctl as root, in the host's own mount namespace; the lease that was granted for it is taken back"
            .to_owned()
    }
}

/// Runs the command. Ends this process with the command's own code, which is none of guardctl's.
pub fn run(global: &Global, args: &ExecArgs) -> Result<Exit, CliError> {
    let request = Request::ExecLease {
        pool: args.pool.clone(),
        ttl_seconds: args.ttl.map(|ttl| ttl.as_secs()),
        reason: args.reason.clone(),
    };
    let (lease, cgroup) =
        expect_reply!(global, request, Reply::ExecLeased { lease, cgroup } => (lease, cgroup));
    let ended = start_and_wait(Path::new(&cgroup), &args.command);
    let revoked = expect_revoked(global, lease.id);
    let code = ended?;
    if let Err(error) = revoked {
        // The agent ends it when the cgroup is empty; the command's code matters more.
        eprintln!("guardctl: the lease could not be taken back: {error}");
    }
    std::process::exit(code)
}

/// The agent may have been quicker.
fn expect_revoked(global: &Global, id: String) -> Result<(), CliError> {
    match global.ask(&Request::LeaseRevoke { id }) {
        Ok(_) => Ok(()),
        Err(CliError::Client(ClientError::Refused(refusal))) if refusal.code == "no-such-lease" => Ok(()),
        Err(error) => Err(error),
    }
}

fn start_and_wait(cgroup: &Path, command: &[OsString]) -> Result<i32, ExecError> {
    let procs = cgroup.join("cgroup.procs");
    let failed = |operation, what: &Path| {
        let what = what.to_owned();
        move |source| ExecError { operation, what, source }
    };
    let entrance = OpenOptions::new().write(true).open(&procs).map_err(failed("open", &procs))?;
    let Some((program, arguments)) = command.split_first() else { return Ok(0) };
    // Before it starts, so that no signal is lost in between.
    let (signals, mask) =
        signals().map_err(io::Error::from).map_err(failed("watch for signals to", Path::new(program)))?;
    let child = match spawn(program, arguments, entrance, mask) {
        Ok(child) => child,
        Err(error) => {
            let code = match error.kind() {
                io::ErrorKind::NotFound => NOT_FOUND,
                io::ErrorKind::PermissionDenied => NOT_EXECUTABLE,
                _ => return Err(failed("start", Path::new(program))(error)),
            };
            eprintln!("guardctl: {}: {error}", Path::new(program).display());
            return Ok(code);
        }
    };
    let status = wait(child, &signals).map_err(failed("wait for", Path::new(program)))?;
    Ok(status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1))
}

/// In the cgroup from its first instruction, and with the signal mask that guardctl was started with.
fn spawn(program: &OsString, arguments: &[OsString], entrance: File, mask: SigSet) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.args(arguments);
    // SAFETY: between fork and exec only write(2) to a descriptor that is open, and sigprocmask: both are
    // async-signal-safe, and nothing is allocated. `0` is whoever writes.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::write(&entrance, b"0")?;
            Ok(mask.thread_set_mask()?)
        });
    }
    command.spawn()
}

/// What is passed on to the command, and news of its end; and the mask from before.
fn signals() -> nix::Result<(SignalFd, SigSet)> {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        set.add(signal);
    }
    let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    Ok((SignalFd::new(&set)?, before))
}

fn wait(mut child: Child, signals: &SignalFd) -> io::Result<ExitStatus> {
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let Some(info) = signals.read_signal()? else { continue };
        let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed()) else { continue };
        // What the terminal sends, it sends to the command as well.
        if signal == Signal::SIGCHLD || info.ssi_code == libc::SI_KERNEL {
            continue;
        }
        // It may have ended meanwhile; it is not reaped, so the number is still its own.
        let _ = kill(pid, signal);
    }
}
