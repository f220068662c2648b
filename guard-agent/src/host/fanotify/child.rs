//! The responder as the agent sees it: a child process, its socket, and those that earlier agents
//! have left.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::{FanotifyError, failed};
use super::order::{Line, Reply};
use super::responder::{BOUND, COMM};
use crate::host::systemd;

/// Longest time that the agent waits for an order to be carried out. A mark that takes longer is
/// made all the same.
pub(super) const RESPONDER_TIMEOUT: Duration = Duration::from_secs(1);
/// The responder's name on the command line: `guard-agent helper answer --maps DIR`.
const ARGUMENTS: [&str; 3] = [crate::host::rollback::helper::NAME, "answer", "--maps"];

/// Description of its scope in `systemctl`.
const DESCRIPTION: &str = "Answers for guard-agent whether a process may list a guarded directory";

/// The child process.
#[derive(Debug)]
pub(super) struct Responder {
    child: Child,
    socket: UnixStream,
    /// The beginning of a line.
    received: Vec<u8>,
    pings: u64,
    /// Since when the last ping waits for its answer.
    waiting_since: Option<Instant>,
    is_apart: bool,
}

impl Responder {
    /// Starts one at once, as a child in the agent's own cgroup.
    pub(super) fn start(maps_directory: &Path, records: &OwnedFd) -> Result<Self, FanotifyError> {
        Self::start_by(Command::new("/proc/self/exe"), maps_directory, records)
    }

    /// As [`start`](Self::start), in a scope of its own where systemd runs: a process that outlives
    /// its unit is to systemd a left-over one. It must be alive within a limit; without that, or
    /// without systemd, it is started as a mere child.
    pub(super) fn start_apart(
        maps_directory: &Path,
        records: &OwnedFd,
    ) -> Result<Self, FanotifyError> {
        if let Some(mut responder) = Self::begin_apart(maps_directory, records)? {
            if responder.comes_alive() {
                return Ok(responder);
            }
            tracing::warn!(
                "the responder gets no scope of its own: it stays in the agent's cgroup"
            );
            responder.kill();
            responder.reap();
        }
        Self::start(maps_directory, records)
    }

    /// Begins to start one in a scope of its own, and asks it for a sign of life. `None`: this host
    /// has no scopes.
    pub(super) fn begin_apart(
        maps_directory: &Path,
        records: &OwnedFd,
    ) -> Result<Option<Self>, FanotifyError> {
        if !systemd::manages_host() {
            return Ok(None);
        }
        let unit = format!("guard-answer-{}", systemd::unique());
        // It goes on until the host is down: only the last of all kills may end it.
        let command = systemd::in_scope(&unit, DESCRIPTION, &["DefaultDependencies=no"]);
        let Some(mut command) = command else { return Ok(None) };
        command.arg(format!("/proc/{}/exe", process::id()));
        let mut responder = Self::start_by(command, maps_directory, records)?;
        responder.is_apart = true;
        responder.ping();
        Ok(Some(responder))
    }

    fn start_by(
        mut command: Command,
        maps_directory: &Path,
        records: &OwnedFd,
    ) -> Result<Self, FanotifyError> {
        let (socket, its) =
            UnixStream::pair().map_err(failed("make a socket for the responder"))?;
        socket.set_nonblocking(true).map_err(failed("prepare the responder's socket"))?;
        let records = records.try_clone().map_err(failed("copy the pipe for records"))?;
        let child = command
            .args(ARGUMENTS)
            .arg(maps_directory)
            .stdin(Stdio::from(OwnedFd::from(its)))
            .stdout(Stdio::from(records))
            // A signal from the terminal is meant for the agent.
            .process_group(0)
            .spawn()
            .map_err(failed("start the responder"))?;
        Ok(Self {
            child,
            socket,
            received: Vec::new(),
            pings: 0,
            waiting_since: None,
            is_apart: false,
        })
    }

    /// Waits for its first answer.
    fn comes_alive(&mut self) -> bool {
        let end = Instant::now() + BOUND;
        while self.ended().is_none() && self.wait(end.saturating_duration_since(Instant::now())) {
            if self.has_answered() {
                return true;
            }
        }
        false
    }

    /// Whether the answer to its first ping is there.
    pub(super) fn has_answered(&mut self) -> bool {
        if self.replies().iter().any(|reply| matches!(reply, Reply::Pong { .. })) {
            self.waiting_since = None;
        }
        self.waiting_since.is_none()
    }

    /// Whether it was started in a cgroup of its own.
    pub(super) fn is_apart(&self) -> bool {
        self.is_apart
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn send(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        let end = Instant::now() + RESPONDER_TIMEOUT;
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            match self.socket.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let left = end.saturating_duration_since(Instant::now());
                    if !ready(&self.socket, PollFlags::POLLOUT, left) {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn wait(&self, limit: Duration) -> bool {
        ready(&self.socket, PollFlags::POLLIN, limit)
    }

    /// Its replies since the last call.
    pub(super) fn replies(&mut self) -> Vec<Reply> {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = self.socket.read(&mut buffer) {
            self.received.extend_from_slice(&buffer[..count]);
        }
        let Some(end) = self.received.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let lines: Vec<u8> = self.received.drain(..=end).collect();
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }

    pub(super) fn ping(&mut self) {
        if self.waiting_since.is_none() {
            self.pings += 1;
            self.waiting_since = Some(Instant::now());
            // A ping that it does not take it does not answer either.
            let _ = self.send(&Line::Ping(self.pings));
        }
    }

    pub(super) fn pong(&mut self, number: u64) {
        if number == self.pings {
            self.waiting_since = None;
        }
    }

    pub(super) fn is_overdue(&self) -> bool {
        self.waiting_since.is_some_and(|since| since.elapsed() > BOUND)
    }

    /// The reason of its end, if it has ended.
    pub(super) fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(format!("it ended: {status}")),
            Err(error) => Some(format!("it cannot be waited for: {error}")),
        }
    }

    pub(super) fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
    }

    /// Waits for the end, which a pool whose servers are gone can put off, in a thread of its own.
    pub(super) fn reap(mut self) {
        let wait = move || {
            let _ = self.child.wait();
        };
        // Without a thread it stays a zombie.
        let _ = std::thread::Builder::new().name("guard-reaper".to_owned()).spawn(wait);
    }
}

fn ready(socket: &UnixStream, what: PollFlags, limit: Duration) -> bool {
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    poll(&mut [PollFd::new(socket.as_fd(), what)], timeout).is_ok_and(|ready| ready > 0)
}

/// The responders that use maps below a pin directory. By name first: the command line of a
/// stranger is not read, since that may block.
pub fn responders(pin_directory: &Path) -> Vec<u32> {
    let is_one = |directory: &Path| {
        let comm = fs::read_to_string(directory.join("comm")).unwrap_or_default();
        let Ok(line) = (if comm.trim_end() == COMM {
            fs::read(directory.join("cmdline"))
        } else {
            Ok(Vec::new())
        }) else {
            return false;
        };
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let is_responder = words
            .iter()
            .skip(1)
            .zip(ARGUMENTS)
            .all(|(word, expected)| *word == expected.as_bytes());
        let maps = words.get(1 + ARGUMENTS.len()).map(|word| Path::new(OsStr::from_bytes(word)));
        is_responder && maps.is_some_and(|maps| maps.starts_with(pin_directory))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered =
        entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
    numbered.filter(|(_, directory)| is_one(directory)).map(|(pid, _)| pid).collect()
}
