//! Enforcement of the policy: the kernel's maps, and the means of one tier over them.
//!
//! There are two kinds of means, programs in the kernel and a responder in user space
//! (`daemon/means.rs`). [`Means`] is all that the agent knows of either.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use guard_common::{PoolEntry, PoolKey, Tier};

use super::error::DaemonError;
use crate::host::bpf::{CanaryError, Maps};
use crate::host::clock::now;
use crate::host::fanotify::order::Special;
use crate::model::mounts::Snapshot;
use crate::model::posture::Troubles;
use crate::model::time::Time;

/// The pools' entries and the mounts that a responder marks and seals.
#[derive(Debug)]
pub(super) struct Marks<'a> {
    pub pools: BTreeMap<PoolKey, PoolEntry>,
    /// Generations of pools on which a command has a lease.
    pub leased: BTreeSet<u64>,
    pub special: Special,
    pub snapshot: &'a Snapshot,
}

/// The mechanism that answers in one tier. `M`: the maps that it answers from.
pub(super) trait Means<M> {
    fn tier(&self) -> Tier;

    /// Whether it was in force before this agent came.
    fn is_adopted(&self) -> bool {
        false
    }

    /// Sings the canary.
    fn prove(&mut self, maps: &mut M) -> Result<(), CanaryError>;

    /// Ends older programs and, in the tier fanotify, older responders (under programs, the agent
    /// ends those). Only after these means are proven. Returns how many there were.
    fn retire_others(&mut self) -> Result<usize, DaemonError>;

    /// Ends these: they did not prove themselves.
    fn withdraw(self: Box<Self>) -> Result<(), DaemonError>;

    /// Whether mounts have to be marked, and ended superblocks to be told by the mount table.
    fn has_marks(&self) -> bool {
        false
    }

    /// Synchronizes marks and seals with the maps.
    fn apply(&mut self, _marks: &Marks<'_>) {}

    /// The mount table has changed, perhaps into one that reads the same.
    fn mounts_changed(&mut self) {}

    /// Everything that is due by time.
    fn tick(&mut self) {}

    /// Notes problems of the means.
    fn note_troubles(&self, troubles: &mut Troubles);

    /// A pinned program, if there are programs.
    fn any_program(&self) -> Option<PathBuf> {
        None
    }
}

/// The maps, the means in force, and their proof.
pub(super) struct Enforcement<M = Maps> {
    pub maps: M,
    means: Option<Box<dyn Means<M>>>,
    proven_at: Option<Time>,
    /// Why stronger tiers were not put in force.
    pub passed_over: Vec<String>,
}

impl<M> Enforcement<M> {
    /// Maps, and nothing that answers from them yet.
    pub(super) fn new(maps: M) -> Self {
        Self { maps, means: None, proven_at: None, passed_over: Vec::new() }
    }

    /// Takes means into use. Nothing is proven of them by that.
    pub(super) fn hold(&mut self, means: Box<dyn Means<M>>) {
        self.means = Some(means);
    }

    /// Ends all older means, once the ones in use are proven. Returns how many there were.
    pub(super) fn retire_others(&mut self) -> Result<usize, DaemonError> {
        self.means.as_mut().map_or(Ok(0), |means| means.retire_others())
    }

    /// Keeps the means in use, or not, by the canary's result. Unproven means are withdrawn, unless
    /// they were in force before or the agent may run without.
    pub(super) fn conclude(
        &mut self,
        proven: &Result<(), CanaryError>,
        may_run_inactive: bool,
    ) -> Result<(), DaemonError> {
        if proven.is_ok() {
            self.proven_at = Some(now().time);
        } else if !may_run_inactive
            && let Some(means) = self.means.take().filter(|means| !means.is_adopted())
        {
            means.withdraw()?;
        }
        Ok(())
    }

    /// Proves enforcement anew; nothing while there are no means.
    pub(super) fn prove(&mut self) -> Option<Result<(), CanaryError>> {
        let proven = self.means.as_mut()?.prove(&mut self.maps);
        if proven.is_ok() {
            self.proven_at = Some(now().time);
        }
        Some(proven)
    }

    /// When the canary was last answered.
    pub(super) fn proven_at(&self) -> Option<Time> {
        self.proven_at
    }

    /// The tier in force, if the canary was ever answered.
    pub(super) fn proven_tier(&self) -> Option<Tier> {
        self.proven_at.and(self.means.as_ref()).map(|means| means.tier())
    }

    /// The means in force.
    pub(super) fn means(&self) -> Option<&dyn Means<M>> {
        self.means.as_deref()
    }

    /// The means in force, if those mark mounts.
    pub(super) fn marking(&mut self) -> Option<&mut Box<dyn Means<M>>> {
        self.means.as_mut().filter(|means| means.has_marks())
    }
}

#[cfg(test)]
#[path = "enforcement_tests.rs"]
mod tests;
