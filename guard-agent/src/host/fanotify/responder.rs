//! The process that answers: a child of the agent that outlives it.
//!
//! A process that opens a directory of a pool waits in the kernel for the answer, so nothing that
//! can block may come before it: the answering thread reads maps and `/proc`, never a path of a
//! pool, and does nothing else. Marks, which may ask a pool's servers, are made by a second thread;
//! a third one talks with the agent, and ends the process when an answer is overdue; a fourth one
//! sees deletions, and a fifth one new mounts. When the process ends, for any reason, the kernel
//! allows all waiting requests and the marks are gone.
//!
//! Without an agent it goes on: modes, releases and leases are in the maps, and end by the boot
//! clock.

use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fs, panic, thread};

use guard_common::policy::{POOL_CANARY, POOL_NO_ALIAS, POOL_OUTSIDE, POOL_PARTS};
use guard_common::{Hook, Operation, PoolEntry, Verdict};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::fanotify::{FanotifyResponse, Response};
use thiserror::Error;

use super::apply_order::apply_orders;
use super::decide::{self, Outcome as Decided};
use super::deletion_monitor::{DeletionMonitor, Told};
use super::event::{self, Head};
use super::identity::{Identities, Process};
use super::marks;
use super::mount_watcher;
use super::order::{Line, Order, Reply};
use super::recorder::{Answered, Recorder, incident};
use super::shared::{Marked, Shared, send};
use super::tally::Tally;
use crate::host::bpf::{MapAccessError, Maps};
use crate::host::clock;

/// Name of the process, by which the next agent finds it.
pub const COMM: &str = "guard-answer";
/// An answer that takes longer will not come: the process ends, and the kernel allows the waiters.
pub const BOUND: Duration = Duration::from_secs(5);
/// Without a question for so long, the pending counts are written down.
const PAUSE: Duration = Duration::from_millis(5);
/// Bytes of a read.
const BUFFER: usize = 4096;
/// Between two looks at the answering thread.
const BEAT: Duration = Duration::from_millis(500);

/// Where the maps are. Standard input is a socket to the agent, standard output a pipe for records.
#[derive(Clone, Debug, clap::Args)]
pub struct AnswerArgs {
    #[arg(long)]
    pub maps: PathBuf,
}

/// Why it does not answer.
#[derive(Debug, Error)]
pub enum ResponderError {
    #[error(transparent)]
    Map(#[from] MapAccessError),
    #[error("{operation}")]
    Io {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> ResponderError {
    move |source| ResponderError::Io { operation, source: source.into() }
}

/// Answers until it is ended.
pub fn run(args: &AnswerArgs) -> Result<(), ResponderError> {
    nix::sys::prctl::set_name(&std::ffi::CString::new(COMM).expect("no NUL in it"))
        .map_err(failed("name the process"))?;
    end_on_panic();
    let mut maps = Maps::open(&args.maps)?;
    let shared = Arc::new(Shared {
        group: marks::group().map_err(failed("fanotify_init"))?,
        mounts: Mutex::default(),
        deletion_monitor: DeletionMonitor::new().map_err(failed("make an eventfd"))?,
        unwatched: Mutex::default(),
        busy_since: AtomicU64::new(0),
        orders: AtomicU64::new(0),
        start: Instant::now(),
        own: std::process::id(),
    });
    let records =
        io::stdout().as_fd().try_clone_to_owned().map_err(failed("take the pipe for records"))?;
    let agent =
        io::stdin().as_fd().try_clone_to_owned().map_err(failed("take the agent's socket"))?;
    let agent = UnixStream::from(agent);
    let (orders, wanted) = mpsc::channel();
    let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().name(name.to_owned()).spawn(body).map_err(failed("start a thread"))
    };
    let replies =
        Arc::new(Mutex::new(agent.try_clone().map_err(failed("copy the agent's socket"))?));
    let (one, other) = (Arc::clone(&shared), Arc::clone(&replies));
    spawn("guard-orders", Box::new(move || apply_orders(&one, &wanted, &other)))?;
    let other = Arc::clone(&shared);
    spawn("guard-watch", Box::new(move || converse(&other, agent, &orders, &replies)))?;
    let recorder = Arc::new(Recorder::new(records));
    let (other, its_recorder, mut its_maps) =
        (Arc::clone(&shared), Arc::clone(&recorder), Maps::open(&args.maps)?);
    let see = move || {
        other.deletion_monitor.see_all(&mut its_maps, &its_recorder, other.group.as_raw_fd())
    };
    spawn("guard-deletion_monitor", Box::new(see))?;
    let (other, its_maps) = (Arc::clone(&shared), Maps::open(&args.maps)?);
    spawn("guard-mounts", Box::new(move || mount_watcher::mark_all(&other, &its_maps)))?;
    answer_all(&shared, &mut maps, &recorder)
}

/// A thread that panics takes the process with it: its work would be missing, and nobody told.
fn end_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// The answering thread.
fn answer_all(shared: &Shared, maps: &mut Maps, recorder: &Recorder) -> Result<(), ResponderError> {
    let mut identities = Identities::default();
    let mut tally = Tally::default();
    let mut buffer = [0; BUFFER];
    let mut seen = u64::MAX;
    loop {
        let pause = (!tally.is_empty()).then_some(PAUSE);
        let is_asked = wait(shared.group.as_fd(), pause).map_err(failed("wait for questions"))?;
        shared.busy_since.store(shared.milliseconds(), Ordering::SeqCst);
        let orders = shared.orders.load(Ordering::SeqCst);
        if orders != seen && identities.refresh().is_ok() {
            seen = orders;
        }
        // Reading opens each directory that is asked about: here a pool whose servers are gone may
        // block. One that cannot be opened is denied by the kernel, and told as an error here.
        let length =
            if is_asked { nix::unistd::read(&shared.group, &mut buffer).unwrap_or(0) } else { 0 };
        let mut events = &buffer[..length];
        while !events.is_empty() {
            let understood = event::first(events).ok_or(Errno::EPROTO);
            let (head, rest) = understood.map_err(failed("understand a question"))?;
            shared.busy_since.store(shared.milliseconds(), Ordering::SeqCst);
            answer(shared, maps, recorder, &mut tally, &mut identities, &head)?;
            events = rest;
        }
        if !is_asked || tally.is_full() {
            recorder.settle(maps, &mut tally);
        }
        shared.busy_since.store(0, Ordering::SeqCst);
    }
}

fn answer(
    shared: &Shared,
    maps: &mut Maps,
    recorder: &Recorder,
    tally: &mut Tally,
    identities: &mut Identities,
    head: &Head<'_>,
) -> Result<(), ResponderError> {
    if head.fd < 0 {
        // Nothing is asked.
        return Ok(());
    }
    // SAFETY: the kernel has opened it for this event, and nobody else owns it.
    let directory = unsafe { OwnedFd::from_raw_fd(head.fd) };
    let fd = directory.as_fd();
    let respond = |response| match shared.group.write_response(FanotifyResponse::new(fd, response))
    {
        // The asking process was killed meanwhile.
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(failed("answer")(errno)),
    };
    // First of all: it must never wait for itself.
    if u32::try_from(head.pid) == Ok(shared.own) {
        return respond(Response::FAN_ALLOW);
    }
    let Some(question) = Question::of(shared, maps, identities, head, fd) else {
        // No mount or superblock of ours: the mark is about to go.
        return respond(Response::FAN_ALLOW);
    };
    if question.entry.flags & POOL_CANARY != 0 {
        return respond(Response::FAN_DENY);
    }
    let Some((outcome, cgroup_id)) = question.decide(maps, identities) else {
        return respond(Response::FAN_ALLOW);
    };
    // The asking process goes on with the answer, and may end: the record's facts are read before.
    let (process, path) = question.told(outcome, maps, recorder, identities, fd);
    let denied = outcome.verdict == Verdict::Denied;
    respond(if denied { Response::FAN_DENY } else { Response::FAN_ALLOW })?;
    // The process may at once unmount the mount that this descriptor would hold.
    drop(directory);
    if !outcome.counter().is_audited() {
        tally.add(outcome, question.entry.generation);
        return Ok(());
    }
    let answered = Answered {
        outcome,
        hook: question.hook,
        operation: Operation::List,
        entry: &question.entry,
        dev: question.mark.wanted.dev,
        mount_id: Some(question.mark.wanted.mount_id),
        // The opened directory is the target; the directory that holds its name was not looked at.
        parent_ino: 0,
        target_ino: question.ino,
        path: &path,
        process: &process,
        cgroup_id,
        now_boot_ns: question.now_boot_ns,
    };
    // No line for the log: its reader may be stuck. A map that is full has counted it.
    let _ = recorder.enter(maps, &answered);
    Ok(())
}

/// A directory of a pool is to be opened or listed.
struct Question {
    mark: Marked,
    entry: PoolEntry,
    hook: Hook,
    tgid: u32,
    ino: u64,
    now_boot_ns: u64,
}

impl Question {
    /// Nothing if it is none of ours.
    fn of(
        shared: &Shared,
        maps: &Maps,
        identities: &mut Identities,
        head: &Head<'_>,
        fd: BorrowedFd<'_>,
    ) -> Option<Self> {
        let (mount_id, ino) = identities.described(&fd).ok()?;
        let mark = shared.mounts().get(&mount_id).cloned()?;
        let entry = maps.pools.get(&mark.wanted.key()).ok()??;
        Some(Self {
            mark,
            entry,
            hook: if head.mask & libc::FAN_OPEN_PERM != 0 {
                Hook::FanotifyOpen
            } else {
                Hook::FanotifyList
            },
            tgid: u32::try_from(head.pid).unwrap_or(0),
            ino,
            // Without a clock every release is over.
            now_boot_ns: clock::boot_ns().unwrap_or(u64::MAX),
        })
    }

    /// The outcome, with the id of the asker's cgroup; `None`: allowed, and nobody needs to know.
    fn decide(&self, maps: &Maps, identities: &mut Identities) -> Option<(Decided, u64)> {
        if self.entry.flags & (POOL_NO_ALIAS | POOL_PARTS | POOL_OUTSIDE) != 0 {
            return None;
        }
        let (read_only, now) = (self.mark.read_only, self.now_boot_ns);
        if !decide::depends_on_asker(&self.entry, read_only, now) && read_only {
            return None;
        }
        let asked = identities.ask(maps, self.mark.wanted.dev, &self.entry, now, self.tgid).ok();
        let (asker, cgroup_id) =
            asked.map_or((None, 0), |(asker, cgroup_id)| (Some(asker), cgroup_id));
        decide::decide(&self.entry, read_only, now, asker).map(|outcome| (outcome, cgroup_id))
    }

    /// The requester and the directory, as far as the recorder needs them for this outcome.
    fn told(
        &self,
        outcome: Decided,
        maps: &Maps,
        recorder: &Recorder,
        identities: &mut Identities,
        fd: BorrowedFd<'_>,
    ) -> (Process, PathBuf) {
        let unknown = Process::unknown(self.tgid);
        if !outcome.counter().is_audited() {
            return (unknown, PathBuf::new());
        }
        let start_boot_ns = identities.life(self.tgid).unwrap_or_default().start_boot_ns;
        let named = Process { start_boot_ns, ..unknown.clone() };
        if !recorder
            .is_recorded(maps, &incident(outcome, &self.entry, self.mark.wanted.dev, &named))
        {
            return (named, PathBuf::new());
        }
        // The kernel's own name of an open file: no lookup, no server.
        let path =
            fs::read_link(format!("/proc/thread-self/fd/{}", fd.as_raw_fd())).unwrap_or_default();
        let process = Process::read(Path::new("/proc"), self.tgid).unwrap_or(unknown);
        (process, self.mark.wanted.inside(&path))
    }
}

/// The thread that talks with the agent, and watches the answering thread.
fn converse(
    shared: &Shared,
    agent: UnixStream,
    orders: &Sender<Order>,
    replies: &Mutex<UnixStream>,
) {
    let mut lines = BufReader::new(agent);
    let mut connected = true;
    loop {
        let busy_since = shared.busy_since.load(Ordering::SeqCst);
        let bound = u64::try_from(BOUND.as_millis()).unwrap_or(u64::MAX);
        if busy_since != 0 && shared.milliseconds().saturating_sub(busy_since) > bound {
            tracing::error!(
                "an answer is overdue: this process ends, and the kernel allows the accesses \
                 that wait"
            );
            std::process::abort();
        }
        if !connected {
            thread::park_timeout(BEAT);
            continue;
        }
        if lines.buffer().is_empty()
            && !matches!(wait(lines.get_ref().as_fd(), Some(BEAT)), Ok(true))
        {
            continue;
        }
        let mut line = String::new();
        connected = match lines.read_line(&mut line) {
            // The agent is gone. Its orders stay.
            Ok(0) | Err(_) => false,
            Ok(_) => match serde_json::from_str(&line) {
                Ok(Line::Ping(number)) => {
                    let Told { missed, unseen, .. } = shared.deletion_monitor.told();
                    let unwatched = shared.unwatched().clone();
                    send(replies, &Reply::Pong { number, missed, unseen, unwatched });
                    true
                }
                Ok(Line::Order(order)) => orders.send(order).is_ok(),
                Err(error) => {
                    tracing::error!(%error, "an order could not be understood");
                    true
                }
            },
        };
    }
}

/// Whether something can be read; waits for it, or for so long.
fn wait(fd: BorrowedFd<'_>, limit: Option<Duration>) -> io::Result<bool> {
    let timeout = limit.map_or(PollTimeout::NONE, |limit| {
        PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)
    });
    let mut polled = [PollFd::new(fd, PollFlags::POLLIN)];
    match poll(&mut polled, timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
