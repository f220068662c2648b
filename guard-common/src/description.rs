//! The maps as data: name, kind, sizes, and each field's place.
//!
//! An agent pins this description beside its maps (`names::map::DESCRIPTION`). So an agent of
//! another version can read what must be carried over without this version's types. How a new
//! layout is made: docs/ARCHITECTURE.md, Pins.

use crate::names::{capacity, map};
use crate::policy::Magics;
use crate::{
    ActorMask, CarriedKey, CgroupKey, Config, Counter, ExecutableKey, FilesystemKey, IncidentKey,
    IncidentValue, KindEntry, LeaseEntry, LeaseKey, Meta, PoolCounters, PoolEntry, PoolKey, Record,
    RootEntry, RootKey,
};

/// Meaning of a field to an agent of another layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carry {
    /// Enforcement depends on it, and every layout has it.
    Required,
    /// Enforcement depends on it, and older layouts lack it. 0 says the same as an entry without
    /// the field. An agent that does not know the field carries an entry over only where it is 0.
    Added,
    /// Nothing is enforced by it.
    Optional,
}

/// A field's place in a key or value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub offset: usize,
    pub size: usize,
    pub carry: Carry,
}

/// A type whose fields are described.
pub trait Described {
    /// All of them.
    const FIELDS: &'static [Field];
}

const fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

const fn is_whole(fields: &[Field], size: usize) -> bool {
    let (mut index, mut sum) = (0, 0);
    while index < fields.len() {
        sum += fields[index].size;
        index += 1;
    }
    // Nothing described has padding.
    sum == size
}

/// Describes a type. A field that is left out does not compile.
macro_rules! describe {
    ($($type:ident { $($(#[$meta:meta])* $field:ident: $carry:ident),+ $(,)? })+) => { $(
        impl Described for $type {
            const FIELDS: &'static [Field] = &[$(
                $(#[$meta])*
                Field {
                    name: stringify!($field),
                    offset: core::mem::offset_of!($type, $field),
                    size: size_of_field(|value: &$type| &value.$field),
                    carry: Carry::$carry,
                },
            )+];
        }
        const _: () = assert!(is_whole(<$type as Described>::FIELDS, size_of::<$type>()));
    )+ };
}

describe! {
    Meta { layout_version: Optional, reserved: Optional, next_generation: Required }
    Config {
        host_mnt_ns: Optional, full_records: Optional, flags: Optional, root_devices: Optional,
        generation: Optional, reserved: Optional,
    }
    PoolEntry {
        #[cfg(feature = "other-layout")]
        other: Optional,
        generation: Required, pool_id: Required, expires_boot_ns: Required, magic: Required,
        check: Optional, mode: Required,
        actor_set: Required, flags: Required, canary_token: Optional,
    }
    PoolKey { dev: Required, head: Added }
    RootKey { ino: Required, dev: Required, reserved: Optional }
    // `reserved` names the policy's root: see the agent's `plan.rs`.
    RootEntry {
        filesystems: Required, flags: Required, reserved: Required, generation: Optional, unused: Optional,
        check: Optional,
    }
    KindEntry { bit: Required, reserved: Optional, check: Optional }
    FilesystemKey { magic: Required, subtype: Required }
    CgroupKey { cgroup_id: Optional, actor_set: Optional, reserved: Optional }
    ExecutableKey { ino: Optional, dev: Optional, actor_set: Optional }
    ActorMask {
        alone: Optional, combined: Optional, generation: Optional, flags: Optional, check: Optional,
    }
    LeaseKey { cgroup_id: Required, dev: Required, reserved: Optional }
    LeaseEntry {
        generation: Required,
        #[cfg(feature = "other-layout")]
        other: Optional,
        expires_boot_ns: Required, check: Optional,
    }
    PoolCounters {
        #[cfg(feature = "other-layout")]
        other: Optional,
        denied: Optional, allowed: Optional, would_deny: Optional,
    }
    CarriedKey { source: Optional, generation: Optional }
    IncidentKey {
        generation: Optional, start_boot_ns: Optional, tgid: Optional, dev: Optional, reason: Optional,
        verdict: Optional,
    }
    IncidentValue {
        count: Optional, emitted: Optional, lost: Optional, first_boot_ns: Optional, last_boot_ns: Optional,
        pool_id: Optional, uid: Optional, login_uid: Optional, comm: Optional,
    }
    Record {
        boot_ns: Optional, start_boot_ns: Optional, generation: Optional, pool_id: Optional,
        cgroup_id: Optional, parent_ino: Optional, target_ino: Optional, incident_count: Optional,
        hook: Optional, operation: Optional, verdict: Optional, reason: Optional, mode: Optional,
        pid: Optional, tgid: Optional, ppid: Optional, uid: Optional, euid: Optional, login_uid: Optional,
        mnt_ns: Optional, mount_ns: Optional, mount_id: Optional, dev: Optional, flags: Optional,
        path_len: Optional, tier: Optional, comm: Optional, path: Optional,
    }
}

/// A key or value that is one number.
const fn number(name: &'static str, size: usize, carry: Carry) -> [Field; 1] {
    [Field { name, offset: 0, size, carry }]
}

/// One map.
#[derive(Clone, Copy, Debug)]
pub struct MapLayout {
    pub name: &'static str,
    pub key: &'static [Field],
    pub value: &'static [Field],
    /// Entries; of a ring, bytes.
    pub capacity: u32,
}

const fn array(name: &'static str, value: &'static [Field]) -> MapLayout {
    MapLayout { name, key: INDEX, value, capacity: 1 }
}

const fn hash(
    name: &'static str,
    key: &'static [Field],
    value: &'static [Field],
    capacity: u32,
) -> MapLayout {
    MapLayout { name, key, value, capacity }
}

const INDEX: &[Field] = &number("index", 4, Carry::Optional);
const MAGICS: &[Field] = &number("magics", size_of::<Magics>(), Carry::Optional);
const NAMESPACE: &[Field] = &number("namespace", 4, Carry::Optional);
const GENERATION: &[Field] = &number("generation", 8, Carry::Optional);
const SOURCE: &[Field] = &number("source", 8, Carry::Optional);
const COUNT: &[Field] = &number("count", 8, Carry::Optional);
const COUNTS: &[Field] = &number("counts", 8 * Counter::COUNT as usize, Carry::Optional);

/// Every map whose content means something to an agent.
pub const MAPS: &[MapLayout] = &[
    array(map::META, Meta::FIELDS),
    array(map::CONFIG, Config::FIELDS),
    array(map::MAGICS, MAGICS),
    hash(map::POOLS, PoolKey::FIELDS, PoolEntry::FIELDS, capacity::POOLS),
    hash(map::NAMESPACES, NAMESPACE, NAMESPACE, capacity::NAMESPACES),
    hash(map::ROOTS, RootKey::FIELDS, RootEntry::FIELDS, capacity::ROOTS),
    hash(map::FILESYSTEMS, FilesystemKey::FIELDS, KindEntry::FIELDS, capacity::FILESYSTEMS),
    hash(map::ACTOR_CGROUPS, CgroupKey::FIELDS, ActorMask::FIELDS, capacity::ACTORS),
    hash(map::ACTOR_EXES, ExecutableKey::FIELDS, ActorMask::FIELDS, capacity::ACTORS),
    hash(map::LEASES, LeaseKey::FIELDS, LeaseEntry::FIELDS, capacity::LEASES),
    hash(map::POOL_COUNTERS, GENERATION, PoolCounters::FIELDS, capacity::POOLS),
    hash(map::INCIDENTS, IncidentKey::FIELDS, IncidentValue::FIELDS, capacity::INCIDENTS),
    hash(map::COUNTERS, INDEX, COUNT, Counter::COUNT),
    hash(map::RECORDS, &[], Record::FIELDS, capacity::RECORDS_BYTES),
    hash(map::CARRIED, SOURCE, COUNTS, capacity::CARRIED),
    hash(map::CARRIED_POOLS, CarriedKey::FIELDS, PoolCounters::FIELDS, capacity::POOLS),
];
