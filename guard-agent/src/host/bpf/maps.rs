//! Typed handles to the pinned maps. Everything the agent knows about their content goes through
//! here.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf};
use guard_common::names::{capacity, map};
use guard_common::policy::{CONFIG_LEASES, Magics};
use guard_common::{
    ActorMask, CarriedKey, CgroupKey, Checked, Config, Counter, ExecutableKey, FilesystemKey,
    IncidentKey, IncidentValue, KindEntry, LeaseEntry, LeaseKey, Meta, PoolCounters, PoolEntry,
    PoolKey, RootEntry, RootKey,
};
use thiserror::Error;

/// A map could not be opened, read or written.
#[derive(Debug, Error)]
#[error("{operation} BPF map {map}")]
pub struct MapAccessError {
    operation: &'static str,
    map: &'static str,
    #[source]
    source: MapError,
}

impl MapAccessError {
    /// An error of a map that has no room, for tests of code that writes maps.
    #[cfg(test)]
    pub(crate) fn full(map: &'static str) -> Self {
        let io_error = std::io::Error::from_raw_os_error(nix::libc::E2BIG);
        let error = aya::sys::SyscallError { call: "bpf_map_update_elem", io_error };
        Self { operation: "write", map, source: MapError::SyscallError(error) }
    }

    /// Whether the map has no room for another entry.
    pub fn is_full(&self) -> bool {
        matches!(&self.source, MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(nix::libc::E2BIG))
    }
}

/// One array element.
pub struct Single<V: Pod>(Array<MapData, V>, &'static str);

impl<V: Pod> Single<V> {
    /// Reads it.
    pub fn read(&self) -> Result<V, MapAccessError> {
        self.0.get(&0, 0).map_err(|source| MapAccessError {
            operation: "read",
            map: self.1,
            source,
        })
    }

    /// Replaces it.
    pub fn write(&mut self, value: V) -> Result<(), MapAccessError> {
        self.0.set(0, value, 0).map_err(|source| MapAccessError {
            operation: "write",
            map: self.1,
            source,
        })
    }
}

/// Whether an entry must be there before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Write {
    /// Either way.
    Put = 0,
    /// It must not be there.
    Create = 1,
    /// It must be there.
    Update = 2,
}

/// A value with two forms: the one that lies in the map, and the one that the agent works with.
/// They differ by the check word, which only the map's form has.
pub trait Stored<K>: Pod {
    /// The map's form.
    fn stored(self, _key: &K) -> Self {
        self
    }

    /// The agent's form; `None` if the value was changed while it was read.
    fn taken(self, _key: &K) -> Option<Self> {
        Some(self)
    }
}

impl Stored<u32> for u32 {}
impl Stored<u64> for PoolCounters {}
impl Stored<CarriedKey> for PoolCounters {}
impl Stored<IncidentKey> for IncidentValue {}
impl Stored<u64> for [u64; Counter::COUNT as usize] {}

macro_rules! stored_with_check {
    ($($key:ty => $value:ty),+ $(,)?) => { $(
        impl Stored<$key> for $value {
            fn stored(self, key: &$key) -> Self {
                self.with_check(key)
            }

            fn taken(self, key: &$key) -> Option<Self> {
                self.is_whole(key).then(|| Checked::<$key>::without_check(self))
            }
        }
    )+ };
}

stored_with_check! {
    PoolKey => PoolEntry, RootKey => RootEntry, FilesystemKey => KindEntry,
    CgroupKey => ActorMask, ExecutableKey => ActorMask, LeaseKey => LeaseEntry,
}

/// Highest number of reads of an entry that changes meanwhile.
const TRIES: u32 = 100;

/// A hash map.
pub struct Table<K: Pod, V: Pod>(HashMap<MapData, K, V>, &'static str);

impl<K: Pod, V: Stored<K>> Table<K, V> {
    /// One entry.
    pub fn get(&self, key: &K) -> Result<Option<V>, MapAccessError> {
        for _ in 0..TRIES {
            match self.0.get(key, 0).map(|value| value.taken(key)) {
                Ok(Some(value)) => return Ok(Some(value)),
                Ok(None) => {}
                Err(MapError::KeyNotFound) => return Ok(None),
                Err(source) => return Err(self.error("read", source)),
            }
        }
        let what = io::Error::other(format!(
            "an entry was not whole {TRIES} times: something else writes it"
        ));
        Err(self.error("read", MapError::IoError(what)))
    }

    /// All entries. One that goes while they are read is left out.
    pub fn entries(&self) -> Result<Vec<(K, V)>, MapAccessError> {
        let mut entries = Vec::new();
        for key in self.0.keys() {
            let key = key.map_err(|source| self.error("list", source))?;
            if let Some(value) = self.get(&key)? {
                entries.push((key, value));
            }
        }
        Ok(entries)
    }

    /// All entries, in the order of their keys.
    pub fn sorted(&self) -> Result<BTreeMap<K, V>, MapAccessError>
    where
        K: Ord,
    {
        Ok(self.entries()?.into_iter().collect())
    }

    /// Whether there is any entry.
    pub fn any(&self) -> Result<bool, MapAccessError> {
        self.0
            .keys()
            .next()
            .transpose()
            .map(|key| key.is_some())
            .map_err(|source| self.error("list", source))
    }

    /// Writes an entry.
    pub fn write(&mut self, key: K, value: V, write: Write) -> Result<(), MapAccessError> {
        self.0
            .insert(key, value.stored(&key), write as u64)
            .map_err(|source| self.error("write", source))
    }

    /// Removes all entries.
    pub fn clear(&mut self) -> Result<(), MapAccessError> {
        let keys: Result<Vec<K>, MapError> = self.0.keys().collect();
        keys.map_err(|source| self.error("list", source))?
            .iter()
            .try_for_each(|key| self.remove(key))
    }

    /// Removes an entry; it is no error if it is gone already.
    pub fn remove(&mut self, key: &K) -> Result<(), MapAccessError> {
        match self.0.remove(key) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(nix::libc::ENOENT) =>
            {
                Ok(())
            }
            Err(source) => Err(self.error("remove from", source)),
        }
    }

    fn error(&self, operation: &'static str, source: MapError) -> MapAccessError {
        MapAccessError { operation, map: self.1, source }
    }
}

/// All maps.
pub struct Maps {
    pub meta: Single<Meta>,
    pub config: Single<Config>,
    magics: Single<Magics>,
    pub pools: Table<PoolKey, PoolEntry>,
    /// Mount namespaces that are the host's view too.
    pub namespaces: Table<u32, u32>,
    pub roots: Table<RootKey, RootEntry>,
    pub filesystems: Table<FilesystemKey, KindEntry>,
    pub actor_cgroups: Table<CgroupKey, ActorMask>,
    pub actor_executables: Table<ExecutableKey, ActorMask>,
    pub leases: Table<LeaseKey, LeaseEntry>,
    pub pool_counters: Table<u64, PoolCounters>,
    pub incidents: Table<IncidentKey, IncidentValue>,
    counters: PerCpuArray<MapData, u64>,
    /// By the token of maps that these have replaced: the values of their counters.
    pub(super) carried: Table<u64, [u64; Counter::COUNT as usize]>,
    pub(super) carried_pools: Table<CarriedKey, PoolCounters>,
}

impl Maps {
    /// Opens the pins in a directory.
    pub fn open(directory: &Path) -> Result<Self, MapAccessError> {
        Ok(Self {
            meta: single(directory, map::META)?,
            config: single(directory, map::CONFIG)?,
            magics: single(directory, map::MAGICS)?,
            pools: table(directory, map::POOLS)?,
            namespaces: table(directory, map::NAMESPACES)?,
            roots: table(directory, map::ROOTS)?,
            filesystems: table(directory, map::FILESYSTEMS)?,
            actor_cgroups: table(directory, map::ACTOR_CGROUPS)?,
            actor_executables: table(directory, map::ACTOR_EXES)?,
            leases: table(directory, map::LEASES)?,
            pool_counters: table(directory, map::POOL_COUNTERS)?,
            incidents: table(directory, map::INCIDENTS)?,
            counters: opened(map::COUNTERS, data(directory, map::COUNTERS).map(Map::PerCpuArray))?,
            carried: table(directory, map::CARRIED)?,
            carried_pools: table(directory, map::CARRIED_POOLS)?,
        })
    }

    /// The guarded magics, by their places.
    pub fn magics(&self) -> Result<Vec<u64>, MapAccessError> {
        Ok(self.magics.read()?.to_vec())
    }

    /// Puts a guarded magic in its place. All others are written over with their own values, which
    /// no reader notices.
    pub(super) fn put_magic(&mut self, slot: u32, magic: u64) -> Result<(), MapAccessError> {
        let mut magics = self.magics.read()?;
        magics[slot as usize] = magic;
        self.magics.write(magics)
    }

    /// Takes all of them out.
    pub(super) fn clear_magics(&mut self) -> Result<(), MapAccessError> {
        self.magics.write([0; capacity::MAGICS as usize])
    }

    /// Gives a lease. The kernel program looks for leases only while [`CONFIG_LEASES`] is set: that
    /// comes first.
    pub fn grant(&mut self, key: LeaseKey, entry: LeaseEntry) -> Result<(), MapAccessError> {
        let config = self.config.read()?;
        if config.flags & CONFIG_LEASES == 0 {
            self.config.write(Config { flags: config.flags | CONFIG_LEASES, ..config })?;
        }
        self.leases.write(key, entry, Write::Put)
    }

    /// Adds to a counter from outside the kernel. Only where no program counts in the same map: the
    /// tier whose answers come from user space.
    pub fn count(&mut self, counter: Counter, number: u64) -> Result<(), MapAccessError> {
        let error = |source| MapAccessError { operation: "write", map: map::COUNTERS, source };
        let mut values = self.counters.get(&(counter as u32), 0).map_err(error)?.to_vec();
        if let Some(first) = values.first_mut() {
            *first += number;
        }
        let values =
            PerCpuValues::try_from(values).map_err(|source| error(MapError::IoError(source)))?;
        self.counters.set(counter as u32, values, 0).map_err(error)
    }

    /// The counters, summed up over all CPUs, with those of maps that these have replaced.
    pub fn counters(&self) -> Result<BTreeMap<Counter, u64>, MapAccessError> {
        let carried = self.carried.entries()?;
        let before = |counter: Counter| {
            carried.iter().map(|(_, counts)| counts[counter as usize]).sum::<u64>()
        };
        let error = |source| MapAccessError { operation: "read", map: map::COUNTERS, source };
        Counter::ALL
            .iter()
            .map(|counter| {
                let values = self.counters.get(&(*counter as u32), 0).map_err(error)?;
                Ok((*counter, values.iter().sum::<u64>() + before(*counter)))
            })
            .collect()
    }
}

/// Writes the layout's description.
pub fn describe(directory: &Path, json: &str) -> Result<(), MapAccessError> {
    let mut bytes = [0; capacity::DESCRIPTION_BYTES];
    bytes[..json.len()].copy_from_slice(json.as_bytes());
    single(directory, map::DESCRIPTION)?.write(bytes)
}

/// Opens the ring buffer of records. It has one reader.
pub fn records(directory: &Path) -> Result<RingBuf<MapData>, MapAccessError> {
    opened(map::RECORDS, data(directory, map::RECORDS).map(Map::RingBuf))
}

fn data(directory: &Path, name: &str) -> Result<MapData, MapError> {
    MapData::from_pin(directory.join(name))
}

fn opened<T: TryFrom<Map, Error = MapError>>(
    name: &'static str,
    map: Result<Map, MapError>,
) -> Result<T, MapAccessError> {
    map.and_then(T::try_from).map_err(|source| MapAccessError {
        operation: "open",
        map: name,
        source,
    })
}

fn single<V: Pod>(directory: &Path, name: &'static str) -> Result<Single<V>, MapAccessError> {
    Ok(Single(opened(name, data(directory, name).map(Map::Array))?, name))
}

/// Opens one hash map.
pub fn table<K: Pod, V: Pod>(
    directory: &Path,
    name: &'static str,
) -> Result<Table<K, V>, MapAccessError> {
    Ok(Table(opened(name, data(directory, name).map(Map::HashMap))?, name))
}
