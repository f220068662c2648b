//! The maps. Keys, values, names and capacities are in `guard-common`.

use core::cell::UnsafeCell;
use core::ptr;

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use guard_common::names::capacity;
use guard_common::policy::{Magics, magic_slot};
use guard_common::{
    ActorMask, CarriedKey, CgroupKey, Config, Counter, ExecutableKey, FilesystemKey, IncidentKey,
    IncidentValue, KindEntry, LeaseEntry, LeaseKey, Meta, PoolCounters, PoolEntry, PoolKey,
    RootEntry, RootKey,
};

use crate::cache::Slot;

/// A map of one value that is a section of the object: its address is in the program, and nothing
/// is looked up. The agent writes it at any time.
#[repr(transparent)]
struct Section<T>(UnsafeCell<T>);

// SAFETY: read only word by word and volatile: the memory changes.
unsafe impl<T> Sync for Section<T> {}

/// One field of the configuration, as it is now.
macro_rules! config {
    ($field:ident) => {
        // SAFETY: lives as long as the program; volatile, since the agent changes it.
        unsafe { core::ptr::read_volatile(&raw const (*$crate::maps::config_address()).$field) }
    };
}
pub(crate) use config;

/// Address of the section.
pub(crate) fn config_address() -> *const Config {
    CONFIG.0.get()
}

/// Content of a magic's slot in `MAGICS`.
#[inline(always)]
pub(crate) fn guarded_magic(magic: u64) -> u64 {
    let place = magic_slot(magic) as usize;
    // SAFETY: as in `config`; a slot is below the number of places.
    unsafe { ptr::read_volatile(MAGICS.0.get().cast::<u64>().add(place)) }
}

#[map]
pub(crate) static META: Array<Meta> = Array::with_max_entries(1, 0);
#[unsafe(link_section = ".data.CONFIG")]
static CONFIG: Section<Config> = Section(UnsafeCell::new(Config {
    host_mnt_ns: 0,
    full_records: 0,
    flags: 0,
    root_devices: 0,
    generation: 0,
    reserved: 0,
}));
#[unsafe(link_section = ".data.MAGICS")]
static MAGICS: Section<Magics> = Section(UnsafeCell::new([0; capacity::MAGICS as usize]));
#[map]
pub(crate) static POOLS: HashMap<PoolKey, PoolEntry> =
    HashMap::with_max_entries(capacity::POOLS, 0);
#[map]
pub(crate) static NAMESPACES: HashMap<u32, u32> =
    HashMap::with_max_entries(capacity::NAMESPACES, 0);
#[map]
pub(crate) static ROOTS: HashMap<RootKey, RootEntry> =
    HashMap::with_max_entries(capacity::ROOTS, 0);
#[map]
pub(crate) static FILESYSTEMS: HashMap<FilesystemKey, KindEntry> =
    HashMap::with_max_entries(capacity::FILESYSTEMS, 0);
#[map]
pub(crate) static ACTOR_CGROUPS: HashMap<CgroupKey, ActorMask> =
    HashMap::with_max_entries(capacity::ACTORS, 0);
#[map]
pub(crate) static ACTOR_EXES: HashMap<ExecutableKey, ActorMask> =
    HashMap::with_max_entries(capacity::ACTORS, 0);
#[map]
pub(crate) static LEASES: HashMap<LeaseKey, LeaseEntry> =
    HashMap::with_max_entries(capacity::LEASES, 0);
#[map]
pub(crate) static POOL_COUNTERS: HashMap<u64, PoolCounters> =
    HashMap::with_max_entries(capacity::POOLS, 0);
#[map]
pub(crate) static INCIDENTS: HashMap<IncidentKey, IncidentValue> =
    HashMap::with_max_entries(capacity::INCIDENTS, 0);
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);
#[map]
pub(crate) static RECORDS: RingBuf = RingBuf::with_byte_size(capacity::RECORDS_BYTES, 0);

/// Results of walks from mounts; see `cache`.
#[map]
pub(crate) static WALKS: PerCpuArray<Slot> = PerCpuArray::with_max_entries(capacity::CACHE, 0);
/// Actor bits of cgroups; see `cache`.
#[map]
pub(crate) static CGROUPS: PerCpuArray<Slot> = PerCpuArray::with_max_entries(capacity::CACHE, 0);

#[map]
pub(crate) static DESCRIPTION: Array<[u8; capacity::DESCRIPTION_BYTES]> =
    Array::with_max_entries(1, 0);

#[map]
pub(crate) static CARRIED: HashMap<u64, [u64; Counter::COUNT as usize]> =
    HashMap::with_max_entries(capacity::CARRIED, 0);

/// Its memory is taken as entries come: only an agent that has replaced another layout's maps
/// writes some.
#[map]
pub(crate) static CARRIED_POOLS: HashMap<CarriedKey, PoolCounters> =
    HashMap::with_max_entries(capacity::POOLS, BPF_F_NO_PREALLOC);

const BPF_F_NO_PREALLOC: u32 = 1;
