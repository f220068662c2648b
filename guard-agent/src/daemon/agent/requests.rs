//! Requests from the control socket. `control` has checked the peer's access; this module decides
//! on the grant.

use std::time::Duration;

use super::{Agent, ReconcileCause};
use crate::daemon::control::{Command, Peer};
use crate::daemon::grants;
use crate::daemon::grants::LeaseTerms;
use crate::daemon::pool_book::{Asked, KnownPool};
use crate::host::clock;
use crate::host::clock::now;
use crate::host::mount_table::MountWatch;
use crate::model::audit::Body;
use crate::model::audit::record::{LeaseChange, LeaseKind, device_text, pool_id_text};
use crate::model::control::pool_name::{PoolAddress, find_pool};
use crate::model::control::report::LeaseReport;
use crate::model::control::{Refusal, Reply, Request};
use crate::model::errors::chain;
use crate::model::join::Event;
use crate::model::posture::{PostureState, trouble};
use crate::model::rollback::Allowed;
use crate::model::state::Lease;

impl Agent {
    /// Answers one request.
    pub(super) fn answer_command(&mut self, command: Command, mounts: &MountWatch) {
        let Command { request, peer, reply } = command;
        let answer = self.answer(request, &peer, mounts);
        if let Err(refusal) = &answer {
            tracing::info!(uid = peer.uid, code = refusal.code(), %refusal, "request refused");
        }
        // The client may have gone.
        let _ = reply.send(answer);
    }

    fn answer(
        &mut self,
        request: Request,
        peer: &Peer,
        mounts: &MountWatch,
    ) -> Result<Reply, Refusal> {
        match request {
            Request::Status => Ok(Reply::Status(Box::new(self.status()))),
            Request::Pools => Ok(Reply::Pools(self.pool_reports())),
            Request::Leases => Ok(Reply::Leases(self.lease_reports())),
            Request::History { root } => self.histories(root.as_deref()).map(Reply::History),
            Request::PolicyShow => Ok(Reply::PolicyText(self.policy_text())),
            Request::Seal { pool } => self.seal(&pool, peer, mounts),
            Request::Unseal { pool } => self.unseal(&pool, peer, mounts),
            Request::Release { pool, ttl_seconds, reason } => {
                let default = self.policy.current.lease().default_ttl();
                let ttl = ttl_seconds.map_or(default, Duration::from_secs);
                self.release(&pool, ttl, &reason, peer, mounts)
            }
            Request::ExecLease { pool, ttl_seconds, reason } => {
                let default = self.policy.current.lease().default_ttl();
                self.exec_lease(
                    &pool,
                    ttl_seconds.map_or(default, Duration::from_secs),
                    &reason,
                    peer,
                )
            }
            Request::LeaseRevoke { id } => self.revoke(&id, peer, mounts),
            Request::PolicyReload => {
                self.reload_policy();
                self.bring_up_to_date(ReconcileCause::Policy, mounts);
                match &self.policy.rejected {
                    Some(rejected) => {
                        Err(Refusal::PolicyRejected { errors: rejected.errors.clone() })
                    }
                    None => Ok(Reply::PolicyReloaded {
                        generation: self.policy.generation,
                        hash: self.policy.current.hash().to_owned(),
                    }),
                }
            }
            Request::Rollback { root, lazy, force } => {
                self.roll_back(root.as_deref(), Allowed { lazy, force }, peer, mounts)
            }
            Request::RollbackStatus { root } => self.rollback_status_of(root.as_deref()),
            Request::JoinPrepare { root } => self.prepare_join(root.as_deref(), mounts),
            Request::JoinCommandEnded { root } => self.end_preparation(root.as_deref(), mounts),
            Request::NodeAdopt { root, reason } => {
                let word = |by| Event::Adopted { by };
                self.take_word(root.as_deref(), word, &reason, peer, mounts)
            }
            Request::NodeForget { root, reason } => {
                let word = |by| Event::Forgotten { by };
                self.take_word(root.as_deref(), word, &reason, peer, mounts)
            }
            // The server answers it itself.
            Request::Events { .. } => {
                Err(Refusal::Unavailable { detail: "events are not served here".to_owned() })
            }
        }
    }

    fn seal(&mut self, wanted: &str, peer: &Peer, mounts: &MountWatch) -> Result<Reply, Refusal> {
        let known = self.find(wanted)?;
        let generation = known.entry.generation;
        self.posture.troubles.clear(trouble::STATE_LOST);
        self.grants.seal(known.pool.pool_id, generation);
        self.close_leases(LeaseChange::Revoked, |lease| lease.generation == generation);
        let known = self.change_mode(&known, peer, mounts, "seal")?;
        Ok(Reply::Sealed(Box::new(self.pool_report(&known))))
    }

    fn unseal(&mut self, wanted: &str, peer: &Peer, mounts: &MountWatch) -> Result<Reply, Refusal> {
        let known = self.find(wanted)?;
        self.posture.troubles.clear(trouble::STATE_LOST);
        self.grants.unseal(known.pool.pool_id);
        let known = self.change_mode(&known, peer, mounts, "unseal")?;
        Ok(Reply::Unsealed(Box::new(self.pool_report(&known))))
    }

    fn release(
        &mut self,
        wanted: &str,
        ttl: Duration,
        reason: &str,
        peer: &Peer,
        mounts: &MountWatch,
    ) -> Result<Reply, Refusal> {
        self.may_grant(ttl, reason)?;
        let known = self.find(wanted)?;
        let generation = known.entry.generation;
        // One release at a time: a second one replaces the first.
        self.close_leases(LeaseChange::Revoked, |lease| {
            lease.generation == generation && lease.kind == LeaseKind::Release
        });
        let terms = LeaseTerms { kind: LeaseKind::Release, ttl, reason, peer };
        let lease = self.new_lease(&known, terms);
        self.grants.add(lease.clone());
        self.write_lease(LeaseChange::Granted, &lease);
        if let Err(refusal) = self.change_mode(&known, peer, mounts, "release") {
            self.close_leases(LeaseChange::Revoked, |other| other.id == lease.id);
            self.bring_up_to_date(ReconcileCause::Due, mounts);
            return Err(refusal);
        }
        Ok(Reply::Released(Box::new(LeaseReport::of(&lease, now().boot_ns))))
    }

    /// Whether a lease may be granted at all.
    pub(super) fn may_grant(&self, ttl: Duration, reason: &str) -> Result<(), Refusal> {
        let limit = self.policy.current.lease().max_ttl();
        if reason.trim().is_empty() {
            return Err(Refusal::ReasonMissing);
        }
        if ttl.is_zero() {
            return Err(Refusal::TtlZero);
        }
        if ttl > limit {
            return Err(Refusal::TtlTooLong {
                asked_seconds: ttl.as_secs(),
                max_seconds: limit.as_secs(),
            });
        }
        let posture = self.posture.posture();
        if let Some(posture) = posture.filter(|known| known.state == PostureState::Inactive) {
            let detail = posture
                .reasons
                .iter()
                .map(|reason| reason.detail.as_str())
                .collect::<Vec<_>>()
                .join("; ");
            return Err(Refusal::NotEnforcing { detail });
        }
        Ok(())
    }

    /// A lease from now on. It is not in force by that.
    pub(super) fn new_lease(&mut self, known: &KnownPool, terms: LeaseTerms<'_>) -> Lease {
        let (offset, now) = clock::read();
        self.grants.new_lease(known, terms, now, offset)
    }

    fn revoke(&mut self, id: &str, peer: &Peer, mounts: &MountWatch) -> Result<Reply, Refusal> {
        let leases = self.grants.leases();
        let Some(lease) = leases.iter().find(|lease| lease.id == id).cloned() else {
            let leases = leases.iter().map(|lease| lease.id.clone()).collect();
            return Err(Refusal::NoSuchLease { id: id.to_owned(), leases });
        };
        self.close_leases(LeaseChange::Revoked, |other| other.id == lease.id);
        if let Some(known) = self.book.get(lease.generation).cloned() {
            self.change_mode(&known, peer, mounts, "revoke the lease")?;
        }
        Ok(Reply::LeaseRevoked(Box::new(LeaseReport::of(&lease, now().boot_ns))))
    }

    /// The pool that an operator means.
    pub(super) fn find(&self, wanted: &str) -> Result<KnownPool, Refusal> {
        let known: Vec<&KnownPool> = self.book.pools().collect();
        let texts: Vec<(String, String, Vec<String>)> = known
            .iter()
            .map(|known| {
                let mountpoints =
                    known.pool.mountpoints.iter().map(|path| path.display().to_string()).collect();
                (pool_id_text(known.pool.pool_id), device_text(known.pool.dev), mountpoints)
            })
            .collect();
        let addresses: Vec<PoolAddress<'_>> = known
            .iter()
            .zip(&texts)
            .map(|(known, (pool_id, device, mountpoints))| PoolAddress {
                name: &known.pool.name,
                pool_id,
                device,
                mountpoints,
            })
            .collect();
        find_pool(wanted, &addresses).map(|index| known[index].clone())
    }

    /// Brings a decision of an operator into the kernel, and says whether it is there.
    fn change_mode(
        &mut self,
        known: &KnownPool,
        peer: &Peer,
        mounts: &MountWatch,
        operation: &'static str,
    ) -> Result<KnownPool, Refusal> {
        self.save_state();
        let generation = known.entry.generation;
        let asked = Asked { generation, peer: *peer };
        self.reconcile(ReconcileCause::Asked(asked), mounts)
            .map_err(|error| Refusal::Failed { operation, detail: chain(&error) })?;
        let ended = || Refusal::Failed { operation, detail: "the pool has just ended".to_owned() };
        self.book.get(generation).cloned().ok_or_else(ended)
    }

    /// Takes leases off the list and writes down why. The kernel's side of a release is the
    /// caller's.
    pub(super) fn close_leases(&mut self, change: LeaseChange, which: impl Fn(&Lease) -> bool) {
        let over = self.grants.close(which);
        for lease in &over {
            self.end_command(lease);
            tracing::info!(lease = lease.id, pool = lease.pool, ?change, "lease");
            self.write_lease(change, lease);
        }
        if !over.is_empty() {
            self.save_state();
        }
    }

    /// Writes changes; a failed write is tried again with each tick.
    pub(super) fn save_state(&mut self) {
        let troubles = &mut self.posture.troubles;
        match self.grants.save() {
            Ok(()) => troubles.clear(trouble::STATE),
            Err(error) => {
                // Once is enough: the posture says that it goes on.
                if troubles.detail(trouble::STATE).is_none() {
                    tracing::error!(error = chain(&error), "state");
                }
                troubles.set(trouble::STATE, chain(&error));
            }
        }
    }

    pub(super) fn write_lease(&mut self, change: LeaseChange, lease: &Lease) {
        self.write(Body::Lease(grants::record(change, lease)));
    }
}
