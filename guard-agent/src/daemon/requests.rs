//! Requests from the control socket. Who may ask was checked by `control`; what is granted is
//! decided here.

use std::time::Duration;

use super::agent::Agent;
use super::pools::KnownPool;
use super::report::wall;
use super::{is_active, posture};
use crate::daemon::control::{Command, Peer};
use crate::host::clock::now;
use crate::host::mount_table::MountWatch;
use crate::model::audit::record::{LeaseBody, LeaseChange, LeaseKind, device_text, pool_id_text};
use crate::model::audit::{Body, Place};
use crate::model::control::pool_name::{PoolAddress, find_pool};
use crate::model::control::report::LeaseReport;
use crate::model::control::{Refusal, Reply, Request};
use crate::model::errors::chain;
use crate::model::join::Event;
use crate::model::rollback::Allowed;
use crate::model::state::Lease;

impl Agent {
    /// Answers one request.
    pub fn handle(&mut self, command: Command, mounts: &MountWatch) {
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
                let default = self.policy.policy.lease().default_ttl();
                let ttl = ttl_seconds.map_or(default, Duration::from_secs);
                self.release(&pool, ttl, &reason, peer, mounts)
            }
            Request::ExecLease { pool, ttl_seconds, reason } => {
                let default = self.policy.policy.lease().default_ttl();
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
                self.reconcile(mounts);
                match &self.policy.rejected {
                    Some(rejected) => {
                        Err(Refusal::PolicyRejected { errors: rejected.errors.clone() })
                    }
                    None => Ok(Reply::PolicyReloaded {
                        generation: self.policy.generation,
                        hash: self.policy.policy.hash().to_owned(),
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
        self.overrides.sealed.insert(known.pool.pool_id);
        self.troubles.clear(posture::STATE_LOST);
        self.overrides.released.remove(&generation);
        self.state.state.sealed.insert(known.pool.pool_id);
        self.close_leases(LeaseChange::Revoked, |lease| lease.generation == generation);
        let known = self.change_mode(&known, peer, mounts, "seal")?;
        Ok(Reply::Sealed(Box::new(self.pool_report(&known))))
    }

    fn unseal(&mut self, wanted: &str, peer: &Peer, mounts: &MountWatch) -> Result<Reply, Refusal> {
        let known = self.find(wanted)?;
        self.overrides.sealed.remove(&known.pool.pool_id);
        self.overrides.found_sealed.remove(&known.pool.pool_id);
        self.troubles.clear(posture::STATE_LOST);
        self.state.state.sealed.remove(&known.pool.pool_id);
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
        let lease = self.new_lease(LeaseKind::Release, &known, ttl, reason, peer);
        self.state.state.leases.push(lease.clone());
        self.overrides.released.insert(generation, lease.ends_boot_ns);
        self.write_lease(LeaseChange::Granted, &lease);
        if let Err(refusal) = self.change_mode(&known, peer, mounts, "release") {
            self.overrides.released.remove(&generation);
            self.close_leases(LeaseChange::Revoked, |other| other.id == lease.id);
            self.reconcile(mounts);
            return Err(refusal);
        }
        Ok(Reply::Released(Box::new(LeaseReport::of(&lease, now().boot_ns))))
    }

    /// Whether a lease may be granted at all.
    pub(super) fn may_grant(&self, ttl: Duration, reason: &str) -> Result<(), Refusal> {
        let limit = self.policy.policy.lease().max_ttl();
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
        if let Some(posture) = self.posture.as_ref().filter(|posture| !is_active(posture.state)) {
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

    /// A lease from now on, with a number of its own. It is not in force by that.
    pub(super) fn new_lease(
        &mut self,
        kind: LeaseKind,
        known: &KnownPool,
        ttl: Duration,
        reason: &str,
        peer: &Peer,
    ) -> Lease {
        let moment = now();
        let ends_boot_ns =
            moment.boot_ns.saturating_add(u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX));
        let number = self.state.state.next_lease;
        self.state.state.next_lease += 1;
        Lease {
            id: format!("lease-{number}"),
            kind,
            generation: known.entry.generation,
            pool_id: known.pool.pool_id,
            pool: known.pool.name.clone(),
            mountpoint: known.pool.mountpoint.display().to_string(),
            reason: reason.trim().to_owned(),
            uid: peer.uid,
            login_uid: peer.login_uid,
            granted: moment.time,
            ends: wall(ends_boot_ns),
            ends_boot_ns,
            ttl_seconds: ttl.as_secs(),
            command: None,
        }
    }

    fn revoke(&mut self, id: &str, peer: &Peer, mounts: &MountWatch) -> Result<Reply, Refusal> {
        let leases = &self.state.state.leases;
        let Some(lease) = leases.iter().find(|lease| lease.id == id).cloned() else {
            let leases = leases.iter().map(|lease| lease.id.clone()).collect();
            return Err(Refusal::NoSuchLease { id: id.to_owned(), leases });
        };
        if lease.kind == LeaseKind::Release {
            self.overrides.released.remove(&lease.generation);
        }
        self.close_leases(LeaseChange::Revoked, |other| other.id == lease.id);
        if let Some(known) = self.pools.get(&lease.generation).cloned() {
            self.change_mode(&known, peer, mounts, "revoke the lease")?;
        }
        Ok(Reply::LeaseRevoked(Box::new(LeaseReport::of(&lease, now().boot_ns))))
    }

    /// The pool that an operator means.
    pub(super) fn find(&self, wanted: &str) -> Result<KnownPool, Refusal> {
        let known: Vec<&KnownPool> = self.pools.values().collect();
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
        self.asked_by = Some((known.entry.generation, *peer));
        self.reconcile(mounts);
        self.asked_by = None;
        if let Some(detail) = self.troubles.detail(posture::RECONCILE) {
            return Err(Refusal::Failed { operation, detail });
        }
        let ended = || Refusal::Failed { operation, detail: "the pool has just ended".to_owned() };
        self.pools.get(&known.entry.generation).cloned().ok_or_else(ended)
    }

    /// Takes leases off the list and writes down why. The kernel's side of a release is the
    /// caller's.
    pub(super) fn close_leases(&mut self, change: LeaseChange, which: impl Fn(&Lease) -> bool) {
        let (over, running): (Vec<Lease>, Vec<Lease>) =
            std::mem::take(&mut self.state.state.leases)
                .into_iter()
                .partition(|lease| which(lease));
        self.state.state.leases = running;
        for lease in &over {
            self.end_command(lease);
            tracing::info!(lease = lease.id, pool = lease.pool, ?change, "lease");
            self.write_lease(change, lease);
        }
        if !over.is_empty() {
            self.save_state();
        }
    }

    /// Writes what has changed; what cannot be written now is tried again with each tick.
    pub(super) fn save_state(&mut self) {
        match self.state.save() {
            Ok(()) => self.troubles.clear(posture::STATE),
            Err(error) => {
                // Once is enough: the posture says that it goes on.
                if self.troubles.detail(posture::STATE).is_none() {
                    tracing::error!(error = chain(&error), "state");
                }
                self.troubles.set(posture::STATE, chain(&error));
            }
        }
    }

    pub(super) fn write_lease(&mut self, change: LeaseChange, lease: &Lease) {
        let place = Place {
            pool_id: Some(pool_id_text(lease.pool_id)),
            pool: Some(lease.pool.clone()),
            mountpoint: Some(lease.mountpoint.clone()),
            generation: Some(lease.generation),
        };
        self.write(Body::Lease(LeaseBody {
            change,
            id: lease.id.clone(),
            lease_kind: lease.kind,
            place,
            ttl_seconds: lease.ttl_seconds,
            ends: lease.ends,
            reason: lease.reason.clone(),
            uid: lease.uid,
            login_uid: lease.login_uid,
        }));
    }
}
