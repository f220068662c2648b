//! Numbers of filesystem kinds: bits in the masks of the roots.
//!
//! A number stays with its kind for as long as the kind is in the map. Numbers by place in the
//! policy would change with an edit, and the masks with them, one map entry after the other.

use std::collections::{BTreeMap, BTreeSet};

use guard_common::{FilesystemKey, RootEntry};

use super::content::{MapOperation, Observed};
use crate::model::policy::{Policy, Root};

/// The number of every kind that some root guards.
#[derive(Debug)]
pub(super) struct Bits {
    by_name: Vec<(String, FilesystemKey, u32)>,
    /// Numbers that change their kind: only where all 64 were taken.
    recycled: u64,
}

/// Keeps the observed numbers; gives free ones to new kinds.
pub(super) fn bits(policy: &Policy, observed: &BTreeMap<FilesystemKey, u32>) -> Bits {
    let kept = |key: &FilesystemKey| observed.get(key).copied().filter(|bit| *bit < u64::BITS);
    let mut taken: BTreeSet<u32> = BTreeSet::new();
    let mut numbers: Vec<Option<u32>> = Vec::new();
    for kind in policy.filesystems() {
        numbers.push(kept(&kind.key()).filter(|bit| taken.insert(*bit)));
    }
    let mut bits = Bits { by_name: Vec::new(), recycled: 0 };
    let in_map: BTreeSet<u32> = observed.values().copied().collect();
    for (kind, number) in policy.filesystems().iter().zip(numbers) {
        let free = || (0..u64::BITS).find(|bit| !taken.contains(bit) && !in_map.contains(bit));
        let number = number.or_else(free).or_else(|| {
            let bit = (0..u64::BITS).find(|bit| !taken.contains(bit))?;
            bits.recycled |= 1 << bit;
            Some(bit)
        });
        if let Some(number) = number {
            taken.insert(number);
            bits.by_name.push((kind.name().to_owned(), kind.key(), number));
        }
    }
    bits
}

impl Bits {
    /// The mask of a root's kinds.
    pub(super) fn mask(&self, root: &Root) -> u64 {
        let guarded = self.by_name.iter().filter(|(name, ..)| root.filesystems().contains(name));
        guarded.fold(0, |mask, (.., bit)| mask | 1 << bit)
    }

    /// Takes numbers that change their kind out of all roots and of the map.
    pub(super) fn narrow(&self, observed: &Observed) -> Vec<MapOperation> {
        if self.recycled == 0 {
            return Vec::new();
        }
        let narrowed =
            observed.roots.iter().filter(|(_, entry)| entry.filesystems & self.recycled != 0);
        let narrowed = narrowed.map(|(key, entry)| {
            let filesystems = entry.filesystems & !self.recycled;
            MapOperation::PutRoot(*key, RootEntry { filesystems, ..*entry })
        });
        let mut operations: Vec<MapOperation> = narrowed.collect();
        operations.extend(self.gone(observed));
        operations
    }

    /// New kinds.
    pub(super) fn added(&self, observed: &Observed) -> Vec<MapOperation> {
        let new =
            self.by_name.iter().filter(|(_, key, bit)| observed.filesystems.get(key) != Some(bit));
        new.map(|(_, key, bit)| MapOperation::PutFilesystem(*key, *bit)).collect()
    }

    /// Kinds that no root guards any more.
    pub(super) fn removed(&self, observed: &Observed) -> Vec<MapOperation> {
        if self.recycled == 0 { self.gone(observed) } else { Vec::new() }
    }

    fn gone(&self, observed: &Observed) -> Vec<MapOperation> {
        let is_used = |key: &FilesystemKey| self.by_name.iter().any(|(_, used, _)| used == key);
        let keys = observed.filesystems.keys().filter(|key| !is_used(key));
        keys.copied().map(MapOperation::RemoveFilesystem).collect()
    }
}
