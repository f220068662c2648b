//! The agent's process: wiring only.
//!
//! One task owns all state ([`agent::Agent`]); everything else is sent to it as an
//! [`agent::AgentEvent`]: the mount table, the watched paths, the kernel's records, requests from
//! the control socket, and time. Nothing here decides what to protect.

mod agent;
mod audit_trail;
mod clusters;
pub mod command_line;
pub mod control;
mod enforcement;
mod error;
mod following;
mod grants;
mod last_good;
mod means;
mod mount_view;
mod node;
mod node_tracker;
mod notify;
mod options;
mod policy_store;
mod pool_book;
mod posture_tracker;
mod rollback;
mod succession;
mod tiers;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::io::Interest;
use tokio::io::unix::AsyncFdReadyMutGuard;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::daemon::agent::{Agent, AgentEvent};
use crate::daemon::control::access::{GROUP, reader_group};
use crate::daemon::control::{Command, Server, ServerOptions};
pub use crate::daemon::error::DaemonError;
use crate::daemon::error::failed;
use crate::daemon::following::Following;
use crate::daemon::means::Answers;
use crate::daemon::node_tracker::NodeTracker;
pub use crate::daemon::options::Options;
use crate::daemon::policy_store::{PolicyStore, root_above};
use crate::daemon::rollback::Rollbacks;
use crate::daemon::succession::Succession;
use crate::daemon::tiers::Ladder;
use crate::host::audit_log::{AuditFile, AuditOptions, origin};
use crate::host::bpf::LoadError;
use crate::host::bpf::logs::KernelLog;
use crate::host::bpf::maps;
use crate::host::fanotify;
use crate::host::host_view;
use crate::host::mount_table;
use crate::host::mount_table::MountWatch;
use crate::host::paths;
use crate::host::reactor;
use crate::host::state_file::StateFile;
use crate::host::watch::PathWatcher;
use crate::model::errors::chain;
use crate::model::exit::Exit;

/// Beat of everything that is not driven by an event: leases, incidents, the audit log, the
/// watchdog.
const TICK: Duration = Duration::from_secs(1);
/// An editor's several events become one.
const SETTLE: Duration = Duration::from_millis(50);
/// Lines of the audit log that a slow follower may lag behind.
const FOLLOWERS_LAG: usize = 1024;

/// Runs until `shutdown`. Enforcement goes on after it. Each of `reloads` has the policy file read
/// again.
pub async fn run(
    options: Options,
    shutdown: impl Future<Output = ()>,
    mut reloads: mpsc::Receiver<()>,
) -> Result<(), DaemonError> {
    let foreign = host_view::foreign_pid_namespace();
    match foreign.map_err(failed("look at this process's PID namespace"))? {
        Some(found) if !options.container_as_host => {
            return Err(DaemonError::InContainer { found });
        }
        _ => {}
    }
    let policy =
        PolicyStore::open(&options.policy, &options.state_dir).map_err(DaemonError::Policy)?;
    if let Some(root) = root_above(&policy.current, &options.state_dir) {
        return Err(DaemonError::StateBelowRoot { directory: options.state_dir.clone(), root });
    }
    let _lock = lock(&options.state_dir)?;
    let mut mounts = MountWatch::open(Path::new(mount_table::HOST))
        .map_err(|source| DaemonError::NoMountTable { path: mount_table::HOST.into(), source })?;
    let origin = origin::of_this_host().map_err(failed("read the host's name and boot id"))?;
    let (state, state_problem) = StateFile::open(&options.state_dir, &origin.boot_id)?;
    let readers = reader_group();
    if readers.is_none() {
        tracing::info!(
            group = GROUP,
            "there is no such group: only root reads the audit log and asks the agent"
        );
    }
    let audit = AuditFile::open(
        &options.audit,
        origin,
        AuditOptions { readers, ..AuditOptions::default() },
    )?;
    let server = Server::bind(ServerOptions::new(options.run_dir.clone(), options.audit.clone()))?;
    let (events, _) = broadcast::channel(FOLLOWERS_LAG);

    let succession = Succession::begin(&options.pin_dir)?;
    let has_programs = succession.has_programs();
    let mut ladder = Ladder::of_this_host(succession.pins(), has_programs, policy.current.tier());
    let foundation = ladder.next()?;
    let maps_directory = foundation.map_directory();
    let mut maps = foundation.maps()?;
    succession.carry_into(&mut maps)?;
    let records = reactor::watch(maps::records(&maps_directory)?, Interest::READABLE)
        .map_err(failed("watch the records"))?;
    let (rollbacks, mut rolling) = Rollbacks::new(maps_directory);
    let (nodes, mut observations) = NodeTracker::new(&options.state_dir, rollbacks);
    let mut agent = Agent::new(policy, (maps, succession), state, audit, events.clone(), nodes)?;
    agent.note_state_problem(state_problem);
    agent.keep_policy();
    agent.adopt_commands()?;
    agent.open_nodes(&mounts).await?;
    let mut answers = agent.put_in_force(&options, foundation, ladder, &mounts)?;
    let command_ended = agent.command_ended();

    let mut following = Following::begin(agent.watched_paths(), agent.canary_interval());
    let mut followed = agent.reconciliations();
    let open = |program: PathBuf| {
        KernelLog::open(&program)
            .inspect_err(|error| {
                tracing::warn!(error = %chain(error), "the kernel program's own log cannot be \
                                                       read");
            })
            .ok()
    };
    let mut kernel_log = agent.any_program().and_then(open);
    let (commands, mut requests) = mpsc::channel::<Command>(64);
    let (stop, stopping) = watch::channel(false);
    let serving = tokio::spawn(server.run(commands, events, stopped(stopping)));
    let manager = notify::Notify::from_environment();
    let mut told = agent.status_text();
    manager.ready(&told);

    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut records = records;
    let mut settle: Option<(Instant, Vec<PathBuf>)> = None;
    tokio::pin!(shutdown);
    loop {
        let event = tokio::select! {
            () = &mut shutdown => break,
            changed = mounts.changed() => {
                if let Err(error) = changed {
                    tracing::error!(%error, "the mount table cannot be watched");
                }
                AgentEvent::MountsChanged
            }
            ready = records.readable_mut() => {
                let mut ready = ready.map_err(failed("wait for records"))?;
                agent.handle(AgentEvent::Records(ready.get_inner_mut()), &mounts);
                ready.clear_ready();
                continue;
            }
            ready = answered(answers.as_mut()) => {
                let mut ready = ready.map_err(failed("wait for the responder's records"))?;
                agent.handle(AgentEvent::Answers(ready.get_inner_mut()), &mounts);
                ready.clear_ready();
                continue;
            }
            Some((root, observation)) = observations.recv() => {
                AgentEvent::Observed(root, observation)
            }
            Some(()) = reloads.recv() => AgentEvent::ReloadAsked,
            () = command_ended.notified() => AgentEvent::CommandEnded,
            Some(happening) = rolling.recv() => AgentEvent::RollbackHappened(happening),
            Some(command) = requests.recv() => AgentEvent::Request(command),
            changed = watched(following.watcher.as_mut()) => {
                match changed {
                    Ok(paths) => {
                        let later = || (Instant::now() + SETTLE, Vec::new());
                        settle.get_or_insert_with(later).1.extend(paths);
                    }
                    Err(error) => tracing::error!(%error, "watched files"),
                }
                continue;
            }
            () = settled(settle.as_ref()), if settle.is_some() => {
                AgentEvent::FilesChanged(settle.take().map(|(_, paths)| paths).unwrap_or_default())
            }
            forwarded = forward(kernel_log.as_mut()), if kernel_log.is_some() => {
                if let Err(error) = forwarded {
                    tracing::warn!(%error, "the kernel program's own log ends here");
                    kernel_log = None;
                }
                continue;
            }
            _ = following.canary.tick() => AgentEvent::CanaryDue,
            _ = tick.tick() => AgentEvent::Tick,
        };
        let is_tick = matches!(event, AgentEvent::Tick);
        agent.handle(event, &mounts);
        if is_tick {
            manager.alive();
            let text = agent.status_text();
            if text != told {
                manager.status(&text);
                told = text;
            }
        }
        // Whatever the event was, a policy that has come into force by it is followed.
        if followed != agent.reconciliations() {
            followed = agent.reconciliations();
            following.follow(agent.watched_paths(), agent.canary_interval());
        }
    }
    manager.stopping(&agent.stopped_text());
    // Whatever is in the ring is written before the agent goes.
    agent.handle(AgentEvent::Records(records.get_mut()), &mounts);
    if let Some(answers) = &mut answers {
        agent.handle(AgentEvent::Answers(answers.get_mut()), &mounts);
    }
    agent.stop();
    let _ = stop.send(true);
    if let Ok(Err(error)) = serving.await {
        tracing::warn!(%error, "control socket");
    }
    Ok(())
}

/// Shows in `systemctl status` why the agent does not run.
pub fn tell_failure(exit: Exit, message: &str) {
    let text = format!("not running (exit code {}): {message}", exit as u8);
    notify::Notify::from_environment().status(&text);
}

/// Removes all pins, ends responders, and makes sealed mounts writable: nothing is enforced
/// afterwards.
pub fn unload(pin_dir: &Path, state_dir: &Path) -> Result<(), DaemonError> {
    let _lock = lock(state_dir)?;
    let layouts = crate::host::bpf::layouts::Layouts::open(pin_dir).map_err(LoadError::Pins)?;
    let origin = origin::of_this_host().map_err(failed("read the host's name and boot id"))?;
    fanotify::unload(pin_dir, state_dir, &origin.boot_id)?;
    Ok(layouts.unload().map_err(LoadError::Pins)?)
}

/// One agent at a time.
fn lock(state_dir: &Path) -> Result<Flock<std::fs::File>, DaemonError> {
    std::fs::create_dir_all(state_dir).map_err(failed("create the state directory"))?;
    let path = state_dir.join(paths::LOCK_NAME);
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed("open the lock in the state directory"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| DaemonError::Locked { lock: path })
}

async fn settled(settle: Option<&(Instant, Vec<PathBuf>)>) {
    if let Some((when, _)) = settle {
        sleep_until(*when).await;
    }
}

async fn watched(watcher: Option<&mut PathWatcher>) -> io::Result<Vec<PathBuf>> {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

async fn answered(
    answers: Option<&mut Answers>,
) -> io::Result<AsyncFdReadyMutGuard<'_, std::fs::File>> {
    match answers {
        Some(answers) => answers.readable_mut().await,
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
