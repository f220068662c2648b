//! Values of the agent's maps, read whole; entries of pools.

use core::mem::MaybeUninit;
use core::ptr;

use guard_common::policy::POOL_PARTS;
use guard_common::{Checked, PoolEntry, RootKey};

use crate::kernel::{GO_ON, Lenient, STOP, Trusted, repeat};
use crate::maps::{PARTS, POOLS};

/// How often a value is looked up that was changed while it was read. Each time that takes a change by the agent within a
/// few instructions.
const TRIES: u32 = 4;
/// Names from a target up to the root of a part.
const DEPTH: u32 = 256;

/// What a map holds of a key.
pub enum Known<'a, V> {
    Nothing,
    Entry(&'a V),
    /// There is an entry, and it could not be read whole.
    Torn,
}

/// Reads a value whole, by its key. `lookup` gives its address, and is asked again after a change.
#[inline(always)]
pub fn whole<'a, K, V: Checked<K>>(
    key: &K,
    slot: &'a mut MaybeUninit<V>,
    lookup: impl Fn() -> Option<*const V>,
) -> Known<'a, V> {
    let mut torn = false;
    for _ in 0..TRIES {
        let Some(entry) = lookup() else { return if torn { Known::Torn } else { Known::Nothing } };
        // SAFETY: points into a map's value, which lives as long as the program runs, whatever it holds by now.
        let is_whole = slot.write(unsafe { ptr::read_volatile(entry) }).is_whole(key);
        if is_whole {
            // SAFETY: it has just been written.
            return Known::Entry(unsafe { slot.assume_init_ref() });
        }
        torn = true;
    }
    Known::Torn
}

/// What is known of a superblock, or of a subtree.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Nothing,
    /// A pool's entry, or one that says what the superblock is instead.
    Entry,
    /// There is an entry, and it could not be read whole.
    Torn,
}

const NOTHING: u32 = 0;
const ENTRY: u32 = 1;
const TORN: u32 = 2;
/// With [`ENTRY`]: the mount shows less than the whole part.
const SHOWS_LESS: u32 = 4;

impl Found {
    #[inline(always)]
    const fn from_u32(number: u32) -> Self {
        match number & 3 {
            NOTHING => Self::Nothing,
            ENTRY => Self::Entry,
            _ => Self::Torn,
        }
    }
}

/// Fills a place with zeros, word by word: what the compiler clears at once it clears in a loop over bytes.
#[inline(always)]
pub fn clear(entry: &mut MaybeUninit<PoolEntry>) -> &mut PoolEntry {
    const WORDS: usize = size_of::<PoolEntry>() / size_of::<u64>();
    let words = entry.as_mut_ptr().cast::<u64>();
    for word in 0..WORDS {
        // SAFETY: so many words does it have.
        unsafe { ptr::write_volatile(words.add(word), 0) };
    }
    // SAFETY: it is made of integers, all of which have just been written.
    unsafe { entry.assume_init_mut() }
}

/// Makes an entry one of no pool, for the record.
#[inline(always)]
pub fn forget(entry: &mut PoolEntry) {
    // SAFETY: plain fields. One by one, as in `clear`.
    unsafe {
        ptr::write_volatile(&raw mut entry.generation, 0);
        ptr::write_volatile(&raw mut entry.pool_id, 0);
        ptr::write_volatile(&raw mut entry.mode, 0);
    }
}

/// Reads the entry of a superblock. The magic is compared so that an entry never speaks for another kind of superblock.
#[inline(always)]
pub fn of_superblock(dev: u32, magic: u64, entry: &mut PoolEntry) -> Found {
    let found = Found::from_u32(pool_entry(dev, &raw mut *entry));
    if found == Found::Entry && entry.magic != magic { Found::Nothing } else { found }
}

/// A global function (see `identity`): what follows is checked once, however often the entry had to be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pool_entry(dev: u32, entry: *mut PoolEntry) -> u32 {
    if entry.is_null() {
        return TORN;
    }
    // SAFETY: not null, and the verifier has checked its size.
    let slot = unsafe { &mut *entry.cast::<MaybeUninit<PoolEntry>>() };
    match whole(&dev, slot, || POOLS.get_ptr(dev)) {
        Known::Nothing => NOTHING,
        Known::Torn => TORN,
        Known::Entry(_) => ENTRY,
    }
}

/// Whether an entry only says that the superblock's subtrees have their own.
#[inline(always)]
pub fn has_parts(entry: &PoolEntry) -> bool {
    entry.flags & POOL_PARTS != 0
}

/// Reads the entry of the pool that a name lies in, of a superblock that has several, and tells whether the mount shows only
/// a part of it.
#[inline(always)]
pub fn of_part(dev: u32, target: Trusted, mount_root: u64, entry: &mut PoolEntry) -> (Found, bool) {
    let found = part_entry(target.address(), dev, mount_root, &raw mut *entry);
    (Found::from_u32(found), found & SHOWS_LESS != 0)
}

/// The innermost part that a name lies in, or is the root of.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn part_entry(dentry: u64, dev: u32, mount_root: u64, entry: *mut PoolEntry) -> u32 {
    if entry.is_null() {
        return TORN;
    }
    let mut climb = Climb { reads: Lenient::new(), dentry, mount_root, ino: 0, dev, shows: NOTHING };
    repeat(DEPTH, &mut climb, to_part);
    let (key, shows) = (RootKey { ino: climb.ino, dev, reserved: 0 }, climb.shows);
    if climb.reads.failed() {
        return NOTHING;
    }
    // SAFETY: not null, and the verifier has checked its size.
    let slot = unsafe { &mut *entry.cast::<MaybeUninit<PoolEntry>>() };
    match whole(&key, slot, || PARTS.get_ptr(key)) {
        Known::Nothing => NOTHING,
        Known::Torn => TORN,
        Known::Entry(_) => ENTRY | shows,
    }
}

/// A way up to the root of a part.
#[repr(C)]
struct Climb {
    reads: Lenient,
    dentry: u64,
    mount_root: u64,
    ino: u64,
    dev: u32,
    shows: u32,
}

/// One step: a name. It ends at a part's root, whose inode stays, or at the superblock's.
#[inline(never)]
unsafe extern "C" fn to_part(_: u32, climb: *mut Climb) -> i64 {
    // SAFETY: `repeat` gives it.
    let climb = unsafe { &mut *climb };
    climb.ino = climb.reads.dentry_ino(climb.dentry);
    let key = RootKey { ino: climb.ino, dev: climb.dev, reserved: 0 };
    if PARTS.get_ptr(key).is_some() {
        return STOP;
    }
    if climb.dentry == climb.mount_root {
        climb.shows = SHOWS_LESS;
    }
    let parent = climb.reads.dentry_parent(climb.dentry);
    if climb.reads.failed() || parent == climb.dentry {
        return STOP;
    }
    climb.dentry = parent;
    GO_ON
}
