//! Leases for one command tree (`guardctl exec`): a cgroup of its own, which the kernel lets through.
//!
//! The command is guardctl's; the agent makes the cgroup, and ends the lease when nothing runs in it any more,
//! whatever became of guardctl. What still runs when a lease ends goes on, and is denied like everybody else.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guard_common::names::capacity;
use guard_common::{LeaseEntry, LeaseKey};

use super::owner::{Owner, now};
use super::report::lease_report;
use super::state::{CommandTree, Lease};
use super::{DaemonError, chain, posture};
use crate::audit::record::{LeaseChange, LeaseKind};
use crate::bpf::maps::Write;
use crate::control::{Peer, Refusal, Reply};
use crate::roots;

/// The cgroup above those of all leases.
const PARENT: &str = "/guard-agent.exec";
/// How a refusal names it.
const GRANT: &str = "grant a lease to a command";
/// A cgroup may stay empty for so long before its command begins.
const BEGIN: Duration = Duration::from_secs(10);
/// Cgroups below a lease's that are removed with it, in depth.
const DEPTH: usize = 32;

impl Owner {
    /// Grants a lease, and makes the cgroup for it.
    pub(super) fn exec_lease(
        &mut self,
        wanted: &str,
        ttl: Duration,
        reason: &str,
        peer: &Peer,
    ) -> Result<Reply, Refusal> {
        self.may_grant(ttl, reason)?;
        let known = self.find(wanted)?;
        let failed = |detail| Refusal::Failed { operation: GRANT, detail };
        let parent = self
            .commands_directory()
            .ok_or_else(|| failed("no cgroup v2 hierarchy is mounted".to_owned()))?;
        let mut lease = self.new_lease(LeaseKind::Command, &known, ttl, reason, peer);
        let directory = parent.join(&lease.id);
        // A new one: in one that is left over from an earlier state file, a stranger may still run.
        let made = fs::create_dir_all(&parent).and_then(|()| fs::create_dir(&directory));
        let made = made.and_then(|()| Ok(fs::metadata(&directory)?.ino()));
        let cgroup_id = made.map_err(|error| failed(format!("make {}: {error}", directory.display())))?;
        lease.command = Some(CommandTree { cgroup_id, dev: known.pool.dev, begun: false });
        self.state.state.leases.push(lease.clone());
        if let Err(refusal) =
            self.let_command_through(&lease, LeaseKey { cgroup_id, dev: known.pool.dev, reserved: 0 })
        {
            self.state.state.leases.retain(|other| other.id != lease.id);
            self.end_command(&lease);
            self.save_state();
            return Err(refusal);
        }
        self.write_lease(LeaseChange::Granted, &lease);
        tracing::info!(lease = lease.id, pool = lease.pool, reason = lease.reason, "lease for a command");
        let cgroup = directory.display().to_string();
        Ok(Reply::ExecLeased { lease: Box::new(lease_report(&lease)), cgroup })
    }

    /// Puts a lease in force.
    fn let_command_through(&mut self, lease: &Lease, key: LeaseKey) -> Result<(), Refusal> {
        let failed = |detail| Refusal::Failed { operation: GRANT, detail };
        // On disk first: an agent that starts ends what it does not know.
        self.state.save().map_err(|error| failed(chain(&error)))?;
        let entry = LeaseEntry { generation: lease.generation, expires_boot_ns: lease.ends_boot_ns };
        self.maps.leases.write(key, entry, Write::Put).map_err(|error| {
            if error.is_full() {
                Refusal::TooManyLeases { limit: capacity::LEASES }
            } else {
                failed(chain(&error))
            }
        })
    }

    /// Ends a lease in the kernel, if it is one of a command tree. The cgroup goes when it is empty.
    pub(super) fn end_command(&mut self, lease: &Lease) {
        let Some(tree) = &lease.command else { return };
        if let Err(error) = self.maps.leases.remove(&key(tree)) {
            tracing::error!(
                lease = lease.id,
                error = chain(&error),
                "the lease goes on until its time is over"
            );
            self.troubles.set(posture::RECONCILE, chain(&error));
        }
        if let Some(parent) = self.commands_directory() {
            remove(&parent.join(&lease.id), DEPTH);
        }
    }

    /// Takes up the leases that the last agent has left, and ends those in the kernel that nobody knows.
    pub fn adopt_commands(&mut self) -> Result<(), DaemonError> {
        let entries = self.maps.leases.sorted()?;
        let leases = &self.state.state.leases;
        let known = |wanted: &LeaseKey| {
            leases.iter().any(|lease| lease.command.as_ref().is_some_and(|tree| key(tree) == *wanted))
        };
        let unknown: Vec<LeaseKey> = entries.keys().filter(|entry| !known(entry)).copied().collect();
        for entry in unknown {
            tracing::warn!(cgroup = entry.cgroup_id, "a lease that nobody knows is ended");
            self.maps.leases.remove(&entry)?;
        }
        // The maps are others than they were, and generations began anew.
        self.close_leases(LeaseChange::Ended, |lease| {
            let entry = lease.command.as_ref().map(|tree| entries.get(&key(tree)));
            entry.is_some_and(|entry| entry.is_none_or(|entry| entry.generation != lease.generation))
        });
        Ok(())
    }

    /// Ends the leases of commands that are over, and removes cgroups that are left.
    pub(super) fn watch_commands(&mut self) {
        let Some(parent) = self.commands_directory() else { return };
        let moment = now().boot_ns;
        let mut over = Vec::new();
        for lease in &mut self.state.state.leases {
            let Some(tree) = &mut lease.command else { continue };
            let granted =
                lease.ends_boot_ns.saturating_sub(nanoseconds(Duration::from_secs(lease.ttl_seconds)));
            match is_populated(&parent.join(&lease.id)) {
                Ok(true) => tree.begun = true,
                Ok(false) if !tree.begun && moment < granted.saturating_add(nanoseconds(BEGIN)) => {}
                Ok(false) => over.push(lease.id.clone()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => over.push(lease.id.clone()),
                Err(error) => tracing::warn!(lease = lease.id, %error, "look at the cgroup of a lease"),
            }
        }
        if !over.is_empty() {
            self.close_leases(LeaseChange::Ended, |lease| over.contains(&lease.id));
        }
        let running = |name: &str| self.state.state.leases.iter().any(|lease| lease.id == name);
        for entry in fs::read_dir(&parent).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir())
                && !entry.file_name().to_str().is_some_and(running)
            {
                remove(&entry.path(), DEPTH);
            }
        }
    }

    fn commands_directory(&self) -> Option<PathBuf> {
        roots::cgroup_directory(PARENT, &self.snapshot)
    }
}

fn key(tree: &CommandTree) -> LeaseKey {
    LeaseKey { cgroup_id: tree.cgroup_id, dev: tree.dev, reserved: 0 }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether a process lives in a cgroup or below it.
fn is_populated(cgroup: &Path) -> io::Result<bool> {
    Ok(fs::read_to_string(cgroup.join("cgroup.events"))?.lines().any(|line| line == "populated 1"))
}

/// Removes a cgroup and those below it. One in which something runs stays for now.
fn remove(cgroup: &Path, depth: usize) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten().filter(|_| depth > 0) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path(), depth - 1);
        }
    }
    // Busy until the last process is gone; the next tick tries again.
    let _ = fs::remove_dir(cgroup);
}
