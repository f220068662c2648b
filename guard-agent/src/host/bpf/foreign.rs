//! Reads the maps of another layout by the description that is pinned beside them. It writes
//! nothing there.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use aya::Pod;
use aya::maps::{Map, MapData, MapError, RingBuf};
use guard_common::names::map;
use guard_common::policy::{POOL_CANARY, POOL_NO_ALIAS};
use guard_common::{
    CarriedKey, FilesystemKey, IncidentKey, IncidentValue, KindEntry, LeaseEntry, LeaseKey, Meta,
    PoolCounters, PoolEntry, PoolKey, RootEntry, RootKey,
};
use thiserror::Error;

use super::description::{
    DescribedMap, Description, DescriptionError, Translation, own_map, size_of_fields,
};
use super::sys;

/// Another layout's maps could not be read.
#[derive(Debug, Error)]
pub enum ForeignError {
    #[error(transparent)]
    Description(#[from] DescriptionError),
    #[error("open their map {map}")]
    Open {
        map: String,
        #[source]
        source: MapError,
    },
    #[error("read their map {map}")]
    Read {
        map: String,
        #[source]
        source: io::Error,
    },
    #[error("list their map {map}: it changes all the time")]
    Restless { map: String },
}

/// Enforcement that the new maps take over from the old ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Estate {
    pub next_generation: u64,
    pub pools: BTreeMap<PoolKey, PoolEntry>,
    pub roots: BTreeMap<RootKey, RootEntry>,
    pub filesystems: BTreeMap<FilesystemKey, KindEntry>,
    pub leases: BTreeMap<LeaseKey, LeaseEntry>,
}

/// Totals that were counted in one layout's maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// By the counter's name.
    pub counters: BTreeMap<String, u64>,
    /// By the pool's generation.
    pub pools: BTreeMap<u64, PoolCounters>,
}

/// Another layout's maps.
#[derive(Debug)]
pub struct ForeignMaps {
    directory: PathBuf,
    pub description: Description,
    record: Translation,
}

type Entries = Vec<(Vec<u8>, Vec<u8>)>;

impl ForeignMaps {
    /// Reads the description in a directory of maps.
    pub fn open(directory: &Path) -> Result<Self, ForeignError> {
        let data = open(directory, map::DESCRIPTION)?;
        let mut bytes = vec![0; sizes(map::DESCRIPTION, &data)?.1];
        let read = sys::lookup(data.fd().as_fd(), &0_u32.to_ne_bytes(), &mut bytes);
        read.map_err(|source| ForeignError::Read { map: map::DESCRIPTION.to_owned(), source })?;
        let description = Description::parse(&bytes)?;
        let records = description.map(map::RECORDS)?;
        let record = Translation::new(map::RECORDS, &records.value, own_map(map::RECORDS).value)?;
        Ok(Self { directory: directory.to_owned(), description, record })
    }

    /// All that enforcement depends on.
    pub fn estate(&self) -> Result<Estate, ForeignError> {
        for unknown in self.description.unknown_maps() {
            if !self.raw(unknown)?.is_empty() {
                return Err(DescriptionError::UnknownMap { map: unknown.name.clone() }.into());
            }
        }
        let meta: BTreeMap<u32, Meta> = self.table(map::META)?;
        Ok(Estate {
            next_generation: meta.get(&0).map_or(1, |meta| meta.next_generation.max(1)),
            pools: self.pools()?,
            roots: self.table(map::ROOTS)?,
            filesystems: self.table(map::FILESYSTEMS)?,
            leases: self.table(map::LEASES)?,
        })
    }

    /// Entries of pools and parts; not the canary's, nor those that exempt a superblock.
    pub fn pools(&self) -> Result<BTreeMap<PoolKey, PoolEntry>, ForeignError> {
        let mut pools: BTreeMap<PoolKey, PoolEntry> = self.table(map::POOLS)?;
        pools.retain(|_, entry| entry.flags & (POOL_CANARY | POOL_NO_ALIAS) == 0);
        Ok(pools)
    }

    /// Incidents that are open.
    pub fn incidents(&self) -> Result<Vec<(IncidentKey, IncidentValue)>, ForeignError> {
        Ok(self.table(map::INCIDENTS)?.into_iter().collect())
    }

    /// The ring of records. It has one reader.
    pub fn records(&self) -> Result<RingBuf<MapData>, ForeignError> {
        let data = open(&self.directory, map::RECORDS)?;
        RingBuf::try_from(Map::RingBuf(data))
            .map_err(|source| ForeignError::Open { map: map::RECORDS.to_owned(), source })
    }

    /// Highest number of records that the ring holds.
    pub fn records_in_ring(&self) -> usize {
        let ring = self.description.map(map::RECORDS);
        ring.map_or(0, |ring| ring.capacity as usize / size_of_fields(&ring.value).max(1))
    }

    /// A record of that ring as one of ours.
    pub fn record(&self, bytes: &[u8]) -> Result<Vec<u8>, DescriptionError> {
        self.record.apply(bytes)
    }

    /// Counts made here, and counts carried here from maps other than those with the tokens in
    /// `elsewhere`.
    pub fn totals(&self, elsewhere: &[u64]) -> Result<Totals, ForeignError> {
        let mut totals = Totals::default();
        let names = &self.description.counters;
        let mut add = |index: usize, count: u64| {
            if let Some(name) = names.get(index) {
                *totals.counters.entry(name.clone()).or_default() += count;
            }
        };
        for (key, values) in self.raw(self.description.map(map::COUNTERS)?)? {
            add(typed::<u32>(&key) as usize, words(&values).sum());
        }
        for (key, values) in self.raw(self.description.map(map::CARRIED)?)? {
            if !elsewhere.contains(&typed::<u64>(&key)) {
                words(&values).enumerate().for_each(|(index, count)| add(index, count));
            }
        }
        totals.pools = self.table(map::POOL_COUNTERS)?;
        let carried: BTreeMap<CarriedKey, PoolCounters> = self.table(map::CARRIED_POOLS)?;
        for (key, counters) in carried.iter().filter(|(key, _)| !elsewhere.contains(&key.source)) {
            totals.pools.entry(key.generation).or_default().add(counters);
        }
        Ok(totals)
    }

    fn table<K: Pod + Ord, V: Pod>(
        &self,
        name: &'static str,
    ) -> Result<BTreeMap<K, V>, ForeignError> {
        let (theirs, ours) = (self.description.map(name)?, own_map(name));
        let key = Translation::new(name, &theirs.key, ours.key)?;
        let value = Translation::new(name, &theirs.value, ours.value)?;
        let translate = |(raw_key, raw_value): (Vec<u8>, Vec<u8>)| {
            Ok((typed(&key.apply(&raw_key)?), typed(&value.apply(&raw_value)?)))
        };
        self.raw(theirs)?.into_iter().map(translate).collect()
    }

    /// All entries as they lie there, each once. Of a map for each processor, the values one after
    /// the other.
    fn raw(&self, map: &DescribedMap) -> Result<Entries, ForeignError> {
        let name = &map.name;
        let data = open(&self.directory, name)?;
        let (key_size, value_size) = sizes(name, &data)?;
        let described = (size_of_fields(&map.key), size_of_fields(&map.value));
        for (expected, found) in [(described.0, key_size), (described.1, value_size)] {
            if expected > found {
                return Err(DescriptionError::Size { map: name.clone(), expected, found }.into());
            }
        }
        let bytes = value_bytes(name, &data, value_size)?;
        let read = |source| ForeignError::Read { map: name.clone(), source };
        let mut entries = BTreeMap::new();
        let (fd, mut key) = (data.fd().as_fd(), None);
        // A key that is removed meanwhile makes the kernel begin again: more rounds than entries,
        // and not without end.
        for _ in 0..=u64::from(map.capacity).saturating_mul(4) {
            let Some(next) = next(fd, key.as_deref(), key_size).map_err(read)? else {
                return Ok(entries.into_iter().collect());
            };
            let mut value = vec![0; bytes];
            if sys::lookup(fd, &next, &mut value).map_err(read)? {
                entries.insert(next.clone(), value);
            }
            key = Some(next);
        }
        Err(ForeignError::Restless { map: name.clone() })
    }
}

fn next(map: BorrowedFd<'_>, key: Option<&[u8]>, size: usize) -> io::Result<Option<Vec<u8>>> {
    let mut next = vec![0; size];
    Ok(sys::next_key(map, key, &mut next)?.then_some(next))
}

fn open(directory: &Path, name: &str) -> Result<MapData, ForeignError> {
    MapData::from_pin(directory.join(name))
        .map_err(|source| ForeignError::Open { map: name.to_owned(), source })
}

/// Bytes of a key and of a value, by the kernel's word.
fn sizes(name: &str, data: &MapData) -> Result<(usize, usize), ForeignError> {
    let info = data.info().map_err(|source| ForeignError::Open { map: name.to_owned(), source })?;
    Ok((info.key_size() as usize, info.value_size() as usize))
}

/// Bytes that the kernel writes for one value.
fn value_bytes(name: &str, data: &MapData, value_size: usize) -> Result<usize, ForeignError> {
    let failed = |source| ForeignError::Open { map: name.to_owned(), source };
    let kind = data.info().and_then(|info| info.map_type()).map_err(failed)?;
    if kind != aya::maps::MapType::PerCpuArray {
        return Ok(value_size);
    }
    let cpus = aya::util::nr_cpus()
        .map_err(|(_, source)| ForeignError::Read { map: name.to_owned(), source })?;
    Ok(value_size.next_multiple_of(8) * cpus)
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word))
}

/// The value that these bytes are, cut or filled up with NULs to its size.
fn typed<T: Pod>(bytes: &[u8]) -> T {
    let mut whole = vec![0; size_of::<T>()];
    let length = bytes.len().min(whole.len());
    whole[..length].copy_from_slice(&bytes[..length]);
    // SAFETY: as many bytes as the type has, and any bits are a value of a `Pod`.
    unsafe { std::ptr::read_unaligned(whole.as_ptr().cast()) }
}
