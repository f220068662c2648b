//! Counts and records answers, as the kernel program does in the same maps: counters, incidents,
//! records.
//!
//! Telemetry never changes an answer and never waits: a record that does not fit is counted.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use guard_common::record::{
    PATH_BYTES, PATH_COMPONENTS, RECORD_KERNEL_THREAD, RECORD_MOUNT_KNOWN, RECORD_PATH_TRUNCATED,
};
use guard_common::{
    Counter, Hook, IncidentKey, IncidentValue, Operation, PoolEntry, Reason, Record, Tier, Verdict,
};

use super::decide::Outcome;
use super::identity::{Process, mount_namespace};
use super::tally::{Counted, Tally};
use crate::host::bpf::maps::Write;
use crate::host::bpf::{MapAccessError, Maps};

/// One answer, with all that is known of it.
pub(super) struct Answered<'a> {
    pub outcome: Outcome,
    pub hook: Hook,
    pub entry: &'a PoolEntry,
    pub operation: Operation,
    pub dev: u32,
    /// Nothing where it is not told through which mount it was done.
    pub mount_id: Option<u32>,
    /// 0 where they are not known.
    pub parent_ino: u64,
    pub target_ino: u64,
    /// Inside the superblock.
    pub path: &'a Path,
    pub process: &'a Process,
    pub cgroup_id: u64,
    pub now_boot_ns: u64,
}

/// The incident that an answer belongs to. Of the process its number and start matter.
pub(super) fn incident(
    outcome: Outcome,
    entry: &PoolEntry,
    dev: u32,
    process: &Process,
) -> IncidentKey {
    IncidentKey {
        generation: entry.generation,
        start_boot_ns: process.start_boot_ns,
        tgid: process.tgid,
        dev,
        reason: outcome.reason as u32,
        verdict: outcome.verdict as u32,
    }
}

/// Destination of counters, incidents and records.
pub(super) struct Recorder {
    /// A pipe that does not block; each record goes in whole or not at all.
    records: OwnedFd,
    host_mnt_ns: u32,
    /// Held while one answer is entered: counters are read and then written. Nothing in it can
    /// block.
    turn: Mutex<()>,
}

impl Recorder {
    pub(super) fn new(records: OwnedFd) -> Self {
        Self { records, host_mnt_ns: mount_namespace(1), turn: Mutex::default() }
    }

    /// Whether a mount namespace, by its inode, is another than the host's.
    pub(super) fn is_elsewhere(&self, mnt_ns: u32) -> bool {
        mnt_ns != self.host_mnt_ns
    }

    /// Whether an audited answer is written down with all that can be known of it, rather than
    /// counted alone. If that cannot be told, it is.
    pub(super) fn is_recorded(&self, maps: &Maps, key: &IncidentKey) -> bool {
        let counted = maps.incidents.get(key).ok().flatten().map(|incident| incident.count);
        let full_records = maps.config.read().map(|config| u64::from(config.full_records));
        counted.zip(full_records.ok()).is_none_or(|(counted, full_records)| counted < full_records)
    }

    /// Writes an answer down. Both threads do, each with the maps as it has opened them.
    pub(super) fn enter(
        &self,
        maps: &mut Maps,
        answered: &Answered<'_>,
    ) -> Result<(), MapAccessError> {
        let (outcome, entry) = (answered.outcome, answered.entry);
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if (outcome.verdict, outcome.reason) == (Verdict::Denied, Reason::ReadError) {
            maps.count(Counter::ErrorReadClosed, 1)?;
        }
        count(maps, outcome, entry.generation, 1)?;
        if outcome.counter().is_audited() { self.audit(maps, answered) } else { Ok(()) }
    }

    /// Writes down counts. A count that cannot be written is lost, as a single one would be.
    pub(super) fn settle(&self, maps: &mut Maps, tally: &mut Tally) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        for Counted { outcome, generation, number } in tally.take() {
            let _ = count(maps, outcome, generation, number);
        }
    }

    fn audit(&self, maps: &mut Maps, answered: &Answered<'_>) -> Result<(), MapAccessError> {
        let process = answered.process;
        let key = incident(answered.outcome, answered.entry, answered.dev, process);
        let mut incident = maps.incidents.get(&key)?.unwrap_or_else(|| IncidentValue {
            first_boot_ns: answered.now_boot_ns,
            pool_id: answered.entry.pool_id,
            uid: process.uid,
            login_uid: process.login_uid,
            comm: words(process.comm),
            ..IncidentValue::default()
        });
        incident.count += 1;
        incident.last_boot_ns = answered.now_boot_ns;
        let full_records = u64::from(maps.config.read()?.full_records);
        let counter = if incident.count > full_records {
            Counter::RecordsAggregated
        } else if self.send(&self.record(answered, incident.count)) {
            incident.emitted += 1;
            Counter::RecordsEmitted
        } else {
            incident.lost += 1;
            maps.count(Counter::ErrorRingFull, 1)?;
            Counter::RecordsLost
        };
        maps.count(counter, 1)?;
        if let Err(error) = maps.incidents.write(key, incident, Write::Put) {
            maps.count(Counter::ErrorIncidentsFull, 1)?;
            return Err(error);
        }
        Ok(())
    }

    fn record(&self, answered: &Answered<'_>, number: u64) -> Record {
        let Answered { entry, process, outcome, .. } = answered;
        let mut record = Record {
            boot_ns: answered.now_boot_ns,
            start_boot_ns: process.start_boot_ns,
            generation: entry.generation,
            pool_id: entry.pool_id,
            cgroup_id: answered.cgroup_id,
            parent_ino: answered.parent_ino,
            target_ino: answered.target_ino,
            incident_count: number,
            hook: answered.hook as u32,
            operation: answered.operation as u32,
            verdict: outcome.verdict as u32,
            reason: outcome.reason as u32,
            mode: entry.mode,
            pid: process.tgid,
            tgid: process.tgid,
            ppid: process.ppid,
            uid: process.uid,
            euid: process.euid,
            login_uid: process.login_uid,
            mnt_ns: mount_namespace(process.tgid),
            mount_ns: self.host_mnt_ns,
            mount_id: answered.mount_id.unwrap_or(0),
            dev: answered.dev,
            flags: answered.mount_id.map_or(0, |_| RECORD_MOUNT_KNOWN)
                | if process.kernel_thread { RECORD_KERNEL_THREAD } else { 0 },
            path_len: 0,
            tier: Tier::Fanotify as u32,
            comm: process.comm,
            path: [0; guard_common::record::PATH_STORAGE],
        };
        write_path(&mut record, answered.path);
        record
    }

    /// Whether there was room for it.
    fn send(&self, record: &Record) -> bool {
        // SAFETY: a record is plain integers without padding (asserted beside the type), so all its
        // bytes are set.
        let bytes = unsafe {
            std::slice::from_raw_parts((&raw const *record).cast::<u8>(), size_of::<Record>())
        };
        nix::unistd::write(&self.records, bytes).is_ok()
    }
}

fn count(
    maps: &mut Maps,
    outcome: Outcome,
    generation: u64,
    number: u64,
) -> Result<(), MapAccessError> {
    maps.count(outcome.counter(), number)?;
    let Some(mut counters) = maps.pool_counters.get(&generation)? else { return Ok(()) };
    match outcome.verdict {
        Verdict::Denied => counters.denied += number,
        Verdict::WouldDeny => counters.would_deny += number,
        Verdict::Allowed => counters.allowed += number,
    }
    maps.pool_counters.write(generation, counters, Write::Update)
}

fn words(comm: [u8; 16]) -> [u64; 2] {
    let (low, high) = comm.split_at(8);
    [low, high].map(|half| u64::from_ne_bytes(half.try_into().expect("half of sixteen bytes")))
}

/// Names from the target up, each closed by a NUL, as the kernel program writes them.
fn write_path(record: &mut Record, path: &Path) {
    let names: Vec<&[u8]> = path
        .components()
        .filter_map(|part| match part {
            std::path::Component::Normal(name) => Some(name.as_bytes()),
            _ => None,
        })
        .collect();
    let mut length = 0;
    for (number, name) in names.iter().rev().enumerate() {
        if number == PATH_COMPONENTS || length >= PATH_BYTES || name.len() > 255 {
            record.flags |= RECORD_PATH_TRUNCATED;
            break;
        }
        record.path[length..length + name.len()].copy_from_slice(name);
        length += name.len() + 1;
    }
    record.path_len = u32::try_from(length).expect("the path's storage is small");
}
