//! Pinned objects, read and never written: loads of the programs, pools with their modes, counters.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use guard_common::names::PROGRAMS;
use guard_common::{Mode, PoolEntry, PoolKey};

use super::places::{Places, Why};
use super::report::{Counters, InForce, Load, Responder};
use super::silence::is_stopped;
use crate::host::bpf::Maps;
use crate::host::bpf::layouts::Layouts;
use crate::host::bpf::pins::{Generation, PinError};
use crate::host::fanotify;
use crate::host::mount_table;
use crate::model::audit::record::{device_text, pool_id_text};
use crate::model::classify;
use crate::model::control::report::{AnsweredBy, PoolCountersReport, PoolReport};
use crate::model::events::Name;
use crate::model::mounts::Snapshot;
use crate::model::plan;
use crate::model::time::{BootOffset, Stamp};

const SECOND: u64 = 1_000_000_000;
/// The host's mount table, and the process's own for users who may not read that. Both are the same
/// on a host without tricks.
const MOUNT_TABLES: [&str; 2] = [mount_table::HOST, mount_table::OWN];

/// Enforcement that denies deletions now.
pub(super) fn in_force(places: &Places, boot_id: &str) -> Result<InForce, Why> {
    let loads = match is_there(&places.pin_dir)? {
        true => loads(&Layouts::at(&places.pin_dir)).map_err(|error| Why::of(&error))?,
        false => Vec::new(),
    };
    let responders = fanotify::responders(&places.pin_dir);
    let responders =
        responders.into_iter().map(|pid| Responder { pid, is_stopped: is_stopped(pid) });
    let sealed =
        fanotify::recorded_seals(&places.state_dir, boot_id).map_err(|error| Why::of(&error))?;
    Ok(InForce { loads, responders: responders.collect(), read_only_mounts: sealed })
}

/// Of every layout: while one takes another's place both are in force.
fn loads(layouts: &Layouts) -> Result<Vec<Load>, PinError> {
    let mut loads = Vec::new();
    for layout in layouts.found()? {
        for generation in layout.pins.generations()? {
            loads.push(load(&generation)?);
        }
    }
    Ok(loads)
}

/// Whether a directory is there; that it cannot be looked at is an error.
fn is_there(directory: &Path) -> Result<bool, Why> {
    match fs::metadata(directory) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Why::io(directory)(error)),
    }
}

fn load(generation: &Generation) -> Result<Load, PinError> {
    let (mut linked, mut unlinked) = (Vec::new(), Vec::new());
    for name in PROGRAMS {
        match generation.is_linked(name.program)? {
            Some(true) => linked.push(name.hook.to_owned()),
            Some(false) => unlinked.push(name.hook.to_owned()),
            // A kernel may lack a hook.
            None => {}
        }
    }
    Ok(Load {
        tier: Name(generation.tier),
        identity: generation.identity.clone(),
        linked,
        unlinked,
    })
}

/// The pools in the pinned map, placed by the mount table, and the counters.
pub(super) fn pools(
    places: &Places,
    (offset, now): (BootOffset, Stamp),
) -> Result<(Vec<PoolReport>, Counters), Why> {
    let nothing = || Why::NoPins { path: places.pin_dir.clone() };
    if !is_there(&places.pin_dir)? {
        return Err(nothing());
    }
    let current = Layouts::at(&places.pin_dir).current().map_err(|error| Why::of(&error))?;
    let layout = current.ok_or_else(nothing)?;
    let directory = layout.pins.maps();
    if !layout.name.is_own() {
        return Err(Why::Layout { path: directory, found: layout.name.version });
    }
    let maps = Maps::open(&directory).map_err(|error| Why::of(&error))?;
    let mounts = mount_table()?;
    let entries = maps.pools.sorted().map_err(|error| Why::of(&error))?;
    let entries = entries.into_iter().filter(|(_, entry)| plan::is_pool(entry));
    let mut pools: Vec<PoolReport> = entries
        .map(|(key, entry)| {
            let counters = maps.pool_totals(entry.generation).unwrap_or_default();
            pool(key, &entry, &mounts, counters.into(), offset, now.boot_ns)
        })
        .collect();
    pools.sort_by(|one, other| (&one.name, one.generation).cmp(&(&other.name, other.generation)));
    let counters = maps.counters().map_err(|error| Why::of(&error))?;
    Ok((pools, Counters::of(&counters)))
}

fn mount_table() -> Result<Snapshot, Why> {
    let table = MOUNT_TABLES.iter().find_map(|path| File::open(path).ok());
    let path = Path::new(MOUNT_TABLES[0]);
    let table = table.ok_or_else(|| Why::io(path)(io::ErrorKind::NotFound.into()))?;
    mount_table::read(&table).map_err(Why::io(path))
}

/// One entry of the map. Its place is all mounts of the superblock; of a part, those that show
/// something of the mount that stands for it.
fn pool(
    key: PoolKey,
    entry: &PoolEntry,
    mounts: &Snapshot,
    counters: PoolCountersReport,
    offset: BootOffset,
    now_boot_ns: u64,
) -> PoolReport {
    let source = mounts.mount(key.head).map(|head| &head.source);
    let places = mounts.entries().iter().filter(|mount| mount.dev() == key.dev);
    let places: Vec<_> = places
        .filter(|mount| {
            !key.is_part() || source.is_some_and(|source| classify::contains(source, &mount.source))
        })
        .collect();
    // A mode that nobody knows is decided as sealed, and a release that is over too.
    let mode = Mode::from_u32(entry.mode).unwrap_or(Mode::Sealed);
    let left = entry.expires_boot_ns.checked_sub(now_boot_ns).filter(|left| *left > 0);
    let left = left.filter(|_| mode == Mode::Released);
    let mode = if mode == Mode::Released && left.is_none() { Mode::Sealed } else { mode };
    let name = places.first().and_then(|mount| mount.mountpoint.file_name());
    let text = |get: fn(&crate::model::mounts::MountEntry) -> String| {
        places.first().map_or("-".to_owned(), |mount| get(mount))
    };
    PoolReport {
        name: name.map_or("-".to_owned(), |name| name.to_string_lossy().into_owned()),
        pool_id: pool_id_text(entry.pool_id),
        device: device_text(key.dev),
        filesystem: text(|mount| mount.fs_type.clone()),
        source: text(|mount| mount.source.to_string_lossy().into_owned()),
        mountpoints: places.iter().map(|mount| mount.mountpoint.display().to_string()).collect(),
        root: None,
        mode: Name(mode),
        mode_cause: None,
        generation: entry.generation,
        release_ends: left.map(|_| offset.stamp(entry.expires_boot_ns).time),
        remaining_seconds: left.map(|left| left / SECOND),
        counters,
        answered_by: AnsweredBy::PinsAndFiles,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn read(entry: PoolEntry, now_boot_ns: u64) -> PoolReport {
        let table =
            b"50 20 0:44 / /var/lib/incus/storage-pools/default rw - ceph admin@f.cephfs=/ \
             rw\n51 20 0:45 / /elsewhere rw - ceph admin@f.cephfs=/ rw\n";
        let offset = BootOffset::between(Duration::from_secs(1_790_000_000), Duration::ZERO);
        pool(
            PoolKey::superblock(44),
            &entry,
            &Snapshot::parse(table),
            PoolCountersReport::default(),
            offset,
            now_boot_ns,
        )
    }

    #[test]
    fn a_pool_is_placed_by_the_mount_table() {
        let entry = PoolEntry { mode: Mode::Guarded as u32, generation: 3, ..PoolEntry::default() };
        let pool = read(entry, 0);
        assert_eq!((pool.name.as_str(), pool.filesystem.as_str()), ("default", "ceph"));
        assert_eq!(pool.mountpoints, ["/var/lib/incus/storage-pools/default"]);
        assert_eq!(
            (pool.mode.0, pool.release_ends, pool.remaining_seconds),
            (Mode::Guarded, None, None)
        );
        assert_eq!(pool.answered_by, AnsweredBy::PinsAndFiles);
    }

    #[test]
    fn a_release_that_is_over_is_sealed() {
        let released = PoolEntry {
            mode: Mode::Released as u32,
            expires_boot_ns: 9 * SECOND,
            ..PoolEntry::default()
        };
        let pool = read(released, 4 * SECOND);
        assert_eq!((pool.mode.0, pool.remaining_seconds), (Mode::Released, Some(5)));
        let pool = read(released, 9 * SECOND);
        assert_eq!(
            (pool.mode.0, pool.remaining_seconds, pool.release_ends),
            (Mode::Sealed, None, None)
        );
        let strange = PoolEntry { mode: 77, ..PoolEntry::default() };
        assert_eq!(read(strange, 0).mode.0, Mode::Sealed);
    }
}
