//! The agent's process: wiring only.
//!
//! One task owns all state ([`agent::Agent`]); everything else sends it events: the mount table,
//! the watched paths, the kernel's records, requests from the control socket, and time. Nothing
//! here decides what to protect.

mod agent;
mod clusters;
pub mod command_line;
pub mod control;
mod engine;
mod exec;
mod following;
mod last_good;
mod node;
mod nodes;
mod notify;
mod operator;
mod policy;
mod pools;
mod posture;
mod report;
mod requester;
mod requests;
mod rollback;
mod status_text;
mod succession;
mod telemetry;
mod tiers;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::host::mount_table;
use crate::host::state_file::{StateError, StateFile};
use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyMutGuard};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::daemon::control::access::{GROUP, reader_group};
use crate::daemon::control::{Command, Server, ServerOptions, SocketError};
use crate::host::audit_log::{AuditError, AuditFile, AuditOptions, origin};
use crate::host::bpf::logs::KernelLog;
use crate::host::bpf::{CanaryError, LoadError, MapAccessError, maps};
use crate::host::fanotify;
use crate::host::fanotify::EngineError;
use crate::host::host_view;
use crate::host::mount_table::MountWatch;
use crate::host::paths;
use crate::host::reactor;
use crate::host::watch::PathWatcher;
use crate::model::errors::chain;
use crate::model::exit::Exit;
use crate::model::policy::PolicyErrors;
use crate::model::posture::State;

/// Where everything is.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The policy file.
    #[arg(long, value_name = "FILE", default_value = paths::POLICY)]
    pub policy: PathBuf,
    /// State that survives a reboot. Not below a guarded root.
    #[arg(long, value_name = "DIR", default_value = paths::STATE_DIR)]
    pub state_dir: PathBuf,
    /// Directory of the control socket.
    #[arg(long, value_name = "DIR", default_value = paths::RUN_DIR)]
    pub run_dir: PathBuf,
    /// The audit log.
    #[arg(long, value_name = "FILE", default_value = paths::AUDIT)]
    pub audit: PathBuf,
    /// Pins of programs, maps and links; on a bpffs.
    #[arg(long, value_name = "DIR", default_value = paths::PIN_DIR)]
    pub pin_dir: PathBuf,
    /// Take the container that this runs in for the host, as a demonstration in namespaces of its
    /// own wants it.
    #[arg(long, hide = true)]
    pub container_as_host: bool,
}

/// Why the agent does not run.
#[derive(Debug, Error)]
pub enum DaemonError {
    #[error("the policy is not usable:\n{0}")]
    Policy(PolicyErrors),
    #[error(
        "the state directory {directory} lies below the guarded root {root}: choose another with \
         --state-dir"
    )]
    StateBelowRoot { directory: PathBuf, root: PathBuf },
    #[error(
        "this process runs in the PID namespace {found}, which is a container's: it would take the \
         host for a guest, and allow what it is to deny. Nothing was changed: run it on the host, \
         or give its container the host's PID namespace (docker run --pid=host, Kubernetes: \
         hostPID: true) and mounts"
    )]
    InContainer { found: String },
    #[error("another agent holds {lock}: stop it first (systemctl stop guard-agent)")]
    Locked { lock: PathBuf },
    #[error("the mount table has no line for {path}: is /proc mounted?")]
    NoMountTable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "nothing is enforced ({reasons}); run `guardctl doctor` for the fix (policy `[agent] \
         on_inactive = \"run\"` keeps the agent running all the same)"
    )]
    Inactive {
        reasons: String,
        #[source]
        source: CanaryError,
    },
    #[error("the policy could not be brought into the kernel's maps: {detail}")]
    NotReconciled { detail: String },
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Pins(#[from] crate::host::bpf::pins::PinError),
    #[error(transparent)]
    Map(#[from] MapAccessError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("{operation}")]
    Io {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
}

impl DaemonError {
    /// The process's exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Policy(_) | Self::StateBelowRoot { .. } => Exit::Policy,
            Self::Inactive { .. }
            | Self::InContainer { .. }
            | Self::Load(
                LoadError::NoHook { .. }
                | LoadError::NoBtf(_)
                | LoadError::Btf(_)
                | LoadError::NoObject
                | LoadError::NoFunction { .. }
                | LoadError::Program(_),
            ) => Exit::Inactive,
            Self::Load(LoadError::Incompatible { .. } | LoadError::OlderPins { .. }) => {
                Exit::IncompatiblePins
            }
            _ => Exit::Failure,
        }
    }
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::Io { operation, source }
}

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
    let policy = policy::LoadedPolicy::load_or_last_good(&options.policy, &options.state_dir)
        .map_err(DaemonError::Policy)?;
    if let Some(root) = policy::root_above(&policy.policy, &options.state_dir) {
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

    let succession = succession::Succession::begin(&options.pin_dir)?;
    let has_programs = succession.has_programs();
    let mut ladder =
        tiers::Ladder::of_this_host(succession.pins(), has_programs, policy.policy.tier());
    let foundation = ladder.next()?;
    let maps_directory = foundation.map_directory();
    let mut maps = foundation.maps()?;
    succession.carry_into(&mut maps)?;
    let records = reactor::watch(maps::records(&maps_directory)?, Interest::READABLE)
        .map_err(failed("watch the records"))?;
    let (rollbacks, mut rolling) = rollback::Rollbacks::new(maps_directory);
    let (nodes, mut observations) = nodes::Nodes::new(&options.state_dir, rollbacks);
    let mut agent = agent::Agent::new(
        &options,
        policy,
        (maps, succession),
        state,
        audit,
        events.clone(),
        nodes,
    )?;
    agent.note_state_problem(state_problem);
    agent.keep_policy();
    agent.adopt_commands()?;
    // The policy is in the maps before anything is attached: the first decision already knows it.
    agent.open_nodes(&mounts).await;
    agent.check_reconciled()?;
    agent.put_in_force(foundation, ladder, &mounts)?;
    let mut answers = agent.take_answers();
    let command_ended = agent.command_ended();

    let mut following = following::Following::begin(agent.watched_paths(), agent.canary_interval());
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
        tokio::select! {
            () = &mut shutdown => break,
            changed = mounts.changed() => {
                if let Err(error) = changed {
                    tracing::error!(%error, "the mount table cannot be watched");
                }
                agent.note_mounts_changed();
                agent.reconcile(&mounts);
            }
            ready = records.readable_mut() => {
                let mut ready = ready.map_err(failed("wait for records"))?;
                agent.drain_records(ready.get_inner_mut());
                ready.clear_ready();
            }
            ready = answered(answers.as_mut()) => {
                let mut ready = ready.map_err(failed("wait for the responder's records"))?;
                agent.drain_answers(ready.get_inner_mut());
                ready.clear_ready();
            }
            Some((root, observation)) = observations.recv() => {
                agent.observed(&root, observation, &mounts);
            }
            Some(()) = reloads.recv() => {
                agent.reload_policy();
                agent.reconcile(&mounts);
            }
            () = command_ended.notified() => agent.watch_commands(),
            Some(happening) = rolling.recv() => agent.rollback_happened(&happening, &mounts),
            Some(command) = requests.recv() => agent.handle(command, &mounts),
            changed = watched(following.watcher.as_mut()) => match changed {
                Ok(paths) => settle.get_or_insert((Instant::now() + SETTLE, Vec::new())).1.extend(paths),
                Err(error) => tracing::error!(%error, "watched files"),
            },
            () = settled(settle.as_ref()), if settle.is_some() => {
                let (_, paths) = settle.take().unwrap_or((Instant::now(), Vec::new()));
                if paths.contains(&options.policy) {
                    agent.reload_policy();
                }
                agent.reconcile(&mounts);
            }
            forwarded = forward(kernel_log.as_mut()), if kernel_log.is_some() => {
                if let Err(error) = forwarded {
                    tracing::warn!(%error, "the kernel program's own log ends here");
                    kernel_log = None;
                }
            }
            _ = following.canary.tick() => agent.prove(),
            _ = tick.tick() => {
                agent.tick(&mounts);
                manager.alive();
                let text = agent.status_text();
                if text != told {
                    manager.status(&text);
                    told = text;
                }
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
    agent.drain_records(records.get_mut());
    if let Some(answers) = &mut answers {
        agent.drain_answers(answers.get_mut());
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
    answers: Option<&mut AsyncFd<std::fs::File>>,
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

/// Whether a posture is one to start with.
fn is_active(state: State) -> bool {
    state != State::Inactive
}

/// A line for those who follow, or nothing if nobody does.
fn publish(events: &broadcast::Sender<Arc<str>>, line: Arc<str>) {
    let _ = events.send(line);
}
