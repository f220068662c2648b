//! Watches one node, and reports to its owner. Holds no decision: it looks when it is asked to,
//! when something has happened, and from time to time.
//!
//! A task of its own. Nothing that hangs in Incus or its files costs more than that task's waiting;
//! dropping the [`Observer`] ends it.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::Options;
use super::events::{Streamed, follow};
use super::evidence::{EvidenceReader, Limits, Seen, Served};
use crate::host::watch::PathWatcher;
use crate::model::errors::chain;
use crate::model::incus::frames::{FrameContent, Meaning, News, Own};
use crate::model::join::{Config, Daemon, Epoch, Event, Evidence, Incarnation, Membership};

/// Interval of checks whether the daemon still runs, or runs again.
const PULSE: Duration = Duration::from_secs(1);
/// The least time between two looks that nobody has asked for.
const PAUSE: Duration = Duration::from_millis(200);
/// Between two connections to the event stream: the first time, and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Reports of the stream that wait.
const REPORTS: usize = 64;

/// A report of an observer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// A look that began after it was asked for in this epoch.
    Evidence {
        asked: Epoch,
        evidence: Evidence,
    },
    Event(Event),
}

/// The request of the daemon: the newest one counts.
#[derive(Clone, Copy, Debug)]
struct Request {
    asked: Epoch,
    /// Interval of looks that nobody asks for.
    every: Duration,
}

/// A running observer of one node.
#[derive(Debug)]
pub struct Observer {
    requests: watch::Sender<Request>,
    /// Ends with it.
    _task: JoinSet<()>,
}

impl Observer {
    /// Starts watching; looks at once, for `asked`. Observations come with the node's directory.
    /// Must be called within a tokio runtime.
    pub fn spawn(
        options: Options,
        asked: Epoch,
        every: Duration,
        observations: mpsc::Sender<(Arc<Path>, Observation)>,
    ) -> Self {
        let (requests, receiver) = watch::channel(Request { asked, every });
        let mut task = JoinSet::new();
        task.spawn(Watching::new(options, receiver, observations).run());
        Self { requests, _task: task }
    }

    /// Asks for a look, and for one every so often from now on. Several requests before the next
    /// look are one.
    pub fn observe(&self, asked: Epoch, every: Duration) {
        self.requests.send_replace(Request { asked, every });
    }
}

/// The owner has gone.
struct Gone;

/// The event stream of one life of the daemon.
struct Stream {
    /// Tells it from those before and after it.
    number: u64,
    of: Incarnation,
    streamed: mpsc::Receiver<Streamed>,
    connected: bool,
    /// Ends with it.
    _task: JoinSet<()>,
}

struct Watching {
    reader: EvidenceReader,
    directory: Arc<Path>,
    database: PathBuf,
    requests: watch::Receiver<Request>,
    observations: mpsc::Sender<(Arc<Path>, Observation)>,
    /// The running look, if any.
    reads: JoinSet<(Epoch, Option<u64>, Seen)>,
    pulses: JoinSet<Option<Vec<(u32, u64)>>>,
    last_pulse: Option<Vec<(u32, u64)>>,
    stream: Option<Stream>,
    /// So many have begun.
    streams: u64,
    /// Time of the next attempt to connect, and the wait after it.
    connect_at: Instant,
    back_off: Duration,
    /// Content of `local.db` when it could be read last.
    config: Option<Config>,
    /// This server's name in its cluster, while it is in one.
    name: Option<String>,
    /// Time at which it was known last whether this server is a member.
    answered: Instant,
    daemon: Option<Incarnation>,
    last_look: Option<Instant>,
    next_observation: Instant,
}

impl Watching {
    fn new(
        options: Options,
        requests: watch::Receiver<Request>,
        observations: mpsc::Sender<(Arc<Path>, Observation)>,
    ) -> Self {
        let now = Instant::now();
        Self {
            directory: Arc::from(options.directory.as_path()),
            database: options.local_db(),
            reader: EvidenceReader::new(Arc::new(options), Limits::USUAL),
            requests,
            observations,
            reads: JoinSet::new(),
            pulses: JoinSet::new(),
            last_pulse: None,
            stream: None,
            streams: 0,
            connect_at: now,
            back_off: BACK_OFF.0,
            config: None,
            name: None,
            answered: now,
            daemon: None,
            last_look: None,
            next_observation: now,
        }
    }

    async fn run(mut self) {
        let mut files = self.watch_database().await;
        let mut pulse = interval(PULSE);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                request = self.requests.changed() => match request {
                    Ok(()) => { self.next_observation = Instant::now(); Ok(()) }
                    Err(_) => Err(Gone),
                },
                () = sleep_until(self.next_observation), if self.reads.is_empty() => {
                    self.begin_observation();
                    Ok(())
                }
                Some(seen) = self.reads.join_next(), if !self.reads.is_empty() => {
                    self.observed(seen).await
                }
                streamed = next_streamed(&mut self.stream) => self.streamed(streamed).await,
                () = changed(&mut files) => { self.observe_soon(); Ok(()) }
                _ = pulse.tick() => { self.begin_pulse(); Ok(()) }
                Some(beat) = self.pulses.join_next(), if !self.pulses.is_empty() => {
                    self.pulsed(beat);
                    Ok(())
                }
            };
            if step.is_err() {
                return;
            }
        }
    }

    /// `None` if it cannot be watched: it is looked at from time to time anyway.
    async fn watch_database(&self) -> Option<PathWatcher> {
        if self.reader.is_on_network(&self.database).await {
            return None;
        }
        let watcher = PathWatcher::new([self.database.clone()]);
        let watcher = watcher.inspect_err(|error| {
            tracing::warn!(path = %self.database.display(), %error, "changes of Incus's database \
                                                                     cannot be watched");
        });
        watcher.ok()
    }

    fn begin_observation(&mut self) {
        let Request { asked, every } = *self.requests.borrow_and_update();
        let now = Instant::now();
        self.last_look = Some(now);
        self.next_observation = now + every;
        let (reader, config) = (self.reader.clone(), self.config.clone());
        // Connected by now: its events are in no doubt.
        let stream = self.connected();
        self.reads.spawn(async move { (asked, stream, reader.observe(config.as_ref()).await) });
    }

    /// Something has happened.
    fn observe_soon(&mut self) {
        let earliest = self.last_look.map_or_else(Instant::now, |last| last + PAUSE);
        self.next_observation = self.next_observation.min(earliest);
    }

    async fn observed(
        &mut self,
        seen: Result<(Epoch, Option<u64>, Seen), tokio::task::JoinError>,
    ) -> Result<(), Gone> {
        let (asked, stream, mut seen) = match seen {
            Ok(seen) => seen,
            Err(error) => {
                tracing::error!(directory = %self.directory.display(), %error, "a look at the node \
                                                                                ended abnormally");
                return Ok(());
            }
        };
        self.daemon = match &seen.evidence.daemon {
            Daemon::Running { incarnation, .. } => Some(incarnation.clone()),
            Daemon::Stopped | Daemon::Unknown => None,
        };
        if !matches!(seen.evidence.config, Config::Unreadable { .. }) {
            self.config = Some(seen.evidence.config.clone());
        }
        // A database that does not answer for a moment takes no name away.
        self.name = seen.name.or(self.name.take()).filter(|_| self.is_clustered());
        if answers(&seen.evidence) {
            self.answered = Instant::now();
        }
        seen.evidence.unanswered_seconds = self.answered.elapsed().as_secs();
        let is_its_own =
            self.stream.as_ref().is_some_and(|stream| Some(&stream.of) == self.daemon.as_ref());
        seen.evidence.stream = stream.filter(|_| is_its_own && stream == self.connected());
        self.tell(Observation::Evidence { asked, evidence: seen.evidence }).await?;
        self.follow_events(seen.served_by).await
    }

    /// The number of the connected event stream.
    fn connected(&self) -> Option<u64> {
        self.stream.as_ref().filter(|stream| stream.connected).map(|stream| stream.number)
    }

    /// Follows the event stream of the daemon that was just seen to serve it, and of no other.
    async fn follow_events(&mut self, served_by: Option<Served>) -> Result<(), Gone> {
        if self.stream.as_ref().is_some_and(|stream| Some(&stream.of) != self.daemon.as_ref()) {
            self.end_stream().await?;
        }
        let (Some(served), Some(of), None) = (served_by, self.daemon.clone(), &self.stream) else {
            return Ok(());
        };
        if Instant::now() < self.connect_at {
            self.next_observation = self.next_observation.min(self.connect_at);
            return Ok(());
        }
        let (sender, streamed) = mpsc::channel(REPORTS);
        let mut task = JoinSet::new();
        task.spawn(follow(self.reader.socket(served), sender));
        self.streams += 1;
        self.stream =
            Some(Stream { number: self.streams, of, streamed, connected: false, _task: task });
        Ok(())
    }

    /// Events that the stream has not delivered are lost, if it ever began.
    async fn end_stream(&mut self) -> Result<(), Gone> {
        match self.stream.take() {
            Some(stream) if stream.connected => {
                self.tell(Observation::Event(Event::EventsLost)).await
            }
            _ => Ok(()),
        }
    }

    async fn streamed(&mut self, streamed: Option<Streamed>) -> Result<(), Gone> {
        match streamed {
            Some(Streamed::Connected) => {
                if let Some(stream) = &mut self.stream {
                    stream.connected = true;
                }
                self.back_off = BACK_OFF.0;
                // Earlier changes are in no event.
                self.observe_soon();
                Ok(())
            }
            Some(Streamed::FrameContent(report)) => self.reported(&report).await,
            Some(Streamed::Ended(error)) => self.stream_ended(&chain(&error)).await,
            None => self.stream_ended("its task ended").await,
        }
    }

    async fn reported(&mut self, report: &FrameContent) -> Result<(), Gone> {
        let own = match &self.name {
            Some(name) => Own::Named(name),
            None if self.is_clustered() => Own::Unnamed,
            None => Own::Alone,
        };
        let meaning = report.meaning(own);
        if meaning != Meaning::Nothing {
            self.observe_soon();
        }
        let Meaning::Event(event) = meaning else { return Ok(()) };
        if let News::JoinFailed { error } = &report.news {
            let directory = self.directory.display();
            tracing::warn!(%directory, error, "Incus: an operation \"Joining cluster\" failed");
        }
        self.tell(Observation::Event(event)).await
    }

    /// Whether `local.db`, read last, names a cluster.
    fn is_clustered(&self) -> bool {
        matches!(&self.config, Some(Config::Read { raft_nodes: 1.., .. }))
    }

    async fn stream_ended(&mut self, why: &str) -> Result<(), Gone> {
        tracing::debug!(directory = %self.directory.display(), why, "no event stream");
        self.connect_at = Instant::now() + self.back_off;
        self.back_off = (self.back_off * 2).min(BACK_OFF.1);
        self.observe_soon();
        self.end_stream().await
    }

    fn begin_pulse(&mut self) {
        if self.pulses.is_empty() && self.reads.is_empty() {
            let (reader, known) =
                (self.reader.clone(), self.daemon.as_ref().map(|daemon| daemon.pid));
            self.pulses.spawn(async move { reader.pulse(known).await });
        }
    }

    fn pulsed(&mut self, beat: Result<Option<Vec<(u32, u64)>>, tokio::task::JoinError>) {
        let beat = beat.ok().flatten();
        if beat.is_some() && beat != self.last_pulse {
            self.last_pulse = beat;
            self.observe_soon();
        }
    }

    async fn tell(&self, observation: Observation) -> Result<(), Gone> {
        self.observations.send((Arc::clone(&self.directory), observation)).await.map_err(|_| Gone)
    }
}

/// Whether a look has an answer about the node's place in a cluster.
fn answers(evidence: &Evidence) -> bool {
    let outside = matches!(&evidence.config, Config::Read { raft_nodes: 0, .. });
    outside
        || matches!(
            evidence.membership,
            Membership::Member | Membership::NotListed | Membership::NotClustered
        )
}

async fn next_streamed(stream: &mut Option<Stream>) -> Option<Streamed> {
    match stream {
        Some(stream) => stream.streamed.recv().await,
        None => pending().await,
    }
}

/// Ends watching where that fails: the node is looked at from time to time anyway.
async fn changed(files: &mut Option<PathWatcher>) {
    let Some(watcher) = files else { return pending().await };
    if let Err(error) = watcher.changed().await {
        tracing::warn!(%error, "changes of Incus's database are no longer watched");
        *files = None;
    }
}

#[cfg(test)]
#[path = "observer_tests.rs"]
mod tests;
