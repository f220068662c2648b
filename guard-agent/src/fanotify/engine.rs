//! The agent's side of this tier: starts the responder, tells it what is wanted, and replaces one that fails.
//!
//! The agent itself never waits for an answer without a limit, and holds no descriptor of the fanotify group: when the
//! responder ends, the kernel lets everyone go on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guard_common::PoolEntry;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};
use thiserror::Error;

use super::canary::Ground;
use super::order::{self, Line, Order, Outcome, Reply, SealedMount, Wanted};
use super::responder::{BOUND, COMM};
use super::seals::{Seals, SealsError};
use crate::bpf::{CanaryError, Maps};
use crate::mounts::Snapshot;

/// How long the agent waits for an order to be carried out. A mark that takes longer is made all the same.
const PATIENCE: Duration = Duration::from_secs(1);
/// The responder's name on the command line: `guard-agent helper answer --maps DIR`.
const ARGUMENTS: [&str; 3] = [crate::rollback::helper::NAME, "answer", "--maps"];

/// The tier could not be brought into force.
#[derive(Debug, Error)]
pub enum EngineError {
    #[error("{operation}")]
    Io {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Seals(#[from] SealsError),
    #[error(transparent)]
    Canary(#[from] CanaryError),
}

fn failed<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> EngineError {
    move |source| EngineError::Io { operation, source: source.into() }
}

/// What is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// Mounts whose directories can be listed by everybody.
    pub unmarked: Option<String>,
    /// Mounts that should be read-only and are not, or the other way round.
    pub unsealed: Option<String>,
    /// The responder had to be replaced.
    pub replaced: Option<String>,
}

/// The responder and all that is wanted of it.
#[derive(Debug)]
pub struct Engine {
    maps_directory: PathBuf,
    ground: Ground,
    seals: Seals,
    /// The responder's end of the pipe for records; it stays when responders come and go.
    records: OwnedFd,
    responder: Responder,
    wanted: Vec<Wanted>,
    serial: u64,
    outcomes: Option<Vec<Outcome>>,
    seals_problem: Option<String>,
    replaced: Option<String>,
}

impl Engine {
    /// Starts a responder. It marks nothing yet. The second value is where records come from.
    pub fn start(
        maps_directory: &Path,
        state_directory: &Path,
        boot_id: &str,
    ) -> Result<(Self, File), EngineError> {
        let ground = Ground::new()?;
        let seals = Seals::open(state_directory, boot_id)?;
        let (read, records) =
            pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(failed("make a pipe for records"))?;
        let responder = Responder::start(maps_directory, &records)?;
        let engine = Self {
            maps_directory: maps_directory.to_owned(),
            ground,
            seals,
            records,
            responder,
            wanted: Vec::new(),
            serial: 0,
            outcomes: None,
            seals_problem: None,
            replaced: None,
        };
        Ok((engine, read.into()))
    }

    /// Brings all mounts into the state that the pools' entries ask for. `leased`: generations of pools on which a
    /// command has a lease.
    pub fn apply(&mut self, pools: &BTreeMap<u32, PoolEntry>, leased: &BTreeSet<u64>, snapshot: &Snapshot) {
        self.take_replies();
        let mut steps = order::steps(pools, leased, snapshot, self.seals.mounts());
        let before: BTreeSet<SealedMount> = self.seals.mounts().clone();
        // On disk first: an agent that dies in between must find what a mount was before.
        self.seals_problem = match self.seals.record(steps.sealed.clone()) {
            Ok(()) => None,
            Err(error) => {
                let new = |mount: &Wanted| {
                    steps.sealed.difference(&before).any(|record| record.mount_id == mount.mount_id)
                };
                for mount in steps.mounts.iter_mut().filter(|mount| new(mount)) {
                    mount.read_only = None;
                }
                Some(crate::daemon::chain(&error))
            }
        };
        let mut wanted = steps.mounts;
        wanted.push(self.ground.wanted());
        if wanted != self.wanted || self.has_failed_mounts() {
            self.wanted = wanted;
            self.order();
        }
    }

    fn has_failed_mounts(&self) -> bool {
        self.outcomes.iter().flatten().any(|outcome| outcome.unmarked.is_some() || outcome.unsealed.is_some())
    }

    /// Sends the order, and waits a moment for what becomes of it.
    fn order(&mut self) {
        self.serial += 1;
        self.outcomes = None;
        let order = Order { serial: self.serial, mounts: self.wanted.clone() };
        if let Err(error) = self.responder.send(&Line::Order(order)) {
            tracing::warn!(%error, "the responder takes no order");
            return;
        }
        let end = Instant::now() + PATIENCE;
        while self.outcomes.is_none() && self.responder.wait(end.saturating_duration_since(Instant::now())) {
            self.take_replies();
        }
    }

    fn take_replies(&mut self) {
        for reply in self.responder.replies() {
            match reply {
                Reply::Pong(number) => self.responder.pong(number),
                Reply::Done { serial, mounts } if serial == self.serial => {
                    self.forget_restored(&mounts);
                    self.outcomes = Some(mounts);
                }
                // An order that has been superseded.
                Reply::Done { .. } => {}
            }
        }
    }

    /// What is writable again needs no record any more.
    fn forget_restored(&mut self, outcomes: &[Outcome]) {
        let is_restored = |record: &SealedMount| {
            let wanted = self.wanted.iter().find(|mount| mount.mount_id == record.mount_id);
            let outcome = outcomes.iter().find(|outcome| outcome.mount_id == record.mount_id);
            wanted.is_some_and(|mount| mount.read_only == Some(false))
                && outcome.is_some_and(|outcome| !outcome.gone && outcome.unsealed.is_none())
        };
        let left = self.seals.mounts().iter().filter(|record| !is_restored(record)).cloned().collect();
        if let Err(error) = self.seals.record(left) {
            self.seals_problem = Some(crate::daemon::chain(&error));
        }
    }

    /// What is not as it should be.
    pub fn problems(&self) -> Problems {
        let path = |id: u32| {
            let mount = self.wanted.iter().find(|mount| mount.mount_id == id);
            mount.map_or_else(|| id.to_string(), |mount| mount.path.0.display().to_string())
        };
        let list = |which: fn(&Outcome) -> &Option<String>| {
            let found = self
                .outcomes
                .iter()
                .flatten()
                .filter_map(|outcome| Some((outcome.mount_id, which(outcome).as_ref()?)));
            let texts: Vec<String> = found.map(|(id, why)| format!("{}: {why}", path(id))).collect();
            (!texts.is_empty()).then(|| texts.join("; "))
        };
        let waiting = self
            .outcomes
            .is_none()
            .then(|| "the responder has not carried out the last order yet".to_owned());
        Problems {
            unmarked: list(|outcome| &outcome.unmarked).or(waiting),
            unsealed: self.seals_problem.clone().or_else(|| list(|outcome| &outcome.unsealed)),
            replaced: self.replaced.clone(),
        }
    }

    /// Looks after the responder: replaces one that has ended, or does not answer for as long as the bound.
    pub fn tick(&mut self) {
        self.take_replies();
        let why = match self.responder.ended() {
            Some(why) => Some(why),
            None => {
                self.responder.is_overdue().then(|| format!("it did not answer for {} s", BOUND.as_secs()))
            }
        };
        match why {
            Some(why) => self.replace(&why),
            None => self.responder.ping(),
        }
    }

    /// Puts a new responder in the place of one that failed. Between them the kernel allows everything.
    fn replace(&mut self, why: &str) {
        tracing::error!(why, "the responder is replaced: guarded pools were open for a moment");
        self.responder.kill();
        self.replaced = Some(why.to_owned());
        match Responder::start(&self.maps_directory, &self.records) {
            Ok(responder) => {
                std::mem::replace(&mut self.responder, responder).reap();
                self.order();
            }
            // The next tick tries again.
            Err(error) => tracing::error!(error = crate::daemon::chain(&error), "no responder"),
        }
    }

    /// Proves that this responder answers and that sealing works. A passed proof forgets that one was replaced.
    pub fn prove(&mut self, maps: &mut Maps) -> Result<(), CanaryError> {
        let pid = self.responder.pid();
        self.ground.prove(maps, BOUND, || end(pid, Signal::SIGKILL))?;
        self.replaced = None;
        Ok(())
    }

    /// Ends the responders of earlier agents. Only after this one is proven. Returns how many there were.
    pub fn retire_others(&self) -> usize {
        let mine = self.responder.pid();
        let others: Vec<u32> =
            responders(&self.maps_directory).into_iter().filter(|pid| *pid != mine).collect();
        others.iter().for_each(|pid| end(*pid, Signal::SIGTERM));
        others.len()
    }

    /// Ends this responder: it did not prove itself.
    pub fn withdraw(mut self) {
        self.responder.kill();
        self.responder.reap();
    }
}

/// Ends all responders on these maps and makes every sealed mount writable again: nothing is enforced afterwards.
pub fn unload(maps_directory: &Path, state_directory: &Path, boot_id: &str) -> Result<(), EngineError> {
    responders(maps_directory).into_iter().for_each(|pid| end(pid, Signal::SIGTERM));
    match Seals::open(state_directory, boot_id)?.restore_all().into_iter().next() {
        None => Ok(()),
        Some((path, error)) => {
            let source = io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            Err(failed("make a sealed mount writable again")(source))
        }
    }
}

fn end(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // It may have ended already.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// The responders that use these maps. By name first: the command line of a stranger is not read, since that may block.
fn responders(maps_directory: &Path) -> Vec<u32> {
    let is_one = |directory: &Path| {
        let comm = fs::read_to_string(directory.join("comm")).unwrap_or_default();
        let Ok(line) =
            (if comm.trim_end() == COMM { fs::read(directory.join("cmdline")) } else { Ok(Vec::new()) })
        else {
            return false;
        };
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let expected = ARGUMENTS.iter().map(|word| word.as_bytes());
        let expected: Vec<&[u8]> =
            expected.chain([std::os::unix::ffi::OsStrExt::as_bytes(maps_directory.as_os_str())]).collect();
        words.get(1..=expected.len()) == Some(&expected[..])
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered =
        entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
    numbered.filter(|(_, directory)| is_one(directory)).map(|(pid, _)| pid).collect()
}

/// The child process.
#[derive(Debug)]
struct Responder {
    child: Child,
    socket: UnixStream,
    /// The beginning of a line.
    received: Vec<u8>,
    pings: u64,
    /// Since when the last ping waits for its answer.
    waiting_since: Option<Instant>,
}

impl Responder {
    fn start(maps_directory: &Path, records: &OwnedFd) -> Result<Self, EngineError> {
        let (socket, its) = UnixStream::pair().map_err(failed("make a socket for the responder"))?;
        socket.set_nonblocking(true).map_err(failed("prepare the responder's socket"))?;
        let records = records.try_clone().map_err(failed("copy the pipe for records"))?;
        let child = Command::new("/proc/self/exe")
            .args(ARGUMENTS)
            .arg(maps_directory)
            .stdin(Stdio::from(OwnedFd::from(its)))
            .stdout(Stdio::from(records))
            // A signal from the terminal is meant for the agent.
            .process_group(0)
            .spawn()
            .map_err(failed("start the responder"))?;
        Ok(Self { child, socket, received: Vec::new(), pings: 0, waiting_since: None })
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn send(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        let end = Instant::now() + PATIENCE;
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

    fn wait(&self, limit: Duration) -> bool {
        ready(&self.socket, PollFlags::POLLIN, limit)
    }

    /// What it has said since.
    fn replies(&mut self) -> Vec<Reply> {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = self.socket.read(&mut buffer) {
            self.received.extend_from_slice(&buffer[..count]);
        }
        let Some(end) = self.received.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let lines: Vec<u8> = self.received.drain(..=end).collect();
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }

    fn ping(&mut self) {
        if self.waiting_since.is_none() {
            self.pings += 1;
            self.waiting_since = Some(Instant::now());
            // What it does not take it does not answer either.
            let _ = self.send(&Line::Ping(self.pings));
        }
    }

    fn pong(&mut self, number: u64) {
        if number == self.pings {
            self.waiting_since = None;
        }
    }

    fn is_overdue(&self) -> bool {
        self.waiting_since.is_some_and(|since| since.elapsed() > BOUND)
    }

    /// How it ended, if it has.
    fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(format!("it ended: {status}")),
            Err(error) => Some(format!("it cannot be waited for: {error}")),
        }
    }

    fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
    }

    /// Waits for the end, which a pool whose servers are gone can put off, in a thread of its own.
    fn reap(mut self) {
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
