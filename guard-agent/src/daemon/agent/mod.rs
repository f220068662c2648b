//! The one owner of the agent's parts. It takes events, sends each to the parts it concerns, and
//! writes down the changes; each part makes its own decisions.

mod exec;
mod marks;
mod nodes;
mod operator;
mod reconcile;
mod records;
mod report;
mod requester;
mod requests;
mod start;
mod status_text;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use guard_common::{Counter, Mode};
use tokio::sync::{Notify, broadcast};

use super::audit_trail::AuditTrail;
use super::control::Command;
use super::enforcement::Enforcement;
use super::error::DaemonError;
use super::grants::Grants;
use super::mount_view::MountView;
use super::node_tracker::NodeTracker;
use super::policy_store::{PolicyStore, Reload, interval_ns};
use super::pool_book::{Asked, PoolBook};
use super::posture_tracker::{PostureFacts, PostureTracker};
use super::rollback::Happening;
use super::succession::Succession;
use crate::host::audit_log::AuditFile;
use crate::host::bpf::{CanaryError, Maps, object};
use crate::host::clock::now;
use crate::host::incus::Observation;
use crate::host::mount_table::MountWatch;
use crate::host::state_file::StateFile;
use crate::model::audit::Body;
use crate::model::audit::record::{AgentBody, AgentChange, LeaseChange, PolicyChange};
use crate::model::errors::chain;
use crate::model::posture::assess::failed_nodes;
use crate::model::posture::trouble;
use crate::model::time::Time;
use status_text::Facts;

/// Everything the agent knows.
pub(super) struct Agent {
    policy: PolicyStore,
    enforcement: Enforcement,
    grants: Grants,
    nodes: NodeTracker,
    view: MountView,
    book: PoolBook,
    trail: AuditTrail,
    posture: PostureTracker,
    /// Other layouts of the maps, until this agent's is proven.
    succession: Succession,
    pulse: Pulse,
}

/// Counts, moments and signals of the agent's own run.
struct Pulse {
    started: Time,
    ticks: u64,
    /// Number of reconciliations. Watched paths and the canary's interval may have changed with
    /// each.
    reconciliations: u64,
    /// Counter `pools_ended` at the last tick.
    ended_seen: u64,
    /// Counter `error_incidents_full` at the last scan.
    unrecorded_seen: u64,
    /// The process of a lease has ended.
    command_ended: Arc<Notify>,
}

/// Something that the agent is told.
pub(super) enum AgentEvent<'a> {
    MountsChanged,
    /// The kernel's records wait in the ring.
    Records(&'a mut RingBuf<MapData>),
    /// The responder's records wait in the pipe.
    Answers(&'a mut File),
    /// Evidence of the node of a root.
    Observed(Arc<Path>, Observation),
    /// Somebody asks for the policy file to be read again.
    ReloadAsked,
    /// Watched files have changed.
    FilesChanged(Vec<PathBuf>),
    /// The process of a lease has ended.
    CommandEnded,
    /// A rollback's thread reports its progress.
    RollbackHappened(Happening),
    Request(Command),
    /// Enforcement is to be proven anew.
    CanaryDue,
    Tick,
}

/// Why the maps are brought up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReconcileCause {
    Start,
    Mounts,
    Policy,
    /// A node is in another state, or its state depends on pools that nobody has seen yet.
    Node,
    Rollback,
    Due,
    /// An operator has asked for another mode of a pool.
    Asked(Asked),
}

/// Ticks between two rounds that no event asked for.
const ROUND: u64 = 5;

impl Agent {
    /// Takes over the contents of the maps, from any layout.
    pub(super) fn new(
        policy: PolicyStore,
        (mut maps, succession): (Maps, Succession),
        state: StateFile,
        audit: AuditFile,
        events: broadcast::Sender<Arc<str>>,
        nodes: NodeTracker,
    ) -> Result<Self, DaemonError> {
        let observed = maps.observed()?;
        maps.sweep_counters(&observed)?;
        let unrecorded_seen =
            maps.counters()?.get(&Counter::ErrorIncidentsFull).copied().unwrap_or(0);
        let grants = Grants::open(state, &observed, &policy.current, now().boot_ns);
        let trail = AuditTrail::new(audit, events, interval_ns(&policy.current));
        Ok(Self {
            policy,
            enforcement: Enforcement::new(maps),
            grants,
            nodes,
            view: MountView::default(),
            book: PoolBook::default(),
            trail,
            posture: PostureTracker::default(),
            succession,
            pulse: Pulse {
                started: now().time,
                ticks: 0,
                reconciliations: 0,
                ended_seen: 0,
                unrecorded_seen,
                command_ended: Arc::default(),
            },
        })
    }

    /// Takes any event.
    pub(super) fn handle(&mut self, event: AgentEvent<'_>, mounts: &MountWatch) {
        match event {
            AgentEvent::MountsChanged => {
                if let Some(means) = self.enforcement.marking() {
                    means.mounts_changed();
                }
                self.bring_up_to_date(ReconcileCause::Mounts, mounts);
            }
            AgentEvent::Records(ring) => self.drain_records(ring),
            AgentEvent::Answers(pipe) => self.drain_answers(pipe),
            AgentEvent::Observed(root, observation) => self.observed(&root, observation, mounts),
            AgentEvent::ReloadAsked => {
                self.reload_policy();
                self.bring_up_to_date(ReconcileCause::Policy, mounts);
            }
            AgentEvent::FilesChanged(paths) => {
                if paths.iter().any(|path| path == self.policy.file()) {
                    self.reload_policy();
                }
                self.bring_up_to_date(ReconcileCause::Policy, mounts);
            }
            AgentEvent::CommandEnded => self.watch_commands(),
            AgentEvent::RollbackHappened(happening) => self.rollback_happened(&happening, mounts),
            AgentEvent::Request(command) => self.answer_command(command, mounts),
            AgentEvent::CanaryDue => self.prove(),
            AgentEvent::Tick => self.tick(mounts),
        }
    }

    /// Proves enforcement anew.
    fn prove(&mut self) {
        let proven = self.enforcement.prove();
        if let Some(means) = self.enforcement.means() {
            means.note_troubles(&mut self.posture.troubles);
        }
        match proven {
            Some(Ok(())) => self.canary_passed(),
            Some(Err(error)) => self.canary_failed(&error),
            None => {}
        }
    }

    fn canary_passed(&mut self) {
        self.posture.troubles.clear(trouble::CANARY);
        self.assess_tier();
        self.assess_posture();
    }

    fn canary_failed(&mut self, error: &CanaryError) {
        self.posture.troubles.set(trouble::CANARY, chain(error));
        self.assess_posture();
    }

    /// Works the posture out, and writes it down if it is another one.
    fn assess_posture(&mut self) {
        let states = self.nodes.iter().map(|(root, node)| (root, node.state()));
        let facts = PostureFacts {
            policy: &self.policy.current,
            rejected: self.policy.rejected.as_ref(),
            failed_nodes: failed_nodes(states),
            proven: self.enforcement.proven_tier(),
        };
        if let Some(body) = self.posture.assess(facts) {
            self.trail.write(Body::Posture(body));
        }
    }

    /// Reads the policy file again. The caller reconciles.
    fn reload_policy(&mut self) {
        match self.policy.reload() {
            Reload::Unchanged => {}
            Reload::Loaded => {
                self.trail.incidents.set_interval(interval_ns(&self.policy.current));
                self.keep_policy();
                self.take_up_nodes();
                self.nodes.start_observers();
                self.assess_tier();
                self.write_policy(PolicyChange::Loaded, Vec::new());
            }
            Reload::Rejected { is_new: true } => {
                self.write_policy(PolicyChange::Rejected, self.policy.errors().to_vec());
            }
            Reload::Rejected { is_new: false } => {}
        }
        self.assess_posture();
    }

    /// Keeps the policy in force, for a start that finds a wrong file. Tried again with each tick
    /// if it fails.
    pub(super) fn keep_policy(&mut self) {
        let troubles = &mut self.posture.troubles;
        match self.policy.keep() {
            Ok(()) => troubles.clear(trouble::LAST_GOOD),
            Err(error) => {
                if troubles.detail(trouble::LAST_GOOD).is_none() {
                    tracing::error!(%error, "the policy in force could not be kept for the next \
                                             start");
                }
                troubles.set(trouble::LAST_GOOD, error.to_string());
            }
        }
    }

    /// Everything that is due by time.
    fn tick(&mut self, mounts: &MountWatch) {
        self.pulse.ticks += 1;
        let moment = now().boot_ns;
        let expired = self.grants.expire_releases(moment);
        self.close_leases(LeaseChange::Expired, |lease| lease.ends_boot_ns <= moment);
        self.watch_commands();
        let ended = self.counter(Counter::PoolsEnded);
        let written = self.nodes.retry();
        self.assess_journals();
        if self.grants.is_unsaved() {
            self.save_state();
        }
        if self.posture.troubles.detail(trouble::LAST_GOOD).is_some() {
            self.keep_policy();
        }
        if expired
            || written
            || self.view.is_foreign_stale()
            || ended != self.pulse.ended_seen
            || self.pulse.ticks.is_multiple_of(ROUND)
        {
            self.pulse.ended_seen = ended;
            if self.policy.has_changed() {
                self.reload_policy();
            }
            self.bring_up_to_date(ReconcileCause::Due, mounts);
        }
        self.drive_nodes(mounts);
        if let Some(means) = self.enforcement.marking() {
            means.tick();
            means.note_troubles(&mut self.posture.troubles);
        }
        self.scan_incidents();
        self.trail.flush();
        let audit = self.trail.status();
        self.posture.troubles.set_if(trouble::AUDIT, || {
            (audit.pending > 0)
                .then(|| format!("{} records wait for {}", audit.pending, audit.path))
        });
        self.assess_posture();
    }

    /// Number of reconciliations.
    pub(super) fn reconciliations(&self) -> u64 {
        self.pulse.reconciliations
    }

    /// To be awaited: the process of a lease has ended.
    pub(super) fn command_ended(&self) -> Arc<Notify> {
        Arc::clone(&self.pulse.command_ended)
    }

    /// Files that policy and roots depend on.
    pub(super) fn watched_paths(&self) -> Vec<PathBuf> {
        self.view.watched_paths(self.policy.file(), &self.policy.current)
    }

    /// Interval between canary checks.
    pub(super) fn canary_interval(&self) -> Duration {
        self.policy.current.canary_interval()
    }

    /// A pinned program, if there are programs.
    pub(super) fn any_program(&self) -> Option<PathBuf> {
        self.enforcement.means()?.any_program()
    }

    /// For `systemctl status`.
    pub(super) fn status_text(&self) -> String {
        self.status_facts().running()
    }

    /// The same for the time after the agent's end.
    pub(super) fn stopped_text(&self) -> String {
        self.status_facts().stopped()
    }

    fn status_facts(&self) -> Facts<'_> {
        Facts {
            posture: self.posture.posture(),
            pools: self.book.pools().count(),
            sealed: self.book.pools().filter(|known| known.mode == Mode::Sealed).count(),
            leases: self.grants.leases().len(),
            policy: self.policy.generation,
            rejected: self.policy.errors().first().map(String::as_str),
        }
    }

    /// Reports a problem with the state file.
    pub(super) fn note_state_problem(&mut self, problem: Option<String>) {
        if let Some(problem) = problem {
            tracing::error!(problem, "the state file could not be understood");
            self.posture.troubles.set(trouble::STATE_LOST, problem);
        }
    }

    /// Writes the last records.
    pub(super) fn stop(&mut self) {
        self.scan_incidents();
        self.write_agent(AgentChange::Stopped);
        self.trail.flush();
    }

    /// Appends a record to the audit log, now.
    fn write(&mut self, body: Body) {
        self.trail.write(body);
    }

    fn write_policy(&mut self, change: PolicyChange, errors: Vec<String>) {
        self.write(Body::Policy(self.policy.record(change, errors)));
    }

    fn write_agent(&mut self, change: AgentChange) {
        self.write(Body::Agent(AgentBody {
            change,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            build: object::BUILD.to_owned(),
            pid: std::process::id(),
            previous_build: None,
        }));
    }
}
