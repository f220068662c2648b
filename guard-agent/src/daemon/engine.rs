//! The tier that answers from user space: wiring between the agent and [`crate::host::fanotify`].

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;

use guard_common::policy::{POOL_CANARY, POOL_NO_ALIAS};
use guard_common::{PoolEntry, PoolKey, Record, Tier};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::agent::Agent;
use super::{DaemonError, failed, posture};
use crate::host::audit_log::origin;
use crate::host::bpf::load::BareMaps;
use crate::host::clock;
use crate::host::clock::now;
use crate::host::fanotify;
use crate::host::fanotify::Engine;
use crate::host::fanotify::order::Special;
use crate::host::mount_table::MountWatch;
use crate::host::reactor;
use crate::model::audit::record::{AgentChange, LeaseKind};
use crate::model::errors::chain;
use crate::model::mounts::{MountEntry, Snapshot};
use crate::model::plan;

fn boot_id() -> Result<String, DaemonError> {
    Ok(origin::of_this_host().map_err(failed("read the boot id"))?.boot_id)
}

impl Agent {
    /// Starts the engine, brings marks and seals to what the maps say, and proves it before
    /// whatever was in force goes: an older agent's responder, or programs.
    pub(super) fn put_engine_in_force(
        &mut self,
        bare: &BareMaps,
        mounts: &MountWatch,
    ) -> Result<(), DaemonError> {
        let boot_id = boot_id()?;
        let (engine, pipe) = Engine::start(
            &bare.map_directory(),
            &self.options.pin_dir,
            &self.options.state_dir,
            &boot_id,
        )?;
        self.answers = Some(
            reactor::watch(pipe, Interest::READABLE)
                .map_err(failed("watch the responder's records"))?,
        );
        self.engine = Some(engine);
        self.tier = Some(Tier::Fanotify);
        let why = match self.passed_over.is_empty() {
            true => "policy asks for this tier".to_owned(),
            false => self.passed_over.join("; "),
        };
        self.troubles.set(posture::WEAK_TIER, why);
        self.reconcile(mounts);
        self.check_reconciled()?;
        let Some(engine) = &mut self.engine else { return Ok(()) };
        let proven = engine.prove(&mut self.maps);
        let retired = match &proven {
            Ok(()) => {
                self.settle()?;
                let others = self.engine.as_ref().map_or(0, Engine::retire_others);
                others + bare.retire_programs()? + self.take_over()?
            }
            Err(_) => 0,
        };
        self.announce(if retired == 0 { AgentChange::Started } else { AgentChange::Upgraded });
        let Err(error) = proven else {
            self.canary_passed();
            return Ok(());
        };
        self.canary_failed(&error);
        if self.may_run_inactive() {
            return Ok(());
        }
        if let Some(engine) = self.engine.take() {
            engine.withdraw();
        }
        Err(self.inactive(error))
    }

    /// Where the responder's records come from, if there is one.
    pub fn take_answers(&mut self) -> Option<AsyncFd<File>> {
        self.answers.take()
    }

    /// Ends what an agent of this tier has left, once a stronger one is proven.
    pub(super) fn end_engines(&mut self) {
        let boot_id = boot_id().map_err(|error| chain(&error));
        let ended = boot_id.and_then(|boot_id| {
            fanotify::unload(&self.options.pin_dir, &self.options.state_dir, &boot_id)
                .map_err(|error| chain(&error))
        });
        if let Err(error) = ended {
            tracing::error!(error, "what the tier fanotify has left is still there");
            self.troubles.set(posture::UNSEALED, error);
        }
    }

    /// Brings marks and seals to what the maps say.
    pub(super) fn order_marks(&mut self) -> Result<(), String> {
        if self.engine.is_none() {
            return Ok(());
        }
        let pools = self.maps.observed().map_err(|error| chain(&error))?.pools;
        let pools = pools.into_iter().filter(|(_, entry)| plan::is_pool(entry)).collect();
        let moment = now().boot_ns;
        let running = self.state.state.leases.iter().filter(|lease| lease.ends_boot_ns > moment);
        let commands = running.filter(|lease| lease.kind == LeaseKind::Command);
        let leased: BTreeSet<u64> = commands.map(|lease| lease.generation).collect();
        let keys: BTreeSet<PoolKey> = self.pools.values().map(|known| known.key).collect();
        let mut special = Special::default();
        for mount in self.snapshot.entries() {
            let Some(pool) = self.classification.pool_of(mount) else { continue };
            if pool.visitor && !pool.mountpoints.contains(&mount.mountpoint) {
                special.free.insert(mount.mount_id);
            }
            let part = PoolKey { dev: pool.dev, head: pool.head };
            if keys.contains(&part) {
                special.heads.insert(mount.mount_id, pool.head);
            }
        }
        if let Some(engine) = &mut self.engine {
            engine.apply(&pools, &leased, &special, &self.snapshot);
        }
        self.note_engine();
        Ok(())
    }

    /// No hook tells of a superblock's end here: an entry without a mount is taken for ended, so
    /// that a device number that is used again inherits nothing.
    pub(super) fn remove_unmounted(&mut self) -> Result<(), String> {
        if self.engine.is_none() {
            return Ok(());
        }
        let text = |error: crate::host::bpf::MapAccessError| chain(&error);
        let tables = std::iter::once(&self.snapshot).chain(self.foreign.values());
        let mounted: BTreeSet<u32> =
            tables.flat_map(Snapshot::entries).map(MountEntry::dev).collect();
        let is_gone = |(key, entry): &(PoolKey, PoolEntry)| {
            entry.flags & (POOL_CANARY | POOL_NO_ALIAS) == 0 && !mounted.contains(&key.dev)
        };
        let gone: Vec<PoolKey> = self
            .maps
            .pools
            .entries()
            .map_err(text)?
            .into_iter()
            .filter(is_gone)
            .map(|(key, _)| key)
            .collect();
        gone.iter().try_for_each(|key| self.maps.pools.remove(key)).map_err(text)
    }

    /// The mount table has changed, perhaps into one that reads the same.
    pub(super) fn note_mounts_changed(&mut self) {
        if let Some(engine) = &mut self.engine {
            engine.mounts_changed();
        }
    }

    /// Looks after the responder.
    pub(super) fn tick_engine(&mut self) {
        if let Some(engine) = &mut self.engine {
            engine.tick();
            self.note_engine();
        }
    }

    fn note_engine(&mut self) {
        let Some(engine) = &self.engine else { return };
        let problems = engine.problems();
        self.troubles.set_if(posture::UNMARKED, || problems.unmarked);
        self.troubles.set_if(posture::UNSEALED, || problems.unsealed);
        self.troubles.set_if(posture::UNSEEN, || problems.unseen);
        self.troubles.set_if(posture::RESPONDER, || problems.replaced);
    }

    /// Writes down every record that waits in the responder's pipe. Each was written whole.
    pub fn drain_answers(&mut self, pipe: &mut File) {
        let (offset, _) = clock::read();
        let mut bytes = [0; size_of::<Record>()];
        while pipe.read_exact(&mut bytes).is_ok() {
            self.write_decision(&bytes, offset);
        }
    }
}
