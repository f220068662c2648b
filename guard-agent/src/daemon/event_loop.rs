//! The agent's loop: waits for the first of several sources, and sends it to the agent as an event.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use super::agent::{Agent, AgentEvent};
use super::control::Command;
use super::error::{DaemonError, failed};
use super::following::Following;
use super::means::Answers;
use super::notify;
use super::rollback::Happening;
use super::start_up::Started;
use crate::host::bpf::logs::KernelLog;
use crate::host::incus::Observation;
use crate::host::mount_table::MountWatch;
use crate::host::watch::PathWatcher;
use crate::model::errors::chain;

/// Beat of everything that is not driven by an event: leases, incidents, the audit log, the
/// watchdog.
const TICK: Duration = Duration::from_secs(1);
/// An editor's several events become one.
const SETTLE: Duration = Duration::from_millis(50);
/// Requests that wait for the agent.
const WAITING_REQUESTS: usize = 64;

/// Sources of events.
struct Sources {
    mounts: MountWatch,
    records: AsyncFd<RingBuf<MapData>>,
    answers: Option<Answers>,
    observations: mpsc::Receiver<(Arc<Path>, Observation)>,
    rollbacks: mpsc::UnboundedReceiver<Happening>,
    requests: mpsc::Receiver<Command>,
    reloads: mpsc::Receiver<()>,
    command_ended: Arc<Notify>,
    following: Following,
    /// Watched files that have changed, and when the agent is told.
    changed_files: Option<(Instant, Vec<PathBuf>)>,
    kernel_log: Option<KernelLog>,
    tick: Interval,
}

/// Reason why the loop woke up.
enum Woken {
    Event(AgentEvent<'static>),
    Records,
    Answers,
    /// Nothing that concerns the agent.
    Elsewhere,
}

/// The agent, its sources of events, and the receivers of its status.
pub(super) struct EventLoop {
    agent: Agent,
    sources: Sources,
    server: JoinHandle<io::Result<()>>,
    stop: watch::Sender<bool>,
    manager: notify::Notify,
}

impl EventLoop {
    /// Begins to serve the control socket. Must be called within a tokio runtime.
    pub(super) fn new(started: Started, reloads: mpsc::Receiver<()>) -> Self {
        let agent = started.agent;
        let (commands, requests) = mpsc::channel(WAITING_REQUESTS);
        let (stop, stopping) = watch::channel(false);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let sources = Sources {
            mounts: started.mounts,
            records: started.records,
            answers: started.answers,
            observations: started.observations,
            rollbacks: started.rollbacks,
            requests,
            reloads,
            command_ended: agent.command_ended(),
            following: Following::begin(agent.watched_paths(), agent.canary_interval()),
            changed_files: None,
            kernel_log: agent.any_program().and_then(|program| open_log(&program)),
            tick,
        };
        let serving = started.server.run(commands, started.lines, stopped(stopping));
        let manager = notify::Notify::from_environment();
        Self { agent, sources, server: tokio::spawn(serving), stop, manager }
    }

    /// Runs until `shutdown`.
    pub(super) async fn run(
        mut self,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), DaemonError> {
        let mut told = self.agent.status_text();
        self.manager.ready(&told);
        let mut followed = self.agent.reconciliations();
        tokio::pin!(shutdown);
        loop {
            let woken = tokio::select! {
                () = &mut shutdown => break,
                woken = self.sources.next() => woken?,
            };
            let is_tick = matches!(woken, Woken::Event(AgentEvent::Tick));
            self.take(woken);
            if is_tick {
                self.manager.alive();
                let text = self.agent.status_text();
                if text != told {
                    self.manager.status(&text);
                    told = text;
                }
            }
            // A policy that has come into force by any event is followed.
            if followed != self.agent.reconciliations() {
                followed = self.agent.reconciliations();
                let (paths, every) = (self.agent.watched_paths(), self.agent.canary_interval());
                self.sources.following.follow(paths, every);
            }
        }
        self.manager.stopping(&self.agent.stopped_text());
        // Waiting records are written before the agent ends.
        self.take(Woken::Records);
        self.take(Woken::Answers);
        self.agent.stop();
        let _ = self.stop.send(true);
        if let Ok(Err(error)) = self.server.await {
            tracing::warn!(%error, "control socket");
        }
        Ok(())
    }

    fn take(&mut self, woken: Woken) {
        let Self { agent, sources, .. } = self;
        match woken {
            Woken::Event(event) => agent.handle(event, &sources.mounts),
            Woken::Records => {
                agent.handle(AgentEvent::Records(sources.records.get_mut()), &sources.mounts);
            }
            Woken::Answers => {
                if let Some(answers) = &mut sources.answers {
                    agent.handle(AgentEvent::Answers(answers.get_mut()), &sources.mounts);
                }
            }
            Woken::Elsewhere => {}
        }
    }
}

impl Sources {
    /// Waits for the first event. A dropped wait loses nothing.
    async fn next(&mut self) -> Result<Woken, DaemonError> {
        Ok(Woken::Event(tokio::select! {
            changed = self.mounts.changed() => {
                if let Err(error) = changed {
                    tracing::error!(%error, "the mount table cannot be watched");
                }
                AgentEvent::MountsChanged
            }
            // Readiness is cleared before everything is taken: later records set it again.
            ready = self.records.readable_mut() => {
                ready.map_err(failed("wait for records"))?.clear_ready();
                return Ok(Woken::Records);
            }
            ready = answered(self.answers.as_mut()) => {
                ready.map_err(failed("wait for the responder's records"))?;
                return Ok(Woken::Answers);
            }
            Some((root, observation)) = self.observations.recv() => {
                AgentEvent::Observed(root, observation)
            }
            Some(()) = self.reloads.recv() => AgentEvent::ReloadAsked,
            () = self.command_ended.notified() => AgentEvent::CommandEnded,
            Some(happening) = self.rollbacks.recv() => AgentEvent::RollbackHappened(happening),
            Some(command) = self.requests.recv() => AgentEvent::Request(command),
            changed = watched(self.following.watcher.as_mut()) => {
                match changed {
                    Ok(paths) => {
                        let later = || (Instant::now() + SETTLE, Vec::new());
                        self.changed_files.get_or_insert_with(later).1.extend(paths);
                    }
                    Err(error) => tracing::error!(%error, "watched files"),
                }
                return Ok(Woken::Elsewhere);
            }
            () = settled(self.changed_files.as_ref()) => {
                let changed = self.changed_files.take();
                AgentEvent::FilesChanged(changed.map(|(_, paths)| paths).unwrap_or_default())
            }
            forwarded = forward(self.kernel_log.as_mut()) => {
                if let Err(error) = forwarded {
                    tracing::warn!(%error, "the kernel program's own log ends here");
                    self.kernel_log = None;
                }
                return Ok(Woken::Elsewhere);
            }
            _ = self.following.canary.tick() => AgentEvent::CanaryDue,
            _ = self.tick.tick() => AgentEvent::Tick,
        }))
    }
}

fn open_log(program: &Path) -> Option<KernelLog> {
    KernelLog::open(program)
        .inspect_err(|error| {
            tracing::warn!(error = %chain(error), "the kernel program's own log cannot be read");
        })
        .ok()
}

async fn settled(changed: Option<&(Instant, Vec<PathBuf>)>) {
    match changed {
        Some((when, _)) => sleep_until(*when).await,
        None => std::future::pending().await,
    }
}

async fn watched(watcher: Option<&mut PathWatcher>) -> io::Result<Vec<PathBuf>> {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

async fn answered(answers: Option<&mut Answers>) -> io::Result<()> {
    match answers {
        Some(answers) => {
            answers.readable_mut().await?.clear_ready();
            Ok(())
        }
        None => std::future::pending().await,
    }
}

async fn forward(log: Option<&mut KernelLog>) -> io::Result<()> {
    match log {
        Some(log) => log.forward().await,
        None => std::future::pending().await,
    }
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop too.
    let _ = stopping.wait_for(|stop| *stop).await;
}
