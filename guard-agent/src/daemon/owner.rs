//! The one owner of the agent's state: policy, pools, leases, posture.
//!
//! [`Owner::reconcile`] is the heart: read the mount table and the maps, plan, apply, and write down what
//! became different. It may be called at any time and as often as one likes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use guard_common::{Mode, PoolEntry};
use tokio::sync::broadcast;

use super::posture::Troubles;
use super::state::StateFile;
use super::{DaemonError, Options, chain, last_good, posture, publish};
use crate::audit::record::{
    AgentBody, AgentChange, LeaseChange, ModeBody, ModeCause, PolicyBody, PolicyChange, PoolBody, PoolChange,
    device_text, pool_id_text,
};
use crate::audit::{AuditFile, Body, Place};
use crate::bpf::{CanaryError, Maps, Programs, canary, object};
use crate::classify::{self, Classification, Pool};
use crate::control::Peer;
use crate::control::report::RejectedPolicy;
use crate::events::{IncidentTracker, Name, Stamp, Time, clock};
use crate::mounts::{MountWatch, Snapshot};
use crate::plan::{self, Desired, MapOperation, Overrides};
use crate::policy::{Policy, PolicyErrors, file};
use crate::posture::{Posture, Reason};
use crate::roots::{self, ResolveError};

/// The policy in force.
#[derive(Debug)]
pub struct LoadedPolicy {
    pub policy: Policy,
    pub text: String,
    pub generation: u64,
    pub loaded: Time,
    pub rejected: Option<RejectedPolicy>,
}

impl LoadedPolicy {
    /// Reads and validates a policy file.
    pub fn load(path: &Path) -> Result<Self, PolicyErrors> {
        let text = file::read(path)?;
        let policy = crate::policy::parse(&text, path)?;
        Ok(Self { policy, text, generation: 1, loaded: now().time, rejected: None })
    }

    /// As [`load`](Self::load); if the file is wrong, the last policy that was in force, with the
    /// problems noted: a host must not boot unprotected because of a misspelt key.
    pub fn load_or_last_good(path: &Path, state_dir: &Path) -> Result<Self, PolicyErrors> {
        let errors = match Self::load(path) {
            Ok(loaded) => return Ok(loaded),
            Err(errors) => errors,
        };
        let Ok(mut last) = Self::load(&last_good::path(state_dir)) else { return Err(errors) };
        let lines: Vec<String> = errors.to_string().lines().map(str::to_owned).collect();
        tracing::error!(file = %path.display(), errors = ?lines, "policy rejected, the last good one is in force");
        last.rejected = Some(RejectedPolicy { at: now().time, errors: lines });
        Ok(last)
    }
}

/// A pool that has an entry in the kernel.
#[derive(Clone, Debug)]
pub struct KnownPool {
    /// What the mount table says; as it was last seen, if the mount is gone and the superblock lives.
    pub pool: Pool,
    /// Path of the guarded root.
    pub root: PathBuf,
    pub entry: PoolEntry,
    pub mode: Mode,
    pub cause: ModeCause,
}

impl KnownPool {
    /// How the audit log names it.
    pub fn place(&self) -> Place {
        Place {
            pool_id: Some(pool_id_text(self.pool.pool_id)),
            pool: Some(self.pool.name.clone()),
            mountpoint: Some(self.pool.mountpoint.display().to_string()),
            generation: Some(self.entry.generation),
        }
    }
}

/// Everything the agent knows.
pub struct Owner {
    pub(super) options: Options,
    pub(super) policy: LoadedPolicy,
    pub(super) maps: Maps,
    pub(super) programs: Option<Programs>,
    pub(super) state: StateFile,
    pub(super) audit: AuditFile,
    events: broadcast::Sender<Arc<str>>,
    pub(super) overrides: Overrides,
    pub(super) snapshot: Snapshot,
    pub(super) classification: Classification,
    pub(super) resolution: roots::Resolution,
    /// By generation.
    pub(super) pools: BTreeMap<u64, KnownPool>,
    /// Places of pools that ended, for records that come after the end.
    pub(super) past: BTreeMap<u64, Place>,
    pub(super) incidents: IncidentTracker,
    pub(super) troubles: Troubles,
    pub(super) posture: Option<Posture>,
    /// What the host lacks; known once it was asked for.
    pub(super) preconditions: Option<Vec<Reason>>,
    pub(super) proven_at: Option<Time>,
    pub(super) started: Time,
    pub(super) ended_seen: u64,
    pub(super) ticks: u64,
    /// Who asked for what is being carried out, and for which pool (its generation).
    pub(super) asked_by: Option<(u64, Peer)>,
}

/// Ticks between two rounds that no event asked for.
const ROUND: u64 = 5;
/// Places of ended pools that are remembered.
const PAST: usize = 1024;

/// Both clocks. They cannot fail on Linux with these arguments.
pub fn now() -> Stamp {
    clock::now().expect("CLOCK_BOOTTIME and CLOCK_REALTIME exist").1
}

impl Owner {
    /// Takes over what the maps hold.
    pub fn new(
        options: &Options,
        policy: LoadedPolicy,
        maps: Maps,
        state: StateFile,
        audit: AuditFile,
        events: broadcast::Sender<Arc<str>>,
    ) -> Result<Self, DaemonError> {
        let observed = maps.observed()?;
        let mut overrides = Overrides::adopt(&observed, &policy.policy, now().boot_ns);
        overrides.sealed.extend(&state.state.sealed);
        let interval = interval_ns(&policy.policy);
        Ok(Self {
            options: options.clone(),
            policy,
            maps,
            programs: None,
            state,
            audit,
            events,
            overrides,
            snapshot: Snapshot::default(),
            classification: Classification::default(),
            resolution: roots::Resolution::default(),
            pools: BTreeMap::new(),
            past: BTreeMap::new(),
            incidents: IncidentTracker::new(interval),
            troubles: Troubles::default(),
            posture: None,
            preconditions: None,
            proven_at: None,
            started: now().time,
            ended_seen: 0,
            ticks: 0,
            asked_by: None,
        })
    }

    /// Takes the attached programs, and proves them before any older ones go.
    pub fn put_in_force(&mut self, programs: Programs) -> Result<(), DaemonError> {
        let adopted = programs.adopted;
        let proven = canary::prove(&mut self.maps, programs.token());
        let retired = match &proven {
            Ok(()) => programs.retire_others()?,
            Err(_) => 0,
        };
        let change = match (adopted, retired) {
            (true, _) => AgentChange::Adopted,
            (false, 0) => AgentChange::Started,
            (false, _) => AgentChange::Upgraded,
        };
        self.write_agent(change);
        let (policy, generation) = (self.policy.policy.hash().to_owned(), self.policy.generation);
        tracing::info!(build = object::BUILD, ?change, policy, generation, "agent is up");
        self.write_policy(PolicyChange::Loaded, Vec::new());
        if let Some(rejected) = &self.policy.rejected {
            // The file is wrong, and the last good policy was taken instead.
            self.write_policy(PolicyChange::Rejected, rejected.errors.clone());
        }
        if let Err(error) = proven {
            self.canary_failed(&error);
            if !self.policy.policy.allow_inactive() {
                // What was attached before stays; what never answered goes.
                if !adopted {
                    programs.withdraw()?;
                }
                let reasons = self.posture.iter().flat_map(|posture| &posture.reasons);
                let reasons =
                    reasons.map(|reason| format!("{}: {}", reason.code, reason.detail)).collect::<Vec<_>>();
                return Err(DaemonError::Inactive { reasons: reasons.join("; "), source: error });
            }
            self.programs = Some(programs);
            return Ok(());
        }
        self.programs = Some(programs);
        self.canary_passed();
        Ok(())
    }

    /// Proves enforcement anew.
    pub fn prove(&mut self) {
        let Some(programs) = &self.programs else { return };
        let pinned = programs.is_pinned();
        self.troubles
            .set_if(posture::UNPINNED, || (!pinned).then(|| "a link is no longer pinned".to_owned()));
        match canary::prove(&mut self.maps, programs.token()) {
            Ok(()) => self.canary_passed(),
            Err(error) => self.canary_failed(&error),
        }
    }

    fn canary_passed(&mut self) {
        self.proven_at = Some(now().time);
        self.troubles.clear(posture::CANARY);
        self.judge_posture();
    }

    fn canary_failed(&mut self, error: &CanaryError) {
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
        match self.try_reconcile(mounts) {
            Ok(()) => self.troubles.clear(posture::RECONCILE),
            Err(error) => {
                tracing::error!(%error, "the kernel's maps could not be brought up to date");
                self.troubles.set(posture::RECONCILE, error);
            }
        }
        self.judge_posture();
    }

    fn try_reconcile(&mut self, mounts: &MountWatch) -> Result<(), String> {
        let text = |error: crate::bpf::MapAccessError| chain(&error);
        let ended = self.maps.superblocks_ended().map_err(text)?;
        self.snapshot = mounts.read().map_err(|error| format!("read the mount table: {error}"))?;
        self.troubles.set_if(posture::MOUNT_TABLE, || {
            let problem = self.snapshot.problems().first()?;
            Some(format!("{} lines could not be read; the first: {problem}", self.snapshot.problems().len()))
        });
        self.resolution = roots::resolve(&self.policy.policy, &self.snapshot);
        self.troubles.set_if(posture::UNRESOLVED, || {
            // What is absent is waited for; what is there and cannot be looked at is a gap.
            let gaps = self
                .resolution
                .problems
                .iter()
                .filter(|problem| !matches!(problem, ResolveError::Absent { .. }));
            let gaps: Vec<String> = gaps.map(|problem| chain(problem)).collect();
            (!gaps.is_empty()).then(|| gaps.join("; "))
        });
        let effective = self.policy.policy.with_root_paths(&self.resolution.root_paths);
        self.classification = classify::classify(&self.snapshot, &effective);

        let observed = self.maps.observed().map_err(text)?;
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
            MapOperation::CreatePool { dev, entry } => Some((*dev, entry.pool_id)),
            _ => None,
        });
        self.recheck(created.collect(), ended, mounts)?;
        self.note_pools(&effective)?;
        applied
    }

    /// A device number may have changed hands between reading the mount table and writing an entry: then
    /// the entry must go, since it would speak for a stranger.
    fn recheck(&mut self, created: Vec<(u32, u64)>, ended: u64, mounts: &MountWatch) -> Result<(), String> {
        if created.is_empty() || self.maps.superblocks_ended().map_err(|error| chain(&error))? == ended {
            return Ok(());
        }
        let snapshot = mounts.read().map_err(|error| format!("read the mount table: {error}"))?;
        let effective = self.policy.policy.with_root_paths(&self.resolution.root_paths);
        let classification = classify::classify(&snapshot, &effective);
        for (dev, pool_id) in created {
            if classification.pool(dev).is_none_or(|pool| pool.pool_id != pool_id) {
                self.maps.pools.remove(&dev).map_err(|error| chain(&error))?;
            }
        }
        Ok(())
    }

    /// Compares the pools in the kernel with those known, and writes down the differences.
    fn note_pools(&mut self, effective: &Policy) -> Result<(), String> {
        let entries = self.maps.observed().map_err(|error| chain(&error))?.pools;
        let mut seen = BTreeSet::new();
        for (dev, entry) in
            entries.iter().filter(|(_, entry)| entry.flags & guard_common::policy::POOL_CANARY == 0)
        {
            seen.insert(entry.generation);
            self.note_pool(*dev, *entry, effective);
        }
        let gone: Vec<u64> =
            self.pools.keys().filter(|generation| !seen.contains(generation)).copied().collect();
        for generation in gone {
            if let Some(known) = self.pools.remove(&generation) {
                self.note_end(&known);
            }
        }
        Ok(())
    }

    fn note_pool(&mut self, dev: u32, entry: PoolEntry, effective: &Policy) {
        let mode = Mode::from_u32(entry.mode).unwrap_or(Mode::Sealed);
        let known = self.pools.get(&entry.generation);
        let pool = match (self.classification.pool(dev), known) {
            (Some(pool), _) if pool.pool_id == entry.pool_id => pool.clone(),
            (_, Some(known)) => known.pool.clone(),
            (_, None) => detached(dev, &entry),
        };
        let root = effective
            .root_of_actor_set(entry.actor_set)
            .map_or_else(PathBuf::new, |root| root.path().to_owned());
        let by_operator = self.overrides.released.contains_key(&entry.generation)
            || self.overrides.sealed.contains(&entry.pool_id);
        let before = known.map(|known| (known.mode, known.entry.expires_boot_ns));
        let cause = match before {
            Some((Mode::Released, _)) if mode != Mode::Released && self.asker(&entry).is_none() => {
                ModeCause::Expiry
            }
            _ if by_operator || self.asker(&entry).is_some() => ModeCause::Operator,
            _ => ModeCause::Policy,
        };
        let now_known = KnownPool { pool, root, entry, mode, cause };
        match before {
            None => {
                tracing::info!(
                    pool = now_known.pool.name,
                    dev = device_text(dev),
                    mode = mode.name(),
                    "pool appeared"
                );
                let body = self.pool_body(PoolChange::Appeared, &now_known);
                self.write(Body::Pool(body));
            }
            Some((from, _)) if from != mode => {
                tracing::info!(
                    pool = now_known.pool.name,
                    from = from.name(),
                    to = mode.name(),
                    ?cause,
                    "mode changed"
                );
                let place = now_known.place();
                let (from, to) = (Some(Name(from)), Name(mode));
                let uid = self.asker(&entry).map(|peer| peer.uid);
                let login_uid = self.asker(&entry).and_then(|peer| peer.login_uid);
                self.write(Body::Mode(ModeBody { place, from, to, cause, uid, login_uid }));
            }
            Some(_) => {}
        }
        self.pools.insert(entry.generation, now_known);
    }

    /// Who asked for the change of this pool, if someone did.
    fn asker(&self, entry: &PoolEntry) -> Option<Peer> {
        self.asked_by.filter(|(generation, _)| *generation == entry.generation).map(|(_, peer)| peer)
    }

    fn note_end(&mut self, known: &KnownPool) {
        let generation = known.entry.generation;
        tracing::info!(pool = known.pool.name, generation, "pool ended");
        self.past.insert(generation, known.place());
        while self.past.len() > PAST {
            self.past.pop_first();
        }
        let body = self.pool_body(PoolChange::Ended, known);
        self.write(Body::Pool(body));
        self.overrides.released.remove(&generation);
        self.close_leases(LeaseChange::Ended, |lease| lease.generation == generation);
        if let Err(error) = self.maps.pool_counters.remove(&generation) {
            tracing::warn!(error = chain(&error), "counters of an ended pool stay");
        }
    }

    fn pool_body(&self, change: PoolChange, known: &KnownPool) -> PoolBody {
        PoolBody {
            change,
            place: known.place(),
            device: device_text(known.pool.dev),
            filesystem: known.pool.fs_type.clone(),
            source: known.pool.source.clone(),
            mode: Some(Name(known.mode)),
        }
    }

    /// Reads the policy file again. A bad one changes nothing but the report.
    pub fn reload_policy(&mut self) {
        match LoadedPolicy::load(&self.options.policy) {
            Ok(loaded) if loaded.text == self.policy.text => self.policy.rejected = None,
            Ok(mut loaded) => {
                loaded.generation = self.policy.generation + 1;
                self.policy = loaded;
                self.incidents.set_interval(interval_ns(&self.policy.policy));
                self.keep_policy();
                tracing::info!(
                    generation = self.policy.generation,
                    hash = self.policy.policy.hash(),
                    "policy loaded"
                );
                self.write_policy(PolicyChange::Loaded, Vec::new());
            }
            Err(errors) => {
                let errors: Vec<String> = errors.to_string().lines().map(str::to_owned).collect();
                tracing::error!(file = %self.options.policy.display(), ?errors, "policy rejected, the old one stays");
                let rejected = RejectedPolicy { at: now().time, errors: errors.clone() };
                if self.policy.rejected.as_ref().map(|old| &old.errors) != Some(&errors) {
                    self.write_policy(PolicyChange::Rejected, errors);
                }
                self.policy.rejected = Some(rejected);
            }
        }
        self.judge_posture();
    }

    /// Whether the file differs from what was last taken from it: for hosts where it cannot be watched.
    fn policy_file_changed(&self) -> bool {
        self.policy.rejected.is_none()
            && file::read(&self.options.policy).is_ok_and(|text| text != self.policy.text)
    }

    /// Keeps the policy in force, for a start that finds a wrong file.
    pub fn keep_policy(&mut self) {
        match last_good::save(&self.options.state_dir, &self.policy.text) {
            Ok(()) => self.troubles.clear(posture::LAST_GOOD),
            Err(error) => {
                tracing::error!(%error, "the policy in force could not be kept for the next start");
                self.troubles.set(posture::LAST_GOOD, error.to_string());
            }
        }
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
        let ended = self.pools_ended();
        if expired || ended != self.ended_seen || self.ticks.is_multiple_of(ROUND) {
            self.ended_seen = ended;
            if self.policy_file_changed() {
                self.reload_policy();
            }
            self.reconcile(mounts);
        }
        self.scan_incidents();
        if let Err(error) = self.audit.flush() {
            tracing::error!(error = chain(&error), "audit log");
        }
        let audit = self.audit.status();
        self.troubles.set_if(posture::AUDIT, || {
            (audit.pending > 0)
                .then(|| format!("{} records wait for {}", audit.pending, audit.path.display()))
        });
        self.judge_posture();
    }

    /// Files that policy and roots depend on.
    pub fn watched_paths(&self) -> Vec<PathBuf> {
        let policy = &self.policy.policy;
        let mut paths = vec![self.options.policy.clone()];
        for root in policy.roots() {
            paths.push(root.path().to_owned());
            for actor in root.actors() {
                paths.extend(actor.cgroup().and_then(|path| roots::cgroup_directory(path, &self.snapshot)));
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

    /// A pinned program.
    pub fn any_program(&self) -> PathBuf {
        self.programs.as_ref().map(Programs::any_program).unwrap_or_default()
    }

    /// Says what was wrong with the state file.
    pub fn note_state_problem(&mut self, problem: Option<String>) {
        if let Some(problem) = problem {
            tracing::error!(problem, "the state file could not be understood");
            self.troubles.set(posture::STATE, problem);
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

    fn write_policy(&mut self, change: PolicyChange, errors: Vec<String>) {
        self.write(Body::Policy(PolicyBody {
            change,
            path: self.options.policy.display().to_string(),
            generation: self.policy.generation,
            hash: self.policy.policy.hash().to_owned(),
            errors,
        }));
    }
}

fn interval_ns(policy: &Policy) -> u64 {
    u64::try_from(policy.incident_interval().as_nanos()).unwrap_or(u64::MAX)
}

/// A pool that an earlier agent knew, whose mount is gone while its superblock lives.
fn detached(dev: u32, entry: &PoolEntry) -> Pool {
    Pool {
        dev,
        pool_id: entry.pool_id,
        name: pool_id_text(entry.pool_id),
        fs_type: String::new(),
        magic: entry.magic,
        source: String::new(),
        mountpoint: PathBuf::new(),
        mountpoints: Vec::new(),
        root: 0,
    }
}

/// Inode of the mount namespace of PID 1.
fn host_mount_namespace() -> Result<u32, String> {
    use std::os::unix::fs::MetadataExt;
    let path = "/proc/1/ns/mnt";
    let metadata = std::fs::metadata(path).map_err(|error| format!("{path}: {error}"))?;
    u32::try_from(metadata.ino()).map_err(|error| format!("{path}: {error}"))
}
