//! Which magics come past the kernel program's filter.
//!
//! Each place of the map is one word, which the program reads at once: a magic that is guarded
//! before and after stays in its place, or under [`SEVERAL_MAGICS`], at every moment.

use std::collections::BTreeSet;

use guard_common::names::capacity;
use guard_common::policy::{RAMFS_MAGIC, SEVERAL_MAGICS, magic_slot};

use super::content::{MapOperation, Observed};
use super::desired::Desired;

/// Operations on `MAGICS`, by when they are due.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Before anything else: kinds that are guarded before or after pass the filter.
    pub(super) widened: Vec<MapOperation>,
    /// At the end.
    pub(super) narrowed: Vec<MapOperation>,
}

/// `kept`: the magics of pools that remain.
pub(super) fn changes(desired: &Desired<'_>, observed: &Observed, kept: &BTreeSet<u64>) -> Changes {
    let magics = desired.policy.filesystems().iter().map(|filesystem| filesystem.magic());
    let mut wanted = [0; capacity::MAGICS as usize];
    for magic in magics.chain(kept.iter().copied()).chain([RAMFS_MAGIC]) {
        let place = &mut wanted[magic_slot(magic) as usize];
        *place = joined(*place, magic);
    }
    let mut changes = Changes::default();
    for (slot, after) in (0..).zip(wanted) {
        let before = observed.magics.get(slot as usize).copied().unwrap_or(0);
        let wide = joined(before, after);
        if wide != before {
            changes.widened.push(MapOperation::PutMagic { slot, magic: wide });
        }
        if after != wide {
            changes.narrowed.push(MapOperation::PutMagic { slot, magic: after });
        }
    }
    changes
}

/// The word for a place that two magics share; each may be 0, for none.
fn joined(one: u64, other: u64) -> u64 {
    match (one, other) {
        (0, other) => other,
        (one, 0) => one,
        (one, other) if one == other => one,
        _ => SEVERAL_MAGICS,
    }
}
