//! Which part of a superblock a mount shows, where several sources' mounts share one.

use core::mem::MaybeUninit;

use guard_common::policy::POOL_NONE;
use guard_common::{PoolEntry, PoolKey};

use crate::cache::{self, Question};
use crate::kernel::lenient::{GO_ON, Lenient, STOP, Siblings, repeat};
use crate::kernel::{self, Trusted};
use crate::maps::{POOLS, WALKS, config};
use crate::pools::{Known, is_believed, whole};
use crate::walk::{SIBLINGS, Search, WALK_STEPS, mount_subject};

/// Which part of a superblock a mount shows, by its head, the id of the mount that stands for it:
/// [`NO_PART`] if none does, [`UNREADABLE_PART`] if that cannot be told.
#[inline(always)]
pub(crate) fn part(superblock: Trusted, mount: Trusted) -> u32 {
    let subject = mount_subject(superblock, mount, Question::Part);
    let before = cache::tree();
    if let Some(answer) = cache::find(&WALKS, subject, before) {
        return answer as u32;
    }
    let part =
        part_of(superblock.address(), kernel::mount_of(mount.address()), superblock.device());
    if part != UNREADABLE_PART {
        cache::keep(&WALKS, subject, before, cache::tree, u64::from(part));
    }
    part
}

/// No mount's id.
pub(crate) const NO_PART: u32 = 0;
pub(crate) const UNREADABLE_PART: u32 = u32::MAX;

/// The mount itself, if it stands for a part that is a pool; else, of those that stand for one, the
/// mount whose root is the nearest at or above this one's. Of two with the same root, the older.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn part_of(superblock: u64, mount: u64, dev: u32) -> u32 {
    let mut before = config!(generation);
    loop {
        let reads = Lenient::new();
        let mut climb = Parts { reads, superblock, dentry: 0, dev, found: UNREADABLE_PART };
        let own = climb.reads.mount_id(mount);
        if is_pool_part(dev, own) != 0 {
            return own;
        }
        climb.dentry = climb.reads.mount_root(mount);
        repeat(WALK_STEPS, &mut climb, to_part);
        if climb.reads.failed() {
            return UNREADABLE_PART;
        }
        if is_believed(&mut before) {
            return climb.found;
        }
    }
}

/// 1 if a mount stands for a part that is a pool.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn is_pool_part(dev: u32, head: u32) -> u32 {
    let key = PoolKey { dev, head };
    let mut slot = MaybeUninit::<PoolEntry>::uninit();
    match whole(&key, &mut slot, || POOLS.get_ptr(key)) {
        Known::Entry(entry) => u32::from(head != 0 && entry.flags & POOL_NONE == 0),
        // One that changes all the time: fail closed, as for a pool.
        Known::Torn => 1,
        Known::Nothing => 0,
    }
}

/// A way up from a mount's root, through the places at which parts begin.
#[repr(C)]
struct Parts {
    reads: Lenient,
    superblock: u64,
    dentry: u64,
    dev: u32,
    /// Set at the end.
    found: u32,
}

/// One step: a name.
#[inline(never)]
unsafe extern "C" fn to_part(_: u32, climb: *mut Parts) -> i64 {
    // SAFETY: `repeat` gives it.
    let climb = unsafe { &mut *climb };
    let found = part_at(climb.superblock, climb.dentry, climb.dev);
    let parent = climb.reads.dentry_parent(climb.dentry);
    if found != NO_PART || parent == climb.dentry || climb.reads.failed() {
        climb.found = found;
        return STOP;
    }
    climb.dentry = parent;
    GO_ON
}

/// The oldest mount with this root that stands for a part, by its id; 0 if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn part_at(superblock: u64, root: u64, dev: u32) -> u32 {
    let mut reads = Lenient::new();
    let list = Siblings::of(superblock);
    let next = list.first(&mut reads);
    let mut search =
        PartSearch { search: Search { reads, list, next, root, found: 0 }, dev, unused: 0 };
    repeat(SIBLINGS, &mut search, older_part);
    if search.search.reads.failed() { UNREADABLE_PART } else { search.search.found as u32 }
}

/// A search for a mount that stands for a part.
#[repr(C)]
struct PartSearch {
    search: Search,
    /// The superblock's.
    dev: u32,
    unused: u32,
}

/// One step: a mount of the list.
#[inline(never)]
unsafe extern "C" fn older_part(_: u32, search: *mut PartSearch) -> i64 {
    // SAFETY: `repeat` gives it.
    let PartSearch { search, dev, .. } = unsafe { &mut *search };
    if search.list.is_end(search.next) || search.reads.failed() {
        return STOP;
    }
    let mount = search.list.mount(search.next);
    let key = PoolKey { dev: *dev, head: search.reads.mount_id(mount) };
    if search.reads.mount_root(mount) == search.root && POOLS.get_ptr(key).is_some() {
        search.found = u64::from(key.head);
        if search.list.is_oldest_first() {
            return STOP;
        }
    }
    search.next = search.list.next(mount, &mut search.reads);
    GO_ON
}
