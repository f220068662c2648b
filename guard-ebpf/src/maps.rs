//! The maps. Keys, values, names and capacities are in `guard-common`.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use guard_common::names::capacity;
use guard_common::{
    ActorMask, CarriedKey, CgroupKey, Config, Counter, ExecutableKey, FilesystemKey, IncidentKey,
    IncidentValue, KindEntry, LeaseEntry, LeaseKey, Meta, PoolCounters, PoolEntry, RootEntry, RootKey,
};

use crate::cache::Slot;

#[map]
pub static META: Array<Meta> = Array::with_max_entries(1, 0);
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map]
pub static MAGICS: Array<u64> = Array::with_max_entries(capacity::MAGICS, 0);
#[map]
pub static POOLS: HashMap<u32, PoolEntry> = HashMap::with_max_entries(capacity::POOLS, 0);
#[map]
pub static NAMESPACES: HashMap<u32, u32> = HashMap::with_max_entries(capacity::NAMESPACES, 0);
#[map]
pub static ROOTS: HashMap<RootKey, RootEntry> = HashMap::with_max_entries(capacity::ROOTS, 0);
#[map]
pub static FILESYSTEMS: HashMap<FilesystemKey, KindEntry> =
    HashMap::with_max_entries(capacity::FILESYSTEMS, 0);
#[map]
pub static ACTOR_CGROUPS: HashMap<CgroupKey, ActorMask> = HashMap::with_max_entries(capacity::ACTORS, 0);
#[map]
pub static ACTOR_EXES: HashMap<ExecutableKey, ActorMask> = HashMap::with_max_entries(capacity::ACTORS, 0);
#[map]
pub static LEASES: HashMap<LeaseKey, LeaseEntry> = HashMap::with_max_entries(capacity::LEASES, 0);
#[map]
pub static POOL_COUNTERS: HashMap<u64, PoolCounters> = HashMap::with_max_entries(capacity::POOLS, 0);
#[map]
pub static INCIDENTS: HashMap<IncidentKey, IncidentValue> = HashMap::with_max_entries(capacity::INCIDENTS, 0);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);
#[map]
pub static RECORDS: RingBuf = RingBuf::with_byte_size(capacity::RECORDS_BYTES, 0);

/// What walks from mounts have found; see `cache`.
#[map]
pub static WALKS: PerCpuArray<Slot> = PerCpuArray::with_max_entries(capacity::CACHE, 0);
/// What cgroups say of actors; see `cache`.
#[map]
pub static CGROUPS: PerCpuArray<Slot> = PerCpuArray::with_max_entries(capacity::CACHE, 0);

#[map]
pub static DESCRIPTION: Array<[u8; capacity::DESCRIPTION_BYTES]> = Array::with_max_entries(1, 0);

#[map]
pub static CARRIED: HashMap<u64, [u64; Counter::COUNT as usize]> =
    HashMap::with_max_entries(capacity::CARRIED, 0);

/// Its memory is taken as entries come: only an agent that has replaced another layout's maps writes some.
#[map]
pub static CARRIED_POOLS: HashMap<CarriedKey, PoolCounters> =
    HashMap::with_max_entries(capacity::POOLS, BPF_F_NO_PREALLOC);

const BPF_F_NO_PREALLOC: u32 = 1;
