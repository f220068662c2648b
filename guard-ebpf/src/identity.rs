//! Identity of the deleting process: actors, guests, leases.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated;
use guard_common::policy::{
    ACTOR_GENERATION, ACTOR_GUEST, ALIAS_ACTORS, COMBINED_ACTORS, CONFIG_LEASES,
};
use guard_common::{ActorMask, CgroupKey, ExecutableKey, LeaseEntry, LeaseKey};

use crate::cache::{self, Question, Subject};
use crate::kernel::boot_ns;
use crate::kernel::task::{Executable, Task};
use crate::maps::{ACTOR_CGROUPS, ACTOR_EXES, CGROUPS, LEASES, config};
use crate::pools::{Known, is_believed, whole};

/// Levels of the cgroup tree that are looked at, from the root down.
const CGROUP_LEVELS: i32 = 24;

/// Actor and guest bits of a process's cgroups, in one set of actors.
#[derive(Clone, Copy)]
pub(crate) struct Cgroups(u64);

const GUEST: u64 = 1 << COMBINED_ACTORS;

impl Cgroups {
    /// One of them alone makes an actor.
    #[inline(always)]
    pub(crate) fn is_actor(self) -> bool {
        self.0 == u64::MAX
    }

    /// One of them is a guest's.
    #[inline(always)]
    pub(crate) fn is_guest(self) -> bool {
        self.0 & GUEST != 0
    }

    #[inline(always)]
    fn combined(self) -> u64 {
        self.0 & (GUEST - 1)
    }
}

/// Actor and guest bits of the running process's cgroups.
#[inline(always)]
pub(crate) fn cgroups(actor_set: u32) -> Cgroups {
    // SAFETY: always allowed.
    let first = unsafe { generated::bpf_get_current_cgroup_id() };
    let subject = Subject { first, second: actor_set, question: Question::Actor };
    let before = cache::maps();
    if let Some(answer) = cache::find(&CGROUPS, subject, before) {
        return Cgroups(answer);
    }
    let mask = actor_cgroup(actor_set);
    cache::keep(&CGROUPS, subject, before, cache::maps, mask);
    Cgroups(mask)
}

/// Whether the running process's executable makes an actor of it, alone or with its cgroups.
#[inline(always)]
pub(crate) fn is_executable_actor(actor_set: u32, cgroups: Cgroups) -> bool {
    let Some(Executable { ino, dev, generation }) = Task::current().executable() else {
        return false;
    };
    executable_actor(ino, dev, generation, actor_set, cgroups.combined()) != 0
}

/// 1 if an executable makes an actor of a process whose cgroups say `combined`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn executable_actor(
    ino: u64,
    dev: u32,
    generation: u32,
    actor_set: u32,
    combined: u64,
) -> u32 {
    let key = ExecutableKey { ino, dev, actor_set };
    let mut slot = MaybeUninit::<ActorMask>::uninit();
    match whole(&key, &mut slot, || ACTOR_EXES.get_ptr(key)) {
        Known::Entry(mask) => u32::from(
            (mask.flags & ACTOR_GENERATION == 0 || mask.generation == generation)
                && (mask.alone != 0 || mask.combined & combined != 0),
        ),
        // One that changes all the time makes no actor: fail closed.
        Known::Nothing | Known::Torn => 0,
    }
}

/// Whether the process is an actor of a sealed pool.
#[inline(always)]
pub(crate) fn is_alias_actor() -> bool {
    alias_actor(ALIAS_ACTORS) != 0
}

/// 1 if the process is an actor of this set.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn alias_actor(actor_set: u32) -> u32 {
    let cgroups = cgroups(actor_set);
    u32::from(cgroups.is_actor() || is_executable_actor(actor_set, cgroups))
}

/// Mask of the process's cgroup and its ancestors: `u64::MAX` if one of them alone makes an actor,
/// else the `combined` bits of them all (which are fewer, see `COMBINED_ACTORS`), and the bit above
/// those if one is a guest's.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn actor_cgroup(actor_set: u32) -> u64 {
    let mut before = config!(generation);
    loop {
        let combined = cgroup_masks(actor_set);
        if combined == u64::MAX || is_believed(&mut before) {
            return combined;
        }
    }
}

/// The same, looked at once.
#[inline(always)]
fn cgroup_masks(actor_set: u32) -> u64 {
    let mut combined = 0;
    for level in 0..CGROUP_LEVELS {
        // SAFETY: always allowed; 0 below the process's own cgroup.
        let cgroup_id = unsafe { generated::bpf_get_current_ancestor_cgroup_id(level) };
        if cgroup_id == 0 {
            break;
        }
        let key = CgroupKey { cgroup_id, actor_set, reserved: 0 };
        if ACTOR_CGROUPS.get_ptr(key).is_some() {
            match cgroup_mask(cgroup_id, actor_set) {
                u64::MAX => return u64::MAX,
                bits => combined |= bits,
            }
        }
    }
    combined
}

/// Mask of one cgroup, in the same words. An entry that changes all the time gives none: fail
/// closed.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn cgroup_mask(cgroup_id: u64, actor_set: u32) -> u64 {
    let key = CgroupKey { cgroup_id, actor_set, reserved: 0 };
    let mut slot = MaybeUninit::<ActorMask>::uninit();
    match whole(&key, &mut slot, || ACTOR_CGROUPS.get_ptr(key)) {
        Known::Entry(mask) if mask.alone != 0 => u64::MAX,
        Known::Entry(mask) => {
            let guest = if mask.flags & ACTOR_GUEST != 0 { GUEST } else { 0 };
            mask.combined & (GUEST - 1) | guest
        }
        Known::Nothing | Known::Torn => 0,
    }
}

/// Whether the process belongs to a command tree with a lease on this pool.
#[inline(always)]
pub(crate) fn has_lease(dev: u32, generation: u64) -> bool {
    // Nobody has one: the usual case, told without a look at the process.
    config!(flags) & CONFIG_LEASES != 0 && lease(dev, generation) != 0
}

/// 1 if the process belongs to a command tree with a lease on this pool.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lease(dev: u32, generation: u64) -> u32 {
    for level in 0..CGROUP_LEVELS {
        // SAFETY: always allowed; 0 below the process's own cgroup.
        let cgroup_id = unsafe { generated::bpf_get_current_ancestor_cgroup_id(level) };
        if cgroup_id == 0 {
            break;
        }
        let key = LeaseKey { cgroup_id, dev, reserved: 0 };
        if LEASES.get_ptr(key).is_some() && has_lease_of(cgroup_id, dev, generation) != 0 {
            return 1;
        }
    }
    0
}

/// 1 if a lease of this cgroup runs. One that changes all the time does not: fail closed.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn has_lease_of(cgroup_id: u64, dev: u32, generation: u64) -> u32 {
    let key = LeaseKey { cgroup_id, dev, reserved: 0 };
    let mut slot = MaybeUninit::<LeaseEntry>::uninit();
    match whole(&key, &mut slot, || LEASES.get_ptr(key)) {
        Known::Entry(lease) => {
            u32::from(lease.generation == generation && boot_ns() < lease.expires_boot_ns)
        }
        Known::Nothing | Known::Torn => 0,
    }
}
