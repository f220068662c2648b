//! The agent's side of this tier: starts the responder, gives it the wanted state, and replaces one
//! that fails.
//!
//! The agent itself never waits for an answer without a limit, and holds no descriptor of the
//! fanotify group: when the responder ends, the kernel lets everyone go on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guard_common::{PoolEntry, PoolKey};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};

use super::canary::CanaryMount;
use super::child::{RESPONDER_TIMEOUT, Responder, responders};
use super::error::{FanotifyError, failed};
use super::handover::Handover;
use super::order::{self, Line, MountOutcome, Order, Reply, SealedMount, Special, Wanted};
use super::responder::BOUND;
use super::seals::Seals;
use crate::host::bpf::{CanaryError, Maps};
use crate::model::mounts::Snapshot;

/// Between two looks whether a responder has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Deviations from the wanted state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// Mounts whose directories can be listed by everybody.
    pub unmarked: Option<String>,
    /// Mounts that should be read-only and are not, or the other way round.
    pub unsealed: Option<String>,
    /// Deletions that were not seen, or cannot be.
    pub unseen: Option<String>,
    /// The responder had to be replaced.
    pub replaced: Option<String>,
}

/// The responder and all that is wanted of it.
#[derive(Debug)]
pub struct Supervisor {
    maps_directory: PathBuf,
    pin_directory: PathBuf,
    canary: CanaryMount,
    seals: Seals,
    /// The responder's end of the pipe for records; it stays when responders come and go.
    records: OwnedFd,
    responder: Responder,
    /// Takes the place of one that was started in a hurry.
    succession: Handover,
    wanted: Vec<Wanted>,
    serial: u64,
    outcomes: Option<Vec<MountOutcome>>,
    seals_problem: Option<String>,
    replaced: Option<String>,
    /// Number of times that this responder has missed deletions, and that number at the last proof.
    missed: u64,
    missed_before: u64,
    /// Pools whose deletions this responder cannot see.
    unseen: Option<String>,
    /// The reason if this responder marks further mounts only on orders.
    unwatched: Option<String>,
    /// The mount table has changed since the last order: even one that looks the same may have
    /// other mounts.
    stale: bool,
}

impl Supervisor {
    /// Starts a responder. It marks nothing yet. The second value is where records come from.
    pub fn start(
        maps_directory: &Path,
        pin_directory: &Path,
        state_directory: &Path,
        boot_id: &str,
    ) -> Result<(Self, File), FanotifyError> {
        let canary = CanaryMount::new()?;
        let seals = Seals::open(state_directory, boot_id)?;
        let (read, records) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .map_err(failed("make a pipe for records"))?;
        let responder = Responder::start_apart(maps_directory, &records)?;
        let supervisor = Self {
            maps_directory: maps_directory.to_owned(),
            pin_directory: pin_directory.to_owned(),
            canary,
            seals,
            records,
            responder,
            succession: Handover::default(),
            wanted: Vec::new(),
            serial: 0,
            outcomes: None,
            seals_problem: None,
            replaced: None,
            missed: 0,
            missed_before: 0,
            unseen: None,
            unwatched: None,
            stale: false,
        };
        Ok((supervisor, read.into()))
    }

    /// Brings all mounts into the state that the pools' entries ask for. `leased`: generations of
    /// pools on which a command has a lease.
    pub fn apply(
        &mut self,
        pools: &BTreeMap<PoolKey, PoolEntry>,
        leased: &BTreeSet<u64>,
        special: &Special,
        snapshot: &Snapshot,
    ) {
        self.take_replies();
        let mut steps = order::steps(pools, leased, special, snapshot, self.seals.mounts());
        let before: BTreeSet<SealedMount> = self.seals.mounts().clone();
        // On disk first: an agent that dies in between must find the earlier state of a mount.
        self.seals_problem = match self.seals.record(steps.sealed.clone()) {
            Ok(()) => None,
            Err(error) => {
                let new = |mount: &Wanted| {
                    steps.sealed.difference(&before).any(|record| record.mount_id == mount.mount_id)
                };
                for mount in steps.mounts.iter_mut().filter(|mount| new(mount)) {
                    mount.read_only = None;
                }
                Some(crate::model::errors::chain(&error))
            }
        };
        let mut wanted = steps.mounts;
        wanted.push(self.canary.wanted());
        if wanted != self.wanted || self.stale || self.has_failed_mounts() || self.unseen.is_some()
        {
            self.wanted = wanted;
            self.stale = false;
            self.order();
        }
    }

    /// The mount table has changed: the next order is given anew, even if it is the same.
    pub fn mounts_changed(&mut self) {
        self.stale = true;
    }

    fn has_failed_mounts(&self) -> bool {
        self.outcomes
            .iter()
            .flatten()
            .any(|outcome| outcome.unmarked.is_some() || outcome.unsealed.is_some())
    }

    /// Sends the order, and waits a moment for the outcome.
    fn order(&mut self) {
        self.serial += 1;
        self.outcomes = None;
        let order = Order { serial: self.serial, mounts: self.wanted.clone() };
        if let Err(error) = self.responder.send(&Line::Order(order)) {
            tracing::warn!(%error, "the responder takes no order");
            return;
        }
        let end = Instant::now() + RESPONDER_TIMEOUT;
        while self.outcomes.is_none()
            && self.responder.wait(end.saturating_duration_since(Instant::now()))
        {
            self.take_replies();
        }
    }

    fn take_replies(&mut self) {
        for reply in self.responder.replies() {
            match reply {
                Reply::Pong { number, missed, unseen, unwatched } => {
                    self.responder.pong(number);
                    (self.missed, self.unseen, self.unwatched) = (missed, unseen, unwatched);
                }
                Reply::Done { serial, mounts } if serial == self.serial => {
                    self.forget_restored(&mounts);
                    self.outcomes = Some(mounts);
                }
                // An order that has been superseded.
                Reply::Done { .. } => {}
            }
        }
    }

    /// A mount that is writable again needs no record any more.
    fn forget_restored(&mut self, outcomes: &[MountOutcome]) {
        let is_restored = |record: &SealedMount| {
            let wanted = self.wanted.iter().find(|mount| mount.mount_id == record.mount_id);
            let outcome = outcomes.iter().find(|outcome| outcome.mount_id == record.mount_id);
            wanted.is_some_and(|mount| mount.read_only == Some(false))
                && outcome.is_some_and(|outcome| !outcome.gone && outcome.unsealed.is_none())
        };
        let left =
            self.seals.mounts().iter().filter(|record| !is_restored(record)).cloned().collect();
        if let Err(error) = self.seals.record(left) {
            self.seals_problem = Some(crate::model::errors::chain(&error));
        }
    }

    /// Deviations from the wanted state.
    pub fn problems(&self) -> Problems {
        let path = |id: u32| {
            let mount = self.wanted.iter().find(|mount| mount.mount_id == id);
            mount.map_or_else(|| id.to_string(), |mount| mount.path.0.display().to_string())
        };
        let list = |which: fn(&MountOutcome) -> &Option<String>| {
            let found = self
                .outcomes
                .iter()
                .flatten()
                .filter_map(|outcome| Some((outcome.mount_id, which(outcome).as_ref()?)));
            let texts: Vec<String> =
                found.map(|(id, why)| format!("{}: {why}", path(id))).collect();
            (!texts.is_empty()).then(|| texts.join("; "))
        };
        let waiting = self
            .outcomes
            .is_none()
            .then(|| "the responder has not carried out the last order yet".to_owned());
        let later = self.unwatched.as_ref().map(|why| {
            format!("further mounts are marked by the agent alone, a little later: {why}")
        });
        Problems {
            unmarked: list(|outcome| &outcome.unmarked).or(waiting).or(later),
            unsealed: self.seals_problem.clone().or_else(|| list(|outcome| &outcome.unsealed)),
            unseen: self.unseen.clone().or_else(|| {
                (self.missed > self.missed_before).then(|| {
                    "there were more at once than could be read: the audit log lacks some"
                        .to_owned()
                })
            }),
            replaced: self.replaced.clone(),
        }
    }

    /// Looks after the responder: replaces one that has ended, or does not answer for as long as
    /// the bound.
    pub fn tick(&mut self) {
        self.take_replies();
        let why = match self.responder.ended() {
            Some(why) => Some(why),
            None => self
                .responder
                .is_overdue()
                .then(|| format!("it did not answer for {} s", BOUND.as_secs())),
        };
        match why {
            Some(why) => self.replace(&why),
            None => self.responder.ping(),
        }
        // Once it is proven: until then the host has other worries.
        if self.replaced.is_none() {
            self.succeed();
        }
    }

    /// Gives a responder that shares the agent's cgroup a successor that does not.
    fn succeed(&mut self) {
        self.succession.retire(self.outcomes.is_some());
        let next = self.succession.next(&self.responder, &self.maps_directory, &self.records);
        if let Some(next) = next {
            self.succession.leave(std::mem::replace(&mut self.responder, next));
            (self.missed, self.missed_before) = (0, 0);
            self.order();
        }
    }

    /// Puts a new responder in the place of one that failed. Between them the kernel allows
    /// everything, so systemd is not asked for a scope: that would take longer, and for ever if it
    /// hangs.
    fn replace(&mut self, why: &str) {
        tracing::error!(why, "the responder is replaced: guarded pools were open for a moment");
        self.responder.kill();
        self.replaced = Some(why.to_owned());
        match Responder::start(&self.maps_directory, &self.records) {
            Ok(responder) => {
                std::mem::replace(&mut self.responder, responder).reap();
                (self.missed, self.missed_before) = (0, 0);
                self.order();
            }
            // The next tick tries again.
            Err(error) => {
                tracing::error!(error = crate::model::errors::chain(&error), "no responder")
            }
        }
    }

    /// Proves that this responder answers and that sealing works. A passed proof forgets that one
    /// was replaced, and that deletions were missed.
    pub fn prove(&mut self, maps: &mut Maps) -> Result<(), CanaryError> {
        let pid = self.responder.pid();
        self.canary.prove(maps, BOUND, || end(pid, Signal::SIGKILL))?;
        self.replaced = None;
        self.missed_before = self.missed;
        Ok(())
    }

    /// Ends the responders of earlier agents, on maps of any layout, and waits for it: nothing is
    /// counted there any more. Only after this one is proven. Returns their number.
    pub fn retire_others(&self) -> usize {
        let mine = self.responder.pid();
        let others = || {
            let all = responders(&self.pin_directory).into_iter();
            all.filter(|pid| *pid != mine).collect::<Vec<u32>>()
        };
        let found = others();
        found.iter().for_each(|pid| end(*pid, Signal::SIGTERM));
        // One that waits for a dead server ends later; it is no child of ours that could be waited
        // for.
        let limit = Instant::now() + RESPONDER_TIMEOUT;
        while Instant::now() < limit && !others().is_empty() {
            std::thread::sleep(LOOK_EVERY);
        }
        found.len()
    }

    /// Ends this responder: it did not prove itself.
    pub fn withdraw(mut self) {
        self.responder.kill();
        self.responder.reap();
    }
}

/// Ends all responders on maps below a pin directory and makes every sealed mount writable again:
/// nothing is enforced afterwards.
pub fn unload(
    pin_directory: &Path,
    state_directory: &Path,
    boot_id: &str,
) -> Result<(), FanotifyError> {
    responders(pin_directory).into_iter().for_each(|pid| end(pid, Signal::SIGTERM));
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
