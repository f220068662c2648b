//! Brings the kernel's maps in line with policy, mount table and decisions. It may be done at any
//! time, and repeatedly.

use std::io;

use guard_common::PoolKey;

use super::{Agent, ReconcileCause};
use crate::daemon::error::{HOST_NAMESPACE, ReconcileError};
use crate::daemon::mount_view::MountView;
use crate::daemon::pool_book::BookSources;
use crate::host::bpf::{MapAccessError, Maps};
use crate::host::clock::now;
use crate::host::mount_table::MountWatch;
use crate::model::audit::record::LeaseChange;
use crate::model::errors::chain;
use crate::model::join::Event;
use crate::model::mounts::Snapshot;
use crate::model::plan;
use crate::model::plan::{Desired, MapOperation, Observed, Overrides, Plan};
use crate::model::policy::Policy;
use crate::model::posture::trouble;

/// Changes that were written to the maps.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::daemon) struct MapChanges {
    /// Number of the plan's operations on maps.
    pub operations: usize,
    /// Entries that are new, and still hold.
    pub created: Vec<PoolKey>,
}

/// Access of a reconciliation to the kernel's maps.
pub(in crate::daemon) trait PolicyMaps {
    /// Number of superblocks that have ended, of any kind.
    fn superblocks_ended(&self) -> Result<u64, MapAccessError>;
    fn next_generation(&self) -> Result<u64, MapAccessError>;
    /// As many operations of a plan as the maps take.
    fn apply(&mut self, plan: &Plan) -> Result<(), MapAccessError>;
    fn remove_pool(&mut self, key: &PoolKey) -> Result<(), MapAccessError>;
}

impl PolicyMaps for Maps {
    fn superblocks_ended(&self) -> Result<u64, MapAccessError> {
        Self::superblocks_ended(self)
    }

    fn next_generation(&self) -> Result<u64, MapAccessError> {
        Ok(self.meta.read()?.next_generation)
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), MapAccessError> {
        Self::apply(self, plan)
    }

    fn remove_pool(&mut self, key: &PoolKey) -> Result<(), MapAccessError> {
        self.pools.remove(key)
    }
}

/// Sources of the maps' contents, and of a new mount table.
pub(in crate::daemon) struct MapSources<'a> {
    pub policy: &'a Policy,
    pub view: &'a MountView,
    pub overrides: &'a Overrides,
    pub host_mnt_ns: u32,
    pub now_boot_ns: u64,
    /// [`PolicyMaps::superblocks_ended`] before the mount table was read.
    pub ended_before: u64,
    pub read_table: &'a dyn Fn() -> io::Result<Snapshot>,
}

/// Plans and applies. A device number may have changed hands between reading the mount table and
/// writing an entry: then the entry goes again, since it would speak for a stranger.
pub(in crate::daemon) fn write_maps(
    maps: &mut impl PolicyMaps,
    sources: &MapSources<'_>,
    observed: &Observed,
) -> Result<MapChanges, ReconcileError> {
    let effective = sources.view.effective(sources.policy);
    let plan = plan::plan(
        &Desired {
            policy: &effective,
            classification: &sources.view.classification,
            resolved: &sources.view.resolution.resolved,
            overrides: sources.overrides,
            host_mnt_ns: sources.host_mnt_ns,
            now_boot_ns: sources.now_boot_ns,
            next_generation: maps.next_generation()?,
        },
        observed,
    );
    let applied = maps.apply(&plan);
    let created = plan.operations.iter().filter_map(|operation| match operation {
        MapOperation::CreatePool { key, entry } => Some((*key, entry.pool_id)),
        _ => None,
    });
    let mut created: Vec<(PoolKey, u64)> = created.collect();
    if !created.is_empty() && maps.superblocks_ended()? != sources.ended_before {
        let snapshot = (sources.read_table)().map_err(ReconcileError::MountTable)?;
        let classification = sources.view.classify_anew(sources.policy, &snapshot);
        let (mine, strangers): (Vec<_>, Vec<_>) =
            created.into_iter().partition(|(key, pool_id)| classification.has(*key, *pool_id));
        strangers.iter().try_for_each(|(key, _)| maps.remove_pool(key))?;
        created = mine;
    }
    applied?;
    let created = created.into_iter().map(|(key, _)| key).collect();
    Ok(MapChanges { operations: plan.operations.len(), created })
}

impl Agent {
    /// Brings the maps in line with policy and mount table, and writes down the changes.
    pub(in crate::daemon) fn reconcile(
        &mut self,
        cause: ReconcileCause,
        mounts: &MountWatch,
    ) -> Result<MapChanges, ReconcileError> {
        self.pulse.reconciliations += 1;
        let mut result = self.reconcile_once(cause, mounts);
        // A pool that has appeared or ended may give its node another state, and that other modes.
        if self.tell_nodes_of_pools() {
            result = self.reconcile_once(cause, mounts);
        }
        self.nodes.write_later();
        self.assess_journals();
        match &result {
            Ok(changes) => {
                tracing::debug!(?cause, operations = changes.operations, "reconciled");
                self.posture.troubles.clear(trouble::RECONCILE);
            }
            Err(error) => {
                let error = chain(error);
                tracing::error!(error, ?cause, "the kernel's maps could not be brought up to date");
                self.posture.troubles.set(trouble::RECONCILE, error);
            }
        }
        self.assess_posture();
        result
    }

    /// The same where nobody waits for the result: the posture tells of a failure, and the next
    /// round tries again.
    pub(super) fn bring_up_to_date(&mut self, cause: ReconcileCause, mounts: &MountWatch) {
        let _ = self.reconcile(cause, mounts);
    }

    fn reconcile_once(
        &mut self,
        cause: ReconcileCause,
        mounts: &MountWatch,
    ) -> Result<MapChanges, ReconcileError> {
        let read_table = || mounts.read();
        let ended_before = self.enforcement.maps.superblocks_ended()?;
        let snapshot = read_table().map_err(ReconcileError::MountTable)?;
        let policy = &self.policy.current;
        self.view.observe(policy, snapshot);
        self.view.note_troubles(policy, &mut self.posture.troubles);
        self.remove_unmounted()?;
        let observed = self.enforcement.maps.observed()?;
        self.keep_seals(&observed);
        let overrides = self.grants.overrides(self.nodes.modes().clone());
        if overrides.may_seal(&self.policy.current) {
            self.view.find_pool_roots();
        }
        let sources = MapSources {
            policy: &self.policy.current,
            view: &self.view,
            overrides: &overrides,
            host_mnt_ns: host_mount_namespace()?,
            now_boot_ns: now().boot_ns,
            ended_before,
            read_table: &read_table,
        };
        let written = write_maps(&mut self.enforcement.maps, &sources, &observed);
        self.update_book(cause, &overrides)?;
        let changes = written?;
        // The maps first: every responder that is asked from now on knows the pool.
        self.apply_marks()?;
        Ok(changes)
    }

    /// A pool's id may change while it is mounted: more is known of its cluster, or a newer agent
    /// tells pools apart better. An operator's seal goes along.
    fn keep_seals(&mut self, observed: &Observed) {
        for pool in plan::seals_to_keep(&self.view.classification, observed) {
            if self.grants.keep_seal(pool.pool_id) {
                tracing::info!(
                    pool = pool.name,
                    "the id of a sealed pool has changed: it stays sealed"
                );
            }
        }
    }

    /// Compares the pools in the kernel with those known, and writes down the differences.
    fn update_book(
        &mut self,
        cause: ReconcileCause,
        overrides: &Overrides,
    ) -> Result<(), ReconcileError> {
        let entries = self.enforcement.maps.observed()?.pools;
        let asked = match cause {
            ReconcileCause::Asked(asked) => Some(asked),
            _ => None,
        };
        let changes = self.book.update(
            &entries,
            BookSources {
                policy: &self.policy.current,
                classification: &self.view.classification,
                overrides,
                asked,
            },
        );
        changes.records.into_iter().for_each(|body| self.trail.write(body));
        for generation in changes.ended {
            self.grants.forget_release(generation);
            self.close_leases(LeaseChange::Ended, |lease| lease.generation == generation);
            if let Err(error) = self.enforcement.maps.forget_pool(generation) {
                tracing::warn!(error = chain(&error), "counters of an ended pool stay");
            }
        }
        Ok(())
    }

    /// Tells each node which of its pools live. Returns whether the maps have to follow.
    fn tell_nodes_of_pools(&mut self) -> bool {
        let roots: Vec<_> =
            self.nodes.iter().map(|(root, node)| (root.to_owned(), node.actor_set)).collect();
        let mut changed = false;
        for (root, actor_set) in roots {
            let alive = self.book.alive(actor_set);
            let known = self.nodes.of(&root).and_then(|node| node.machine().alive().cloned());
            if known.as_ref() != Some(&alive) {
                changed |= self.inform_node(&root, Event::Pools { alive });
            }
        }
        changed
    }
}

/// Inode of the mount namespace of PID 1.
fn host_mount_namespace() -> Result<u32, ReconcileError> {
    use std::os::unix::fs::MetadataExt;
    let inode = std::fs::metadata(HOST_NAMESPACE).map_err(ReconcileError::HostNamespace)?.ino();
    u32::try_from(inode).map_err(|error| ReconcileError::HostNamespace(io::Error::other(error)))
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
