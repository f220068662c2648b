//! Values of the agent's maps, read whole; entries of pools.

use core::mem::MaybeUninit;
use core::ptr;

use guard_common::{Checked, PoolEntry, PoolKey};

use crate::maps::{POOLS, config};

/// Maximum number of lookups of a value that changes while it is read. Each time that takes a
/// change by the agent within a few instructions.
const TRIES: u32 = 4;

/// A map's value for a key.
pub(crate) enum Known<'a, V> {
    Nothing,
    Entry(&'a V),
    /// There is an entry, and it could not be read whole.
    Torn,
}

/// Reads a value whole, by its key. `lookup` gives its address, and is asked again after a change.
///
/// Nothing is only believed while the agent changes no maps: the kernel replaces an entry by
/// putting the new one at the head of its chain and taking the old one out, and a reader between
/// the two on the chain finds neither.
#[inline(always)]
pub(crate) fn whole<'a, K, V: Checked<K>>(
    key: &K,
    slot: &'a mut MaybeUninit<V>,
    lookup: impl Fn() -> Option<*const V>,
) -> Known<'a, V> {
    let mut torn = false;
    let before = config!(generation);
    for _ in 0..TRIES {
        let Some(entry) = lookup() else {
            if is_quiet_since(before) {
                break;
            }
            continue;
        };
        // SAFETY: points into a map's value, which lives as long as the program runs, whatever it
        // holds by now.
        let is_whole = slot.write(unsafe { ptr::read_volatile(entry) }).is_whole(key);
        if is_whole {
            // SAFETY: it has just been written.
            return Known::Entry(unsafe { slot.assume_init_ref() });
        }
        torn = true;
    }
    if torn { Known::Torn } else { Known::Nothing }
}

/// Whether the agent changes no map, and has changed none since `Config::generation` was `before`.
#[inline(always)]
fn is_quiet_since(before: u32) -> bool {
    before & 1 == 0 && config!(generation) == before
}

/// Whether an answer that rests on something that was not found is believed: in quiet, or the
/// second time, since an entry that is being replaced may not be found (see [`whole`]). `before`:
/// `Config::generation` from before it was looked for.
#[inline(always)]
pub(crate) fn is_believed(before: &mut u32) -> bool {
    // Odd: no generation of maps that stand still.
    const LOOKED_TWICE: u32 = u32::MAX;
    if *before == LOOKED_TWICE || is_quiet_since(*before) {
        return true;
    }
    *before = LOOKED_TWICE;
    false
}

/// Result of the lookup of a superblock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    /// A pool's entry, or one that says what the superblock is instead.
    Entry,
    /// There is an entry, and it could not be read whole.
    Torn,
}

const NOTHING: u32 = 0;
const ENTRY: u32 = 1;
const TORN: u32 = 2;

impl Found {
    #[inline(always)]
    const fn from_u32(number: u32) -> Self {
        match number {
            NOTHING => Self::Nothing,
            ENTRY => Self::Entry,
            _ => Self::Torn,
        }
    }
}

/// Fills a place with zeros, word by word: the compiler clears a whole value in a loop over bytes.
#[inline(always)]
pub(crate) fn clear(entry: &mut MaybeUninit<PoolEntry>) -> &mut PoolEntry {
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
pub(crate) fn forget(entry: &mut PoolEntry) {
    // SAFETY: plain fields. One by one, as in `clear`.
    unsafe {
        ptr::write_volatile(&raw mut entry.generation, 0);
        ptr::write_volatile(&raw mut entry.pool_id, 0);
        ptr::write_volatile(&raw mut entry.mode, 0);
    }
}

/// Reads the entry of a superblock, or of a part of one. The magic is compared so that an entry
/// never speaks for another kind of superblock.
#[inline(always)]
pub(crate) fn entry_of(key: PoolKey, magic: u64, entry: &mut PoolEntry) -> Found {
    let found = Found::from_u32(pool_entry(key.dev, key.head, &raw mut *entry));
    if found == Found::Entry && entry.magic != magic { Found::Nothing } else { found }
}

/// A global function (see `identity`): the code after it is checked once, however often the entry
/// had to be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn pool_entry(dev: u32, head: u32, entry: *mut PoolEntry) -> u32 {
    if entry.is_null() {
        return TORN;
    }
    // SAFETY: not null, and the verifier has checked its size.
    let slot = unsafe { &mut *entry.cast::<MaybeUninit<PoolEntry>>() };
    let key = PoolKey { dev, head };
    match whole(&key, slot, || POOLS.get_ptr(key)) {
        Known::Nothing => NOTHING,
        Known::Torn => TORN,
        Known::Entry(_) => ENTRY,
    }
}
