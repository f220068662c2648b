//! The child process in which everything happens that may block or that needs a process with one
//! thread: this program again, under a hidden command.
//!
//! An unmount of a filesystem whose servers are gone blocks in the kernel and cannot be
//! interrupted; setns(2) into a mount namespace needs a process with one thread; and the tables of
//! a process that is stuck in the kernel may block their readers. So each is done by a child with a
//! limit of time, which is given up, not waited for, when that is over.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use thiserror::Error;

use super::holders;
use crate::host::fanotify::responder;
use crate::host::mount_table;
use crate::model::exit::Exit;
use crate::model::rollback::holder::{Holder, Wanted};
use crate::model::rollback::report::UnmountOutcome;

/// The child's task. It answers with one JSON value on standard output.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum HelperCommand {
    /// Unmounts one mount, if it still is what it was when that was decided.
    Unmount(UnmountArgs),
    /// Finds the processes that use superblocks, which are given as JSON on standard input.
    Holders,
    /// Answers who opens a directory of a pool.
    Answer(responder::AnswerArgs),
}

/// Which mount.
#[derive(Clone, Debug, clap::Args)]
pub struct UnmountArgs {
    #[arg(long)]
    pub mount_id: u32,
    /// `s_dev` in the kernel's encoding.
    #[arg(long)]
    pub dev: u32,
    /// Detach it also if it is busy.
    #[arg(long)]
    pub lazy: bool,
    /// Enter the mount namespace that standard input is.
    #[arg(long)]
    pub enter: bool,
    pub mountpoint: PathBuf,
}

/// The name of the hidden command in both programs.
pub const NAME: &str = "helper";

/// The child's side.
pub fn run(command: &HelperCommand) -> Exit {
    let answer = match command {
        HelperCommand::Answer(args) => return answer(args),
        HelperCommand::Unmount(args) => serde_json::to_string(&unmount(args)),
        HelperCommand::Holders => serde_json::to_string(&find_holders()),
    };
    // Nobody is left to be told of a failure to write.
    let written = answer.is_ok_and(|answer| io::stdout().write_all(answer.as_bytes()).is_ok());
    if written { Exit::Ok } else { Exit::Failure }
}

fn answer(args: &responder::AnswerArgs) -> Exit {
    match responder::run(args) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            tracing::error!(error = crate::model::errors::chain(&error), "the responder ends");
            Exit::Failure
        }
    }
}

fn find_holders() -> Result<Vec<Holder>, String> {
    let wanted: Vec<Wanted> =
        serde_json::from_reader(io::stdin().lock()).map_err(|error| error.to_string())?;
    holders::find(Path::new("/proc"), Path::new("/sys"), &wanted)
        .map_err(|error| crate::model::errors::chain(&error))
}

fn unmount(args: &UnmountArgs) -> UnmountOutcome {
    let failed =
        |what: &str, error: io::Error| UnmountOutcome::Failed { error: format!("{what}: {error}") };
    // Opened before: the other namespace's /proc, if it has one, need not know this process.
    let proc = match File::open("/proc") {
        Ok(proc) => proc,
        Err(error) => return failed("open /proc", error),
    };
    if args.enter
        && let Err(error) = setns(io::stdin().as_fd(), CloneFlags::CLONE_NEWNS)
    {
        return failed("enter the mount namespace", error.into());
    }
    match check(&proc, args) {
        Ok(None) => {}
        Ok(Some(outcome)) => return outcome,
        Err(error) => return failed("read the mount table", error),
    }
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    flags.set(MntFlags::MNT_DETACH, args.lazy);
    match umount2(&args.mountpoint, flags) {
        Ok(()) => UnmountOutcome::Unmounted,
        Err(Errno::EBUSY) => UnmountOutcome::Busy,
        Err(Errno::EINVAL | Errno::ENOENT) => match check(&proc, args) {
            Ok(Some(outcome)) => outcome,
            Ok(None) => UnmountOutcome::Locked,
            Err(error) => failed("read the mount table", error),
        },
        Err(error) => failed("umount", error.into()),
    }
}

/// Nothing if the mount is where it was and on top there.
fn check(proc: &File, args: &UnmountArgs) -> io::Result<Option<UnmountOutcome>> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let table = openat(proc.as_fd(), "self/mountinfo", flags, Mode::empty())?;
    let snapshot = mount_table::read(&File::from(table))?;
    let is_it = |entry: &&crate::model::mounts::MountEntry| {
        entry.dev() == args.dev && entry.mountpoint == args.mountpoint
    };
    let Some(entry) = snapshot.mount(args.mount_id).filter(is_it) else {
        return Ok(Some(UnmountOutcome::Gone));
    };
    let on_it = snapshot.entries().iter().find(|other| other.parent_id == entry.mount_id);
    let on_top = on_it.or_else(|| snapshot.mount_of(&args.mountpoint));
    Ok(on_top
        .filter(|top| top.mount_id != args.mount_id)
        .map(|top| UnmountOutcome::Covered { by: top.mountpoint.to_string_lossy().into_owned() }))
}

/// The child had no answer.
#[derive(Debug, Error)]
pub enum HelperError {
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("start {program}")]
    Start {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("talk to the helper process")]
    Talk(#[source] io::Error),
    #[error("{message}")]
    Program { message: String },
    #[error("the helper process ended without an answer")]
    Answer(#[source] serde_json::Error),
}

/// The parent's side: the program to run.
#[derive(Clone, Debug)]
pub struct Helper {
    program: PathBuf,
}

impl Helper {
    /// This program again: also after an upgrade has replaced its file.
    pub fn this_program() -> Self {
        Self { program: PathBuf::from("/proc/self/exe") }
    }

    /// Another one that knows the hidden command.
    pub fn of(program: PathBuf) -> Self {
        Self { program }
    }

    /// Unmounts one mount: in the mount namespace given, or in that of this process.
    pub fn unmount(
        &self,
        args: &UnmountArgs,
        namespace: Option<File>,
        limit: Duration,
    ) -> Result<UnmountOutcome, HelperError> {
        let mut arguments: Vec<OsString> = vec!["unmount".into()];
        arguments.extend(["--mount-id".into(), args.mount_id.to_string().into()]);
        arguments.extend(["--dev".into(), args.dev.to_string().into()]);
        arguments.extend(args.lazy.then(|| "--lazy".into()));
        arguments.extend(namespace.is_some().then(|| "--enter".into()));
        arguments.extend(["--".into(), args.mountpoint.clone().into_os_string()]);
        let stdin = namespace.map_or_else(Stdio::null, Stdio::from);
        self.ask(&arguments, stdin, None, limit)
    }

    /// Finds the users of superblocks.
    pub fn holders(
        &self,
        wanted: &[Wanted],
        limit: Duration,
    ) -> Result<Result<Vec<Holder>, String>, HelperError> {
        let input = serde_json::to_vec(wanted).map_err(HelperError::Answer)?;
        self.ask(&["holders".into()], Stdio::piped(), Some(&input), limit)
    }

    fn ask<T: serde::de::DeserializeOwned>(
        &self,
        arguments: &[OsString],
        stdin: Stdio,
        input: Option<&[u8]>,
        limit: Duration,
    ) -> Result<T, HelperError> {
        let mut command = Command::new(&self.program);
        command.arg(NAME).args(arguments).env_clear().current_dir("/");
        let started = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = started
            .map_err(|source| HelperError::Start { program: self.program.clone(), source })?;
        let answer = talk(&mut child, input, limit);
        if input.is_some() && answer.is_err() {
            // It only reads. (An unmount goes on: half of it is no better than all of it.)
            let _ = child.kill();
        }
        // One that is stuck in the kernel cannot even be killed; it is reaped when it ends.
        std::thread::spawn(move || child.wait());
        serde_json::from_slice(&answer?).map_err(HelperError::Answer)
    }
}

/// Output of any program, within a limit; an error if it ends with one. It is killed when it takes
/// longer.
pub fn ask_program(
    program: &str,
    arguments: &[&str],
    limit: Duration,
) -> Result<Vec<u8>, HelperError> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|source| HelperError::Start { program: PathBuf::from(program), source })?;
    let answer = talk(&mut child, None, limit);
    if answer.is_err() {
        let _ = child.kill();
    }
    let output = child.wait_with_output().map_err(HelperError::Talk)?;
    if !output.status.success() && answer.is_ok() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(HelperError::Program { message });
    }
    answer
}

/// Writes the input, and reads until the child closes its output.
fn talk(child: &mut Child, input: Option<&[u8]>, limit: Duration) -> Result<Vec<u8>, HelperError> {
    let end = Instant::now() + limit;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input).map_err(HelperError::Talk)?;
    }
    let Some(mut stdout) = child.stdout.take() else { return Ok(Vec::new()) };
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let ready = match poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)], wait) {
            Err(Errno::EINTR) => continue,
            ready => ready.map_err(|error| HelperError::Talk(error.into()))?,
        };
        if ready == 0 {
            return Err(HelperError::TimedOut(limit));
        }
        match stdout.read(&mut chunk) {
            Ok(0) => return Ok(answer),
            Ok(length) => answer.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(HelperError::Talk(error)),
        }
    }
}
