//! Decisions of operators: seals, releases, and leases of commands, in one store.
//!
//! Seals and leases are written to the state file; releases are in the kernel's entries too, and
//! outlive a lost file. [`Grants::overrides`] derives the plan's input from them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use guard_common::Tier;

use super::pool_book::KnownPool;
use crate::daemon::control::Peer;
use crate::host::state_file::{StateError, StateFile};
use crate::model::audit::Place;
use crate::model::audit::record::{LeaseBody, LeaseChange, LeaseKind, pool_id_text};
use crate::model::events::Name;
use crate::model::join::PoolModes;
use crate::model::plan::{Observed, Overrides};
use crate::model::policy::Policy;
use crate::model::state::Lease;
use crate::model::time::{BootOffset, Stamp};

/// All grants that are in force.
#[derive(Debug)]
pub(super) struct Grants {
    file: StateFile,
    /// Pool ids that this agent found sealed when it started, without a reason that it knows:
    /// sealed until an operator says otherwise, or the next boot.
    found_sealed: BTreeSet<u64>,
    /// Releases: generation → end on the boot clock in nanoseconds. A release dies with its
    /// superblock, and goes before a seal while it lasts.
    released: BTreeMap<u64, u64>,
}

/// Terms of the lease that an operator has asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeaseTerms<'a> {
    pub kind: LeaseKind,
    pub ttl: Duration,
    pub reason: &'a str,
    pub peer: &'a Peer,
}

impl Grants {
    /// Takes up the contents of the state file and the kernel's maps.
    pub(super) fn open(
        mut file: StateFile,
        observed: &Observed,
        policy: &Policy,
        boot_ns: u64,
    ) -> Self {
        let Overrides { sealed, found_sealed, released, nodes: _ } =
            Overrides::adopt(observed, policy, boot_ns);
        file.adopt_seals(&sealed);
        Self { file, found_sealed, released }
    }

    /// Decisions beside the policy. `nodes`: the modes that follow from the nodes' states.
    pub(super) fn overrides(&self, nodes: BTreeMap<u32, PoolModes>) -> Overrides {
        Overrides {
            sealed: self.file.state.sealed.clone(),
            found_sealed: self.found_sealed.clone(),
            released: self.released.clone(),
            nodes,
        }
    }

    /// Whether a pool is sealed beside policy and its node's state.
    pub(super) fn is_sealed(&self, pool_id: u64) -> bool {
        self.file.state.sealed.contains(&pool_id) || self.found_sealed.contains(&pool_id)
    }

    /// Seals a pool. Its release is over; the caller closes its leases.
    pub(super) fn seal(&mut self, pool_id: u64, generation: u64) {
        self.file.state.sealed.insert(pool_id);
        self.released.remove(&generation);
    }

    /// Takes a seal back, both a found and a set one.
    pub(super) fn unseal(&mut self, pool_id: u64) {
        self.file.state.sealed.remove(&pool_id);
        self.found_sealed.remove(&pool_id);
    }

    /// The seal of a pool whose id has changed goes along with it. Returns whether it is new.
    pub(super) fn keep_seal(&mut self, pool_id: u64) -> bool {
        let is_new = !self.file.state.sealed.contains(&pool_id);
        self.file.adopt_seals(&BTreeSet::from([pool_id]));
        is_new
    }

    /// A lease from now on, with a number of its own. It is not in force by that: see
    /// [`Grants::add`].
    pub(super) fn new_lease(
        &mut self,
        known: &KnownPool,
        terms: LeaseTerms<'_>,
        now: Stamp,
        offset: BootOffset,
    ) -> Lease {
        let ttl = u64::try_from(terms.ttl.as_nanos()).unwrap_or(u64::MAX);
        let ends_boot_ns = now.boot_ns.saturating_add(ttl);
        let number = self.file.state.next_lease;
        self.file.state.next_lease += 1;
        Lease {
            id: format!("lease-{number}"),
            kind: terms.kind,
            generation: known.entry.generation,
            pool_id: known.pool.pool_id,
            pool: known.pool.name.clone(),
            mountpoint: known.pool.mountpoint.display().to_string(),
            reason: terms.reason.trim().to_owned(),
            uid: terms.peer.uid,
            login_uid: terms.peer.login_uid,
            granted: now.time,
            ends: offset.stamp(ends_boot_ns).time,
            ends_boot_ns,
            ttl_seconds: terms.ttl.as_secs(),
            command: None,
        }
    }

    /// Puts a lease on the list. A release is in force with the next plan; a command's lease is the
    /// caller's to bring into the kernel.
    pub(super) fn add(&mut self, lease: Lease) {
        if lease.kind == LeaseKind::Release {
            self.released.insert(lease.generation, lease.ends_boot_ns);
        }
        self.file.state.leases.push(lease);
    }

    /// Takes leases off the list, and their releases out of force. Returns them.
    pub(super) fn close(&mut self, which: impl Fn(&Lease) -> bool) -> Vec<Lease> {
        let leases = std::mem::take(&mut self.file.state.leases);
        let (over, running): (Vec<Lease>, Vec<Lease>) = leases.into_iter().partition(which);
        self.file.state.leases = running;
        for lease in over.iter().filter(|lease| lease.kind == LeaseKind::Release) {
            self.released.remove(&lease.generation);
        }
        over
    }

    /// Forgets the release of a superblock that has ended.
    pub(super) fn forget_release(&mut self, generation: u64) {
        self.released.remove(&generation);
    }

    /// Takes releases out of force whose time is over. Returns whether there were any.
    pub(super) fn expire_releases(&mut self, boot_ns: u64) -> bool {
        let before = self.released.len();
        self.released.retain(|_, ends| *ends > boot_ns);
        self.released.len() != before
    }

    /// All leases that are on the list.
    pub(super) fn leases(&self) -> &[Lease] {
        &self.file.state.leases
    }

    /// The best tier that has proven itself on this host, unless policy has taken a weaker one by
    /// name.
    pub(super) fn best_tier(&self) -> Option<Tier> {
        self.file.state.tier.map(|name| name.0)
    }

    /// Keeps in mind which tier this host has had.
    pub(super) fn set_best_tier(&mut self, tier: Tier) {
        self.file.state.tier = Some(Name(tier));
    }

    /// Whether the state on disk is older: to be saved soon.
    pub(super) fn is_unsaved(&self) -> bool {
        self.file.is_unsaved()
    }

    /// Writes the state file.
    pub(super) fn save(&mut self) -> Result<(), StateError> {
        self.file.save()
    }
}

/// A record of a lease's change.
pub(super) fn record(change: LeaseChange, lease: &Lease) -> LeaseBody {
    let place = Place {
        pool_id: Some(pool_id_text(lease.pool_id)),
        pool: Some(lease.pool.clone()),
        mountpoint: Some(lease.mountpoint.clone()),
        generation: Some(lease.generation),
    };
    LeaseBody {
        change,
        id: lease.id.clone(),
        lease_kind: lease.kind,
        place,
        ttl_seconds: lease.ttl_seconds,
        ends: lease.ends,
        reason: lease.reason.clone(),
        uid: lease.uid,
        login_uid: lease.login_uid,
    }
}

#[cfg(test)]
#[path = "grants_tests.rs"]
mod tests;
