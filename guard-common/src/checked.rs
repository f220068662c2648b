//! Values of maps that tell whether they were read whole.

use crate::{
    ActorMask, CgroupKey, ExecutableKey, FilesystemKey, KindEntry, LeaseEntry, LeaseKey, PoolEntry,
    PoolKey, RootEntry, RootKey,
};

/// A value that tells whether it is whole, and belongs to the key that it was found by.
///
/// The kernel gives the memory of an entry that was replaced or removed to the next one, also while
/// a program reads it: the reader may see another key's entry, or half of two. So each value that a
/// decision rests on holds a word that is made of its key and all its other words. The agent sets
/// it when it writes, and takes it out when it reads.
pub trait Checked<K>: Copy {
    /// The word, as it has to be.
    fn check_word(&self, key: &K) -> u64;
    /// The word, as it is.
    fn check(&self) -> u64;
    fn set_check(&mut self, check: u64);

    /// Whether it was read whole, by its own key.
    #[inline(always)]
    fn is_whole(&self, key: &K) -> bool {
        self.check() == self.check_word(key)
    }

    /// As it has to be written.
    fn with_check(mut self, key: &K) -> Self {
        self.set_check(self.check_word(key));
        self
    }

    /// As it is compared.
    fn without_check(mut self) -> Self {
        self.set_check(0);
        self
    }
}

/// Mixes a word into a check word. Each step is one-to-one, so that a change of any one word shows.
#[inline(always)]
const fn mix(check: u64, word: u64) -> u64 {
    (check ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Two numbers as a word.
#[inline(always)]
const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

macro_rules! checked {
    ($($value:ident of $key:ty: |$k:ident, $v:ident| [$($word:expr),+ $(,)?];)+) => { $(
        impl Checked<$key> for $value {
            #[inline(always)]
            fn check_word(&self, $k: &$key) -> u64 {
                let $v = self;
                // Not 0 for an entry of zeros.
                let mut check = 1;
                $( check = mix(check, $word); )+
                check
            }
            #[inline(always)]
            fn check(&self) -> u64 {
                self.check
            }
            fn set_check(&mut self, check: u64) {
                self.check = check;
            }
        }
    )+ };
}

checked! {
    PoolEntry of PoolKey: |key, v| [
        pair(key.dev, key.head), v.generation, v.pool_id, v.expires_boot_ns, v.magic,
        pair(v.actor_set, v.flags), pair(v.mode, v.canary_token),
    ];
    RootEntry of RootKey: |key, v| [
        key.ino, pair(key.dev, key.reserved), v.filesystems, pair(v.flags, v.reserved), u64::from(v.generation),
    ];
    KindEntry of FilesystemKey: |key, v| [
        key.magic, key.subtype[0], key.subtype[1], key.subtype[2], u64::from(v.bit),
    ];
    ActorMask of CgroupKey: |key, v| [
        key.cgroup_id, pair(key.actor_set, v.flags), v.alone, v.combined, u64::from(v.generation),
    ];
    ActorMask of ExecutableKey: |key, v| [
        key.ino, pair(key.dev, key.actor_set), pair(v.generation, v.flags), v.alone, v.combined,
    ];
    LeaseEntry of LeaseKey: |key, v| [key.cgroup_id, u64::from(key.dev), v.generation, v.expires_boot_ns];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_was_changed_while_it_was_read_is_not_whole() {
        let entry = |mode: u32, generation| PoolEntry { generation, mode, ..PoolEntry::default() };
        let [here, there] = [43, 44].map(PoolKey::superblock);
        let one = entry(2, 7).with_check(&here);
        let other = entry(1, 8).with_check(&there);
        assert!(one.is_whole(&here) && other.is_whole(&there));
        assert!(!one.is_whole(&there), "another superblock's");
        assert!(!one.is_whole(&PoolKey { head: 7, ..here }), "a part's");
        for torn in [
            PoolEntry { mode: other.mode, ..one },
            PoolEntry { generation: other.generation, ..one },
            PoolEntry { check: other.check, ..one },
            entry(2, 7),
        ] {
            assert!(!torn.is_whole(&here), "{torn:?}");
        }
    }
}
