//! Waiting for a process: with a limit, a sign of life now and then, and an end by Ctrl-C.
//!
//! An operator's command never waits without these three. The caller reports the remains of a wait
//! that ends early.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::host::process::pidfd_open;

/// Interval between two signs of life.
pub const EVERY: Duration = Duration::from_secs(10);

/// Ctrl-C, SIGTERM and SIGHUP as a descriptor, while it lives: they no longer end this process.
/// Make it before any thread is started; children are not affected, since `Command` gives them an
/// empty signal mask.
#[derive(Debug)]
pub struct Interrupt {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Signals {
        descriptor: SignalFd,
        before: SigSet,
    },
    /// Readable: interrupted.
    Descriptor(OwnedFd),
}

impl Interrupt {
    /// Catches the signals of this thread.
    pub fn catch() -> io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let caught = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
        // Blocked, an ignored signal would come all the same: nohup(1) means that it does not.
        let signals: SigSet =
            caught.into_iter().filter(|signal| !is_ignored(&status, *signal)).collect();
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals), Some(&mut before))?;
        let descriptor = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { source: Source::Signals { descriptor, before } })
    }

    /// Interrupted as soon as a descriptor is readable.
    pub fn by(descriptor: OwnedFd) -> Self {
        Self { source: Source::Descriptor(descriptor) }
    }

    /// Whether a signal has come. It stays so.
    pub fn came(&self) -> bool {
        self.sleep(Duration::ZERO)
    }

    /// Waits for so long. Whether a signal has come meanwhile.
    pub fn sleep(&self, duration: Duration) -> bool {
        let end = Instant::now() + duration;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], timeout(left)) {
                Ok(0) if left.is_zero() => return false,
                Ok(0) | Err(Errno::EINTR) => {}
                // A descriptor that cannot be polled must not make a wait endless.
                Ok(_) | Err(_) => return true,
            }
        }
    }
}

/// By the mask in `/proc/PID/status`.
fn is_ignored(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal as i32 - 1)) != 0
}

impl AsFd for Interrupt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::Signals { descriptor, .. } => descriptor.as_fd(),
            Source::Descriptor(descriptor) => descriptor.as_fd(),
        }
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        if let Source::Signals { descriptor, before } = &self.source {
            // Signals that have come were answered; they must not end the process afterwards.
            while self.came() && matches!(descriptor.read_signal(), Ok(Some(_))) {}
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(before), None);
        }
    }
}

/// Limit of a wait, and the means to end it early.
#[derive(Clone, Copy, Debug)]
pub struct Patience<'a> {
    pub limit: Duration,
    /// Interval between two signs of life.
    pub every: Duration,
    pub interrupt: &'a Interrupt,
}

impl<'a> Patience<'a> {
    /// With a sign of life every ten seconds.
    pub fn new(limit: Duration, interrupt: &'a Interrupt) -> Self {
        Self { limit, every: EVERY, interrupt }
    }
}

/// Result of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    Ended,
    Overdue,
    Interrupted,
}

/// Waits until a descriptor is readable. `alive` gets the time that has passed.
pub fn until_readable(
    descriptor: BorrowedFd<'_>,
    patience: &Patience<'_>,
    alive: &mut dyn FnMut(Duration),
) -> io::Result<Waited> {
    let start = Instant::now();
    let mut next = patience.every;
    loop {
        let passed = start.elapsed();
        if passed >= patience.limit {
            return Ok(Waited::Overdue);
        }
        if passed >= next {
            alive(passed);
            next = passed + patience.every;
        }
        let mut descriptors = [
            PollFd::new(descriptor, PollFlags::POLLIN),
            PollFd::new(patience.interrupt.as_fd(), PollFlags::POLLIN),
        ];
        let left = next.min(patience.limit).saturating_sub(passed);
        match poll(&mut descriptors, timeout(left)) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |descriptor: &PollFd<'_>| descriptor.any().unwrap_or(true);
        if is_ready(&descriptors[0]) {
            return Ok(Waited::Ended);
        }
        if is_ready(&descriptors[1]) {
            return Ok(Waited::Interrupted);
        }
    }
}

/// Rounded up: a rest below a millisecond must not become a busy loop.
fn timeout(left: Duration) -> PollTimeout {
    let rounded = if left.is_zero() { left } else { left + Duration::from_millis(1) };
    PollTimeout::try_from(rounded).unwrap_or(PollTimeout::MAX)
}

/// Waits for a child. It is not ended when the wait ends early.
pub fn for_child(
    child: &mut Child,
    patience: &Patience<'_>,
    alive: &mut dyn FnMut(Duration),
) -> io::Result<Result<ExitStatus, Waited>> {
    // A child that was not waited for keeps its pid.
    let Some(process) = pidfd_open(child.id())? else { return Ok(Ok(child.wait()?)) };
    match until_readable(process.as_fd(), patience, alive)? {
        Waited::Ended => Ok(Ok(child.wait()?)),
        early => Ok(Err(early)),
    }
}

/// Output and status of a program that was run to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub status: ExitStatus,
    pub output: String,
    pub errors: String,
}

/// Runs a program that says little (a pipe holds 64 KiB), to its end. It is killed when the wait
/// ends early.
pub fn run(
    command: &mut Command,
    patience: &Patience<'_>,
    alive: &mut dyn FnMut(Duration),
) -> io::Result<Result<Said, Waited>> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let status = match for_child(&mut child, patience, alive)? {
        Ok(status) => status,
        Err(early) => {
            child.kill()?;
            child.wait()?;
            return Ok(Err(early));
        }
    };
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    if let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) {
        stdout.read_to_end(&mut output)?;
        stderr.read_to_end(&mut errors)?;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(Ok(Said { status, output: text(&output), errors: text(&errors) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn never() -> (Interrupt, std::io::PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        (Interrupt::by(reader.into()), writer)
    }

    fn hanging() -> Command {
        let mut command = Command::new("sleep");
        command.arg("1000");
        command
    }

    #[test]
    fn a_hanging_program_is_given_up_and_shows_signs_of_life() {
        let (interrupt, _writer) = never();
        let (limit, every) = (Duration::from_millis(200), Duration::from_millis(20));
        let mut lines = 0;
        let patience = Patience { limit, every, interrupt: &interrupt };
        let ended = run(&mut hanging(), &patience, &mut |_| lines += 1).unwrap();
        assert_eq!(ended, Err(Waited::Overdue));
        assert!(lines > 1, "{lines}");
    }

    #[test]
    fn an_interrupt_ends_the_wait_at_once() {
        let (interrupt, writer) = never();
        drop(writer);
        let patience = Patience::new(Duration::from_secs(1000), &interrupt);
        assert_eq!(run(&mut hanging(), &patience, &mut |_| {}).unwrap(), Err(Waited::Interrupted));
        assert!(interrupt.came() && interrupt.sleep(Duration::from_secs(1000)));
    }

    #[test]
    fn what_a_program_says_is_kept() {
        let (interrupt, _writer) = never();
        let patience = Patience::new(Duration::from_secs(1000), &interrupt);
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let said = run(&mut command, &patience, &mut |_| {}).unwrap().unwrap();
        assert_eq!((said.output.as_str(), said.errors.as_str()), ("out", "err"));
        assert_eq!(said.status.code(), Some(3));
        assert!(!interrupt.sleep(Duration::from_millis(1)));
    }

    #[test]
    fn ignored_signals_are_known() {
        // As below nohup(1).
        let status = "Name:\tguardctl\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000001\n";
        assert!(is_ignored(status, Signal::SIGHUP) && !is_ignored(status, Signal::SIGINT));
        assert!(!is_ignored("", Signal::SIGINT));
    }

    #[test]
    fn a_signal_is_caught_and_does_not_end_the_process() {
        let interrupt = Interrupt::catch().unwrap();
        assert!(!interrupt.came());
        // raise(3) is for this thread alone: others have the default action, which ends the test
        // program. (SIGINT is ignored below a shell's `&`, and SIGHUP below nohup.)
        nix::sys::signal::raise(Signal::SIGTERM).unwrap();
        assert!(interrupt.came());
        drop(interrupt);
        assert!(!Interrupt::catch().unwrap().came());
    }
}
