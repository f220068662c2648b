//! Leases for one command tree (`guardctl exec`): a cgroup of its own, which the kernel lets
//! through.
//!
//! The agent makes no cgroup: guardctl puts itself into one and asks for it (`cli/own_cgroup.rs`),
//! then becomes the command. So the lease ends with that process. Other processes in the cgroup go
//! on, and are denied like all others.

use std::path::Path;
use std::time::Duration;

use guard_common::names::capacity;
use guard_common::{LeaseEntry, LeaseKey};
use tokio::io::Interest;

use super::Agent;
use super::requester::{GRANT, requester};
use crate::daemon::control::Peer;
use crate::daemon::error::DaemonError;
use crate::daemon::grants::LeaseTerms;
use crate::host::clock::now;
use crate::host::process;
use crate::host::reactor;
use crate::model::audit::record::{LeaseChange, LeaseKind};
use crate::model::control::report::LeaseReport;
use crate::model::control::{Refusal, Reply};
use crate::model::errors::chain;
use crate::model::posture::trouble;
use crate::model::state::{CommandTree, Lease};

const PROC: &str = "/proc";

impl Agent {
    /// Grants a lease to the cgroup in which the requester is alone.
    pub(super) fn exec_lease(
        &mut self,
        wanted: &str,
        ttl: Duration,
        reason: &str,
        peer: &Peer,
    ) -> Result<Reply, Refusal> {
        self.may_grant(ttl, reason)?;
        let known = self.find(wanted)?;
        let requester = requester(Path::new(PROC), peer, &self.view.snapshot)?;
        let tree = CommandTree {
            cgroup_id: requester.cgroup_id,
            dev: known.pool.dev,
            pid: requester.pid,
            start_ticks: requester.start_ticks,
        };
        // One lease for a cgroup and pool: a second one would end with the first.
        let command =
            |lease: &Lease| lease.command.as_ref().is_some_and(|other| key(other) == key(&tree));
        self.close_leases(LeaseChange::Revoked, command);
        let terms = LeaseTerms { kind: LeaseKind::Command, ttl, reason, peer };
        let mut lease = self.new_lease(&known, terms);
        let key = key(&tree);
        lease.command = Some(tree.clone());
        self.grants.add(lease.clone());
        if let Err(refusal) = self.let_command_through(&lease, key) {
            self.grants.close(|other| other.id == lease.id);
            self.end_command(&lease);
            self.save_state();
            return Err(refusal);
        }
        self.await_end(&tree);
        self.write_lease(LeaseChange::Granted, &lease);
        tracing::info!(
            lease = lease.id,
            pool = lease.pool,
            reason = lease.reason,
            cgroup = requester.cgroup,
            "lease for a command"
        );
        Ok(Reply::ExecLeased {
            lease: Box::new(LeaseReport::of(&lease, now().boot_ns)),
            cgroup: requester.cgroup,
        })
    }

    /// Tells the agent's loop when the process of a lease has ended. Without that the next tick
    /// finds it.
    fn await_end(&self, tree: &CommandTree) {
        let ended = self.command_ended();
        let opened = process::pidfd_open(tree.pid);
        match opened
            .and_then(|open| open.map(|fd| reactor::watch(fd, Interest::READABLE)).transpose())
        {
            Ok(Some(process)) => {
                tokio::spawn(async move {
                    let _ = process.readable().await;
                    ended.notify_one();
                });
            }
            Ok(None) => ended.notify_one(),
            Err(error) => {
                tracing::debug!(pid = tree.pid, %error, "the end of a command is found by the tick")
            }
        }
    }

    /// Puts a lease in force.
    fn let_command_through(&mut self, lease: &Lease, key: LeaseKey) -> Result<(), Refusal> {
        let failed = |detail| Refusal::Failed { operation: GRANT, detail };
        // On disk first: a starting agent ends leases that it does not know.
        self.grants.save().map_err(|error| failed(chain(&error)))?;
        let entry = LeaseEntry::new(lease.generation, lease.ends_boot_ns);
        self.enforcement.maps.grant(key, entry).map_err(|error| {
            if error.is_full() {
                Refusal::TooManyLeases { limit: capacity::LEASES }
            } else {
                failed(chain(&error))
            }
        })?;
        // Tier fanotify: a sealed pool's mounts are writable while a command has a lease on it.
        self.apply_marks().map_err(|error| failed(chain(&error)))
    }

    /// Ends a lease in the kernel, if it is one of a command tree.
    pub(super) fn end_command(&mut self, lease: &Lease) {
        let Some(tree) = &lease.command else { return };
        if let Err(error) = self.enforcement.maps.leases.remove(&key(tree)) {
            tracing::error!(
                lease = lease.id,
                error = chain(&error),
                "the lease goes on until its time is over"
            );
            self.posture.troubles.set(trouble::RECONCILE, chain(&error));
        }
        if let Err(error) = self.apply_marks() {
            tracing::error!(
                lease = lease.id,
                error = chain(&error),
                "the pool's mounts are sealed again with the next look"
            );
        }
    }

    /// Takes up the leases that the last agent has left, and ends those in the kernel that nobody
    /// knows.
    pub(crate) fn adopt_commands(&mut self) -> Result<(), DaemonError> {
        let entries = self.enforcement.maps.leases.sorted()?;
        let leases = self.grants.leases();
        let known = |wanted: &LeaseKey| {
            leases
                .iter()
                .any(|lease| lease.command.as_ref().is_some_and(|tree| key(tree) == *wanted))
        };
        let unknown: Vec<LeaseKey> =
            entries.keys().filter(|entry| !known(entry)).copied().collect();
        for entry in unknown {
            tracing::warn!(cgroup = entry.cgroup_id, "ended a lease that is in no state file");
            self.enforcement.maps.leases.remove(&entry)?;
        }
        // The maps are others than they were, and generations began anew.
        self.close_leases(LeaseChange::Ended, |lease| {
            let entry = lease.command.as_ref().map(|tree| entries.get(&key(tree)));
            entry
                .is_some_and(|entry| entry.is_none_or(|entry| entry.generation != lease.generation))
        });
        let running = self.grants.leases().iter();
        running.filter_map(|lease| lease.command.as_ref()).for_each(|tree| self.await_end(tree));
        Ok(())
    }

    /// Ends the leases of commands that are over.
    pub(crate) fn watch_commands(&mut self) {
        let is_over = |lease: &Lease| {
            let tree = lease.command.as_ref();
            tree.is_some_and(|tree| process::has_ended(Path::new(PROC), tree.pid, tree.start_ticks))
        };
        self.close_leases(LeaseChange::Ended, is_over);
    }
}

fn key(tree: &CommandTree) -> LeaseKey {
    LeaseKey { cgroup_id: tree.cgroup_id, dev: tree.dev, reserved: 0 }
}
