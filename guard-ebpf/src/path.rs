//! A name's path inside its superblock, for the log.

use core::ptr;

use guard_common::Record;
use guard_common::record::{PATH_BYTES, PATH_COMPONENTS, RECORD_PATH_TRUNCATED};

use crate::kernel;

const NAME_BYTES: u32 = 256;

/// Writes the names from the target up to the superblock's root, each closed by a NUL, and the
/// number of bytes that they take. Returns the flag that says whether the root was reached.
///
/// A global function: see `identity`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn write_path(record: *mut Record, superblock: u64, target: u64) -> u32 {
    if record.is_null() {
        return RECORD_PATH_TRUNCATED;
    }
    let mut used: u32 = 0;
    let mut flag = RECORD_PATH_TRUNCATED;
    if let Ok(root) = kernel::superblock_root(superblock) {
        let mut dentry = target;
        for _ in 0..PATH_COMPONENTS {
            if dentry == root {
                flag = 0;
                break;
            }
            if used >= PATH_BYTES as u32 {
                break;
            }
            let Ok(name) = kernel::dentry_name(dentry) else { break };
            // SAFETY: a whole component fits behind every offset below PATH_BYTES (see
            // PATH_STORAGE).
            let place = unsafe { (&raw mut (*record).path).cast::<u8>().add(used as usize) };
            let Ok(length) = kernel::read_text(place.cast(), NAME_BYTES, name) else { break };
            used += length & 0x1ff;
            match kernel::dentry_parent(dentry) {
                Ok(parent) if parent != dentry => dentry = parent,
                _ => break,
            }
        }
    }
    // SAFETY: not null, and the caller reserved a whole record.
    unsafe { ptr::write_volatile(&raw mut (*record).path_len, used) };
    flag
}
