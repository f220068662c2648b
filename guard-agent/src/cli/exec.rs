//! `guardctl exec`: becomes a command that may delete in a pool, with its children.
//!
//! The command is the same process: its exit code, signals, terminal, descriptors and environment
//! are as if it had been run directly. The lease is granted to the cgroup that guardctl has entered
//! before (`own_cgroup`), and ends with the process.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::SigSet;
use nix::unistd::Uid;

use super::error::{CliError, ExecError};
use super::global::{Global, expect_reply, parse_duration};
use super::own_cgroup;
use crate::model::control::{Reply, Request};
use crate::model::exit::Exit;

/// Exit codes of a shell for a command that does not exist, and for one that cannot be run.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// Name, mountpoint, id or device of the pool.
    #[arg(long)]
    pub pool: String,
    /// Longest duration, such as 10m. Default: the policy's. The kernel ends it on time.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub ttl: Option<Duration>,
    /// The reason, which is written to the audit log.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// The command and its arguments, after `--`.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Becomes the command. Returns only if that fails; the lease then ends with guardctl.
pub fn run(global: &Global, args: &ExecArgs) -> Result<Exit, CliError> {
    let Some((program, arguments)) = args.command.split_first() else { return Ok(Exit::Ok) };
    // Others are refused by the agent, and need no cgroup for that.
    if Uid::effective().is_root() {
        own_cgroup::enter()?;
    }
    let request = Request::ExecLease {
        pool: args.pool.clone(),
        ttl_seconds: args.ttl.map(|ttl| ttl.as_secs()),
        reason: args.reason.clone(),
    };
    expect_reply!(global, request, Reply::ExecLeased { .. } => ());
    let source = become_command(program, arguments);
    let error = ExecError { program: program.into(), source };
    let code = match error.source.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        io::ErrorKind::PermissionDenied => NOT_EXECUTABLE,
        _ => return Err(error.into()),
    };
    eprintln!("guardctl: {}: {}", error.program.display(), error.source);
    std::process::exit(code)
}

fn become_command(program: &OsString, arguments: &[OsString]) -> io::Error {
    let mask = match SigSet::thread_get_mask() {
        Ok(mask) => mask,
        Err(error) => return error.into(),
    };
    let mut command = Command::new(program);
    command.args(arguments);
    own_cgroup::restore_environment(&mut command);
    // SAFETY: only sigprocmask, which is async-signal-safe, and nothing is allocated. Without it
    // the standard library would unblock every signal.
    unsafe {
        command.pre_exec(move || Ok(mask.thread_set_mask()?));
    }
    command.exec()
}
