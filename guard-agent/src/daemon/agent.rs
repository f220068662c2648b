//! The one owner of the agent's state: policy, pools, leases, posture.
//!
//! [`Agent::reconcile`] is the heart: read the mount table and the maps, plan, apply, and write
//! down what became different. It may be called at any time and as often as one likes.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use guard_common::{Counter, Mode, PoolKey, Tier};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, broadcast};

use super::nodes::Nodes;
use super::policy::{LoadedPolicy, interval_ns};
use super::pools::KnownPool;
use super::posture::Troubles;
use super::status_text::Facts;
use super::succession::Succession;
use super::tiers::{Foundation, Ladder, Reached};
use super::{DaemonError, Options, clusters, posture, publish};
use crate::daemon::control::Peer;
use crate::host::audit_log::AuditFile;
use crate::host::bpf::{CanaryError, Maps, Programs, canary, object};
use crate::host::clock::now;
use crate::host::fanotify::Engine;
use crate::host::mount_table::{MountWatch, foreign};
use crate::host::roots;
use crate::host::state_file::StateFile;
use crate::model::audit::record::{AgentBody, AgentChange, LeaseChange, PolicyChange};
use crate::model::audit::{Body, Place};
use crate::model::classify;
use crate::model::classify::Classification;
use crate::model::classify::clusters::Clusters;
use crate::model::errors::chain;
use crate::model::events::IncidentTracker;
use crate::model::mounts::Snapshot;
use crate::model::plan;
use crate::model::plan::{Desired, MapOperation, Overrides};
use crate::model::posture::{Posture, Reason};
use crate::model::time::{Stamp, Time};

/// Everything the agent knows.
pub struct Agent {
    pub(super) options: Options,
    pub(super) policy: LoadedPolicy,
    pub(super) maps: Maps,
    pub(super) programs: Option<Programs>,
    /// In place of programs, in the tier that answers from user space.
    pub(super) engine: Option<Engine>,
    /// Records of the engine, until the loop takes them.
    pub(super) answers: Option<AsyncFd<File>>,
    pub(super) state: StateFile,
    pub(super) audit: AuditFile,
    events: broadcast::Sender<Arc<str>>,
    pub(super) overrides: Overrides,
    /// Mount tables of the namespaces that policy names, by the namespaces' inodes.
    pub(super) foreign: BTreeMap<u32, Snapshot>,
    pub(super) snapshot: Snapshot,
    pub(super) classification: Classification,
    /// Which Ceph cluster a monitor belongs to, as far as this host has shown it.
    clusters: Clusters,
    pub(super) resolution: roots::Resolution,
    /// By generation.
    pub(super) pools: BTreeMap<u64, KnownPool>,
    /// Places of pools that ended, for records that come after the end.
    pub(super) past: BTreeMap<u64, Place>,
    pub(super) incidents: IncidentTracker,
    pub(super) nodes: Nodes,
    /// Other layouts of the maps, until this agent's is proven.
    pub(super) succession: Succession,
    pub(super) troubles: Troubles,
    pub(super) posture: Option<Posture>,
    /// What the host lacks; known once it was asked for.
    pub(super) preconditions: Option<Vec<Reason>>,
    pub(super) proven_at: Option<Time>,
    /// The tier that was put in force.
    pub(super) tier: Option<Tier>,
    /// Why stronger ones were not.
    pub(super) passed_over: Vec<String>,
    pub(super) started: Time,
    pub(super) ended_seen: u64,
    /// Counter `error_incidents_full` at the last look.
    pub(super) unrecorded_seen: u64,
    pub(super) ticks: u64,
    /// How often it has reconciled. Watched paths and the canary's interval may have changed with
    /// each.
    reconciliations: u64,
    /// Who asked for what is being carried out, and for which pool (its generation).
    pub(super) asked_by: Option<(u64, Peer)>,
    /// The process of a lease has ended.
    pub(super) command_ended: Arc<Notify>,
}

/// Ticks between two rounds that no event asked for.
const ROUND: u64 = 5;
impl Agent {
    /// Takes over what the maps hold, whatever layout they have come from.
    pub fn new(
        options: &Options,
        policy: LoadedPolicy,
        (mut maps, succession): (Maps, Succession),
        mut state: StateFile,
        audit: AuditFile,
        events: broadcast::Sender<Arc<str>>,
        nodes: Nodes,
    ) -> Result<Self, DaemonError> {
        let observed = maps.observed()?;
        maps.sweep_counters(&observed)?;
        let mut overrides = Overrides::adopt(&observed, &policy.policy, now().boot_ns);
        state.adopt_seals(&overrides.sealed);
        overrides.sealed.extend(&state.state.sealed);
        let interval = interval_ns(&policy.policy);
        let unrecorded_seen =
            maps.counters()?.get(&Counter::ErrorIncidentsFull).copied().unwrap_or(0);
        Ok(Self {
            options: options.clone(),
            policy,
            maps,
            programs: None,
            engine: None,
            answers: None,
            state,
            audit,
            events,
            overrides,
            snapshot: Snapshot::default(),
            foreign: BTreeMap::new(),
            classification: Classification::default(),
            clusters: Clusters::default(),
            resolution: roots::Resolution::default(),
            pools: BTreeMap::new(),
            past: BTreeMap::new(),
            incidents: IncidentTracker::new(interval),
            nodes,
            succession,
            troubles: Troubles::default(),
            posture: None,
            preconditions: None,
            proven_at: None,
            tier: None,
            passed_over: Vec::new(),
            started: now().time,
            ended_seen: 0,
            unrecorded_seen,
            ticks: 0,
            reconciliations: 0,
            asked_by: None,
            command_ended: Arc::default(),
        })
    }

    /// Attaches what was prepared (or another tier of the ladder), and proves it before any older
    /// programs go.
    pub fn put_in_force(
        &mut self,
        foundation: Foundation,
        mut ladder: Ladder,
        mounts: &MountWatch,
    ) -> Result<(), DaemonError> {
        // Makes room for what is denied meanwhile.
        self.drain_old_records();
        let reached = self.attach_and_prove(foundation, &mut ladder)?;
        self.passed_over = ladder.passed_over;
        let (programs, proven) = match reached {
            Reached::Programs(programs, proven) => (programs, proven),
            Reached::Maps(bare) => return self.put_engine_in_force(&bare, mounts),
        };
        let adopted = programs.adopted;
        self.tier = Some(programs.tier());
        let retired = match &proven {
            Ok(()) => {
                self.settle()?;
                let others = programs.retire_others()?;
                self.end_engines();
                others + self.take_over()?
            }
            Err(_) => 0,
        };
        let change = match (adopted, retired) {
            (true, _) => AgentChange::Adopted,
            (false, 0) => AgentChange::Started,
            (false, _) => AgentChange::Upgraded,
        };
        self.announce(change);
        if let Err(error) = proven {
            self.canary_failed(&error);
            if !self.may_run_inactive() {
                // What was attached before stays; what never answered goes.
                if !adopted {
                    programs.withdraw()?;
                }
                return Err(self.inactive(error));
            }
            self.programs = Some(programs);
            return Ok(());
        }
        self.programs = Some(programs);
        self.canary_passed();
        Ok(())
    }

    /// Whether policy lets the agent run although nothing has answered the canary. Not while
    /// programs of another layout enforce: this agent could tell them nothing.
    pub(super) fn may_run_inactive(&self) -> bool {
        self.policy.policy.allow_inactive() && !self.succession.is_pending()
    }

    /// Writes down that the agent is up, and with which policy.
    pub(super) fn announce(&mut self, change: AgentChange) {
        self.write_agent(change);
        let (policy, generation) = (self.policy.policy.hash().to_owned(), self.policy.generation);
        tracing::info!(build = object::BUILD, ?change, policy, generation, "agent is up");
        self.write_policy(PolicyChange::Loaded, Vec::new());
        if let Some(rejected) = &self.policy.rejected {
            // The file is wrong, and the last good policy was taken instead.
            self.write_policy(PolicyChange::Rejected, rejected.errors.clone());
        }
    }

    /// Why nothing is enforced.
    pub(super) fn inactive(&self, source: CanaryError) -> DaemonError {
        let reasons = self.posture.iter().flat_map(|posture| &posture.reasons);
        let reasons: Vec<String> =
            reasons.map(|reason| format!("{}: {}", reason.code, reason.detail)).collect();
        DaemonError::Inactive { reasons: reasons.join("; "), source }
    }

    /// Proves enforcement anew.
    pub fn prove(&mut self) {
        if let Some(engine) = &mut self.engine {
            match engine.prove(&mut self.maps) {
                Ok(()) => self.canary_passed(),
                Err(error) => self.canary_failed(&error),
            }
        }
        let Some(programs) = &self.programs else { return };
        let pinned = programs.is_pinned();
        self.troubles.set_if(posture::UNPINNED, || {
            (!pinned).then(|| "a link is no longer pinned".to_owned())
        });
        match canary::prove(&mut self.maps, programs.tokens()) {
            Ok(()) => {
                self.note_skipped();
                self.canary_passed();
            }
            Err(error) => self.canary_failed(&error),
        }
    }

    pub(super) fn canary_passed(&mut self) {
        self.proven_at = Some(now().time);
        self.troubles.clear(posture::CANARY);
        self.judge_tier();
        self.judge_posture();
    }

    pub(super) fn canary_failed(&mut self, error: &CanaryError) {
        self.troubles.set(posture::CANARY, chain(error));
        self.judge_posture();
    }

    /// At start nothing may be attached to maps that do not hold the policy.
    pub fn check_reconciled(&self) -> Result<(), DaemonError> {
        match self.troubles.detail(posture::RECONCILE) {
            Some(detail) => Err(DaemonError::NotReconciled { detail }),
            None => Ok(()),
        }
    }

    /// Makes the maps say what policy and mount table ask for.
    pub fn reconcile(&mut self, mounts: &MountWatch) {
        self.reconciliations += 1;
        let mut result = self.try_reconcile(mounts);
        // A pool that has appeared or ended may give its node another state, and that other modes.
        if self.tell_nodes_of_pools() {
            result = self.try_reconcile(mounts);
        }
        self.write_later_journals();
        match result {
            Ok(()) => self.troubles.clear(posture::RECONCILE),
            Err(error) => {
                tracing::error!(%error, "the kernel's maps could not be brought up to date");
                self.troubles.set(posture::RECONCILE, error);
            }
        }
        self.judge_posture();
    }

    fn try_reconcile(&mut self, mounts: &MountWatch) -> Result<(), String> {
        let text = |error: crate::host::bpf::MapAccessError| chain(&error);
        let ended = self.maps.superblocks_ended().map_err(text)?;
        self.snapshot = mounts.read().map_err(|error| format!("read the mount table: {error}"))?;
        self.troubles.set_if(posture::MOUNT_TABLE, || {
            let problem = self.snapshot.problems().first()?;
            Some(format!(
                "{} lines could not be read; the first: {problem}",
                self.snapshot.problems().len()
            ))
        });
        self.resolution = roots::resolve(&self.policy.policy, &self.snapshot);
        self.troubles.set_if(posture::UNRESOLVED, || {
            // What is absent is waited for; what is there and cannot be looked at is a gap.
            let gaps = self.resolution.problems.iter().filter(|problem| !problem.is_absence());
            let gaps: Vec<String> = gaps.map(|problem| chain(problem)).collect();
            (!gaps.is_empty()).then(|| gaps.join("; "))
        });
        let effective = self.policy.policy.with_root_paths(&self.resolution.root_paths);
        clusters::learn(&mut self.clusters, &self.snapshot, Path::new("/"));
        self.foreign = foreign::tables(&self.resolution.resolved.namespaces, Path::new("/proc"));
        let all = self.snapshot.with_superblocks_of(self.foreign.values());
        self.classification = classify::classify(&all, &effective, &self.clusters);
        self.troubles.set_if(posture::NO_ACTOR, || {
            posture::without_actor(&effective, &self.classification, &self.resolution.resolved)
        });

        if self.overrides.may_seal(&effective) {
            self.resolution.resolved.pool_roots =
                roots::pool_roots(&self.classification, &self.snapshot);
        }

        self.remove_unmounted()?;
        let observed = self.maps.observed().map_err(text)?;
        self.keep_seals(&observed);
        let moment = now().boot_ns;
        let meta = self.maps.meta.read().map_err(text)?;
        let plan = plan::plan(
            &Desired {
                policy: &effective,
                classification: &self.classification,
                resolved: &self.resolution.resolved,
                overrides: &self.overrides,
                host_mnt_ns: host_mount_namespace()?,
                now_boot_ns: moment,
                next_generation: meta.next_generation,
            },
            &observed,
        );
        let applied = self.maps.apply(&plan).map_err(text);
        let created = plan.operations.iter().filter_map(|operation| match operation {
            MapOperation::CreatePool { key, entry } => Some((*key, entry.pool_id)),
            _ => None,
        });
        self.recheck(created.collect(), ended, mounts)?;
        self.note_pools()?;
        applied?;
        // The maps first: whoever is asked from now on knows the pool.
        self.order_marks()
    }

    /// A pool's id may change while it is mounted: more is known of its cluster, or a newer agent
    /// tells pools apart better. An operator's seal goes along.
    fn keep_seals(&mut self, observed: &plan::Observed) {
        for pool in plan::seals_to_keep(&self.classification, observed) {
            if self.overrides.sealed.insert(pool.pool_id) {
                tracing::info!(
                    pool = pool.name,
                    "the id of a sealed pool has changed: it stays sealed"
                );
                self.state.adopt_seals(&self.overrides.sealed);
            }
        }
    }

    /// A device number may have changed hands between reading the mount table and writing an entry:
    /// then the entry must go, since it would speak for a stranger.
    fn recheck(
        &mut self,
        created: Vec<(PoolKey, u64)>,
        ended: u64,
        mounts: &MountWatch,
    ) -> Result<(), String> {
        if created.is_empty()
            || self.maps.superblocks_ended().map_err(|error| chain(&error))? == ended
        {
            return Ok(());
        }
        let snapshot = mounts.read().map_err(|error| format!("read the mount table: {error}"))?;
        let foreign = foreign::tables(&self.resolution.resolved.namespaces, Path::new("/proc"));
        let snapshot = snapshot.with_superblocks_of(foreign.values());
        let effective = self.policy.policy.with_root_paths(&self.resolution.root_paths);
        let classification = classify::classify(&snapshot, &effective, &self.clusters);
        for (key, pool_id) in created {
            if !classification.has(key, pool_id) {
                self.maps.pools.remove(&key).map_err(|error| chain(&error))?;
            }
        }
        Ok(())
    }

    /// Everything that is due by time.
    pub fn tick(&mut self, mounts: &MountWatch) {
        self.ticks += 1;
        let moment = now().boot_ns;
        let expired = self.overrides.released.values().any(|ends| *ends <= moment);
        if expired {
            self.overrides.released.retain(|_, ends| *ends > moment);
        }
        self.close_leases(LeaseChange::Expired, |lease| lease.ends_boot_ns <= moment);
        self.watch_commands();
        let ended = self.counter(Counter::PoolsEnded);
        let written = self.retry_journals();
        if self.state.is_unsaved() {
            self.save_state();
        }
        if self.troubles.detail(posture::LAST_GOOD).is_some() {
            self.keep_policy();
        }
        // Nothing tells of a change in another namespace.
        let namespaces = &self.resolution.resolved.namespaces;
        let elsewhere = foreign::tables(namespaces, Path::new("/proc")) != self.foreign;
        if expired
            || written
            || elsewhere
            || ended != self.ended_seen
            || self.ticks.is_multiple_of(ROUND)
        {
            self.ended_seen = ended;
            if self.policy.has_changed(&self.options.policy) {
                self.reload_policy();
            }
            self.reconcile(mounts);
        }
        self.drive_nodes(mounts);
        self.tick_engine();
        self.scan_incidents();
        if let Err(error) = self.audit.flush() {
            tracing::error!(error = chain(&error), "audit log");
        }
        let audit = self.audit.status();
        self.troubles.set_if(posture::AUDIT, || {
            (audit.pending > 0)
                .then(|| format!("{} records wait for {}", audit.pending, audit.path))
        });
        self.judge_posture();
    }

    /// How often it has reconciled.
    pub fn reconciliations(&self) -> u64 {
        self.reconciliations
    }

    /// Files that policy and roots depend on.
    pub fn watched_paths(&self) -> Vec<PathBuf> {
        let policy = &self.policy.policy;
        let mut paths = vec![self.options.policy.clone()];
        for root in policy.roots() {
            paths.push(root.path().to_owned());
            for actor in root.actors() {
                paths.extend(
                    actor.cgroup().and_then(|path| roots::cgroup_directory(path, &self.snapshot)),
                );
                paths.extend(actor.executable().map(Path::to_owned));
            }
        }
        // Watching follows links, which must never hang on a dead server.
        paths.retain(|path| !roots::is_on_network(path, &self.snapshot));
        paths
    }

    /// How often the canary sings.
    pub fn canary_interval(&self) -> std::time::Duration {
        self.policy.policy.canary_interval()
    }

    /// A pinned program, if there are programs.
    pub fn any_program(&self) -> Option<PathBuf> {
        self.programs.as_ref().map(Programs::any_program)
    }

    /// For `systemctl status`.
    pub fn status_text(&self) -> String {
        self.status_facts().running()
    }

    /// The same for the time after the agent's end.
    pub fn stopped_text(&self) -> String {
        self.status_facts().stopped()
    }

    fn status_facts(&self) -> Facts<'_> {
        let rejected = self.policy.rejected.as_ref().and_then(|rejected| rejected.errors.first());
        Facts {
            posture: self.posture.as_ref(),
            pools: self.pools.len(),
            sealed: self.pools.values().filter(|known| known.mode == Mode::Sealed).count(),
            leases: self.state.state.leases.len(),
            policy: self.policy.generation,
            rejected: rejected.map(String::as_str),
        }
    }

    /// Says what was wrong with the state file.
    pub fn note_state_problem(&mut self, problem: Option<String>) {
        if let Some(problem) = problem {
            tracing::error!(problem, "the state file could not be understood");
            self.troubles.set(posture::STATE_LOST, problem);
        }
    }

    /// Writes the last records.
    pub fn stop(&mut self) {
        self.scan_incidents();
        self.write_agent(AgentChange::Stopped);
        if let Err(error) = self.audit.flush() {
            tracing::error!(error = chain(&error), "audit log");
        }
    }

    /// Appends a record to the audit log, now.
    pub(super) fn write(&mut self, body: Body) {
        self.write_at(now(), body);
    }

    /// Appends a record of what happened at `stamp`.
    pub(super) fn write_at(&mut self, stamp: Stamp, body: Body) {
        let appended = self.audit.append(stamp, body);
        publish(&self.events, appended.line);
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

/// Inode of the mount namespace of PID 1.
fn host_mount_namespace() -> Result<u32, String> {
    use std::os::unix::fs::MetadataExt;
    let path = "/proc/1/ns/mnt";
    let metadata = std::fs::metadata(path).map_err(|error| format!("{path}: {error}"))?;
    u32::try_from(metadata.ino()).map_err(|error| format!("{path}: {error}"))
}
