//! Synchronizes the tier that answers from user space with the maps.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;

use guard_common::policy::{POOL_CANARY, POOL_NO_ALIAS};
use guard_common::{PoolEntry, PoolKey, Record};

use super::Agent;
use crate::daemon::enforcement::Marks;
use crate::host::bpf::MapAccessError;
use crate::host::clock;
use crate::host::clock::now;
use crate::host::fanotify::order::Special;
use crate::model::audit::record::LeaseKind;
use crate::model::mounts::{MountEntry, Snapshot};
use crate::model::plan;

impl Agent {
    /// Synchronizes marks and seals with the maps, in the tier that has some.
    pub(super) fn apply_marks(&mut self) -> Result<(), MapAccessError> {
        if self.enforcement.marking().is_none() {
            return Ok(());
        }
        let pools = self.enforcement.maps.observed()?.pools;
        let pools = pools.into_iter().filter(|(_, entry)| plan::is_pool(entry)).collect();
        let moment = now().boot_ns;
        let running = self.grants.leases().iter().filter(|lease| lease.ends_boot_ns > moment);
        let commands = running.filter(|lease| lease.kind == LeaseKind::Command);
        let leased: BTreeSet<u64> = commands.map(|lease| lease.generation).collect();
        let marks = Marks { pools, leased, special: self.special(), snapshot: &self.view.snapshot };
        if let Some(means) = self.enforcement.marking() {
            means.apply(&marks);
            means.note_troubles(&mut self.posture.troubles);
        }
        Ok(())
    }

    /// The mounts that are decided about otherwise than their superblocks.
    fn special(&self) -> Special {
        let keys: BTreeSet<PoolKey> = self.book.pools().map(|known| known.key).collect();
        let mut special = Special::default();
        for mount in self.view.snapshot.entries() {
            let Some(pool) = self.view.classification.pool_of(mount) else { continue };
            if pool.visitor && !pool.mountpoints.contains(&mount.mountpoint) {
                special.free.insert(mount.mount_id);
            }
            let part = PoolKey { dev: pool.dev, head: pool.head };
            if keys.contains(&part) {
                special.heads.insert(mount.mount_id, pool.head);
            }
        }
        special
    }

    /// No hook tells of a superblock's end in that tier: an entry without a mount is taken for
    /// ended, so that a device number that is used again inherits nothing.
    pub(super) fn remove_unmounted(&mut self) -> Result<(), MapAccessError> {
        if self.enforcement.marking().is_none() {
            return Ok(());
        }
        let tables = std::iter::once(&self.view.snapshot).chain(self.view.foreign.values());
        let mounted: BTreeSet<u32> =
            tables.flat_map(Snapshot::entries).map(MountEntry::dev).collect();
        let is_gone = |(key, entry): &(PoolKey, PoolEntry)| {
            entry.flags & (POOL_CANARY | POOL_NO_ALIAS) == 0 && !mounted.contains(&key.dev)
        };
        let pools = &mut self.enforcement.maps.pools;
        let gone = pools.entries()?.into_iter().filter(is_gone);
        gone.map(|(key, _)| key).collect::<Vec<_>>().iter().try_for_each(|key| pools.remove(key))
    }

    /// Writes down every record that waits in the responder's pipe. Each was written whole.
    pub(super) fn drain_answers(&mut self, pipe: &mut File) {
        let (offset, _) = clock::read();
        let mut bytes = [0; size_of::<Record>()];
        while pipe.read_exact(&mut bytes).is_ok() {
            self.write_decision(&bytes, offset);
        }
    }
}
