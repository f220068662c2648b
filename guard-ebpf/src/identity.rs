//! Who asks, and from where: guarded roots, guest views, actors, leases.
//!
//! What loops is a global function (`extern "C"`, numbers only): the verifier checks each of those once
//! and by itself, instead of once for every way that leads to it.

use aya_ebpf::helpers::generated;
use guard_common::policy::{ALIAS_ACTORS, ROOT_OBSERVED, device_bit};
use guard_common::{ActorMask, CgroupKey, ExecutableKey, LeaseKey, RootKey};

use crate::decide::Access;
use crate::kernel::{self, Lenient, ReadError, Task, boot_ns};
use crate::maps::{ACTOR_CGROUPS, ACTOR_EXES, CONFIG, LEASES, ROOTS};

/// Steps of the walk from a mount to a guarded root: names and mounts together.
const WALK_STEPS: u32 = 256;
/// Levels of the cgroup tree that are looked at, from the root down.
const CGROUP_LEVELS: i32 = 24;

pub const WALK_OUTSIDE: u32 = 0;
pub const WALK_DENY: u32 = 1;
pub const WALK_OBSERVE: u32 = 2;
pub const WALK_BOUND: u32 = 3;
pub const WALK_READ_ERROR: u32 = 4;
pub const WALK_HOST: u32 = 5;

/// Whether a mount lies at or below a guarded root: walks from its root through names and mounts up
/// to the top of its namespace. Any root that guards one of `filesystems` counts.
///
/// A walk that comes through the directory `host_root`, other than from what is mounted right on it, ends there.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guarded_root(mut mount: u64, filesystems: u64, host_root: u64) -> u32 {
    let mut reads = Lenient::new();
    let mut root = reads.mount_root(mount);
    let mut dentry = root;
    let mut dev = reads.mount_device(mount);
    let devices = CONFIG.get(0).map_or(0, |config| config.root_devices);
    for _ in 0..WALK_STEPS {
        let may_hold_root = devices == 0 || devices & device_bit(dev) != 0;
        if may_hold_root {
            let key = RootKey { ino: reads.dentry_ino(dentry), dev, reserved: 0 };
            // SAFETY: as in `decide::with_mount`.
            if let Some(entry) = unsafe { ROOTS.get(key) }
                && entry.filesystems & filesystems != 0
            {
                return if entry.flags & ROOT_OBSERVED != 0 { WALK_OBSERVE } else { WALK_DENY };
            }
        }
        // No root lies on such a superblock: its names are passed over.
        if dentry == root || !may_hold_root {
            let parent = reads.mount_parent(mount);
            if parent == mount {
                return WALK_OUTSIDE;
            }
            dentry = reads.mount_mountpoint(mount);
            mount = parent;
            root = reads.mount_root(mount);
            dev = reads.mount_device(mount);
            // A mount on the root directory itself hides the whole host: it is a container's root. LXC
            // makes one where it cannot call pivot_root(2).
            if root == host_root && dentry != root {
                return WALK_HOST;
            }
        } else {
            dentry = reads.dentry_parent(dentry);
        }
        if reads.failed() {
            return WALK_READ_ERROR;
        }
    }
    WALK_BOUND
}

/// A bind mount of a part of the pool, in a mount namespace other than the host's, that has a root directory of its own.
///
/// A copy of the host's mounts (`unshare`, a unit's `PrivateTmp=` or `ProtectSystem=`) is the host's view: its mounts
/// hang below the root directory that PID 1 has. So is whatever lies below a guarded root.
#[inline(always)]
pub fn is_guest_view(access: &Access) -> Result<bool, ReadError> {
    if access.mount == 0 {
        return Ok(false);
    }
    let namespace = kernel::mount_namespace(access.mount)?;
    let host = CONFIG.get(0).map_or(0, |config| config.host_mnt_ns);
    if namespace == 0 || namespace == host {
        return Ok(false);
    }
    if kernel::mount_root(access.mount)? == kernel::superblock_root(access.superblock)? {
        return Ok(false);
    }
    match guarded_root(access.mount, u64::MAX, Task::current().host_root()?) {
        WALK_OUTSIDE => Ok(true),
        WALK_READ_ERROR => Err(ReadError),
        _ => Ok(false),
    }
}

/// Whether the running process may delete in the pools of a set.
#[inline(always)]
pub fn is_actor(actor_set: u32) -> Result<bool, ReadError> {
    let cgroup = actor_cgroup(actor_set);
    if cgroup == u64::MAX {
        return Ok(true);
    }
    let Some((dev, ino)) = Task::current().executable()? else {
        return Ok(false);
    };
    // SAFETY: as in `decide::with_mount`.
    Ok(match unsafe { ACTOR_EXES.get(ExecutableKey { ino, dev, actor_set }) } {
        Some(mask) => mask.alone != 0 || mask.combined & cgroup != 0,
        None => false,
    })
}

/// 1 if a name is a sealed pool's root or lies below one, or if that cannot be told.
///
/// Only for a superblock that shows the whole filesystem: its names lead up to the filesystem's root, past every pool.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_in_sealed_pool(mut dentry: u64) -> u32 {
    let mut reads = Lenient::new();
    for _ in 0..WALK_STEPS {
        // SAFETY: as in `decide::with_mount`.
        if unsafe { ROOTS.get(RootKey::alias(reads.dentry_ino(dentry))) }.is_some() {
            return 1;
        }
        let parent = reads.dentry_parent(dentry);
        if reads.failed() {
            return 1;
        }
        if parent == dentry {
            return 0;
        }
        dentry = parent;
    }
    1
}

/// Whether the process is an actor of a sealed pool.
#[inline(always)]
pub fn is_alias_actor() -> Result<bool, ReadError> {
    match alias_actor(ALIAS_ACTORS) {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(ReadError),
    }
}

/// 1 if the process is an actor of this set, 2 if that cannot be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn alias_actor(actor_set: u32) -> u32 {
    match is_actor(actor_set) {
        Ok(is_actor) => u32::from(is_actor),
        Err(ReadError) => 2,
    }
}

/// What the process's cgroup and its ancestors say: `u64::MAX` if one of them alone makes an actor,
/// else the `combined` bits of them all (which are fewer, see `COMBINED_ACTORS`).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn actor_cgroup(actor_set: u32) -> u64 {
    let mut combined = 0;
    for level in 0..CGROUP_LEVELS {
        // SAFETY: always allowed; 0 below the process's own cgroup.
        let cgroup_id = unsafe { generated::bpf_get_current_ancestor_cgroup_id(level) };
        if cgroup_id == 0 {
            break;
        }
        let key = CgroupKey { cgroup_id, actor_set, reserved: 0 };
        // SAFETY: as in `decide::with_mount`.
        if let Some(ActorMask { alone, combined: bits }) = unsafe { ACTOR_CGROUPS.get(key) } {
            if *alone != 0 {
                return u64::MAX;
            }
            combined |= *bits;
        }
    }
    combined
}

#[inline(always)]
pub fn has_lease(dev: u32, generation: u64) -> bool {
    lease(dev, generation) != 0
}

/// 1 if the process belongs to a command tree with a lease on this pool.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lease(dev: u32, generation: u64) -> u32 {
    for level in 0..CGROUP_LEVELS {
        // SAFETY: always allowed; 0 below the process's own cgroup.
        let cgroup_id = unsafe { generated::bpf_get_current_ancestor_cgroup_id(level) };
        if cgroup_id == 0 {
            break;
        }
        // SAFETY: as in `decide::with_mount`.
        if let Some(lease) = unsafe { LEASES.get(LeaseKey { cgroup_id, dev, reserved: 0 }) }
            && lease.generation == generation
            && boot_ns() < lease.expires_boot_ns
        {
            return 1;
        }
    }
    0
}
