//! Answers that the kernel program keeps between decisions: when one holds, and how a slot proves
//! that it is whole.
//!
//! Pure. The program's `cache.rs` reads the numbers and the slots, word by word; the agent's
//! `bpf/kept_model/` explores every order in which that can happen.
//!
//! An answer holds for a [`Moment`]: the numbers of the kernel's `mount_lock` and `rename_lock`,
//! and the agent's `Config::generation`. Each is odd while its part of the world changes, and
//! another one afterwards. An answer may be kept if the numbers were steady and the same before and
//! after it was found.

use crate::names::capacity;

/// The words of a slot: the answer, two words of validity, the check word.
pub type Slot = [u64; 4];

const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// The state of the world that an answer holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment {
    /// Numbers of the kernel: mounts in the lower half, names in the upper. 0 for questions that do
    /// not hang on them.
    pub tree: u64,
    pub generation: u32,
}

impl Moment {
    /// Whether nothing is changing.
    #[inline(always)]
    pub fn is_steady(self) -> bool {
        const ODD: u64 = 1 | 1 << 32;
        self.tree & ODD == 0 && self.generation & 1 == 0
    }

    /// Whether nothing has changed from one to the other.
    #[inline(always)]
    pub fn is(self, other: Self) -> bool {
        self.tree == other.tree && self.generation == other.generation
    }

    /// Whether nothing was changing then, and nothing has changed since.
    #[inline(always)]
    pub fn lasts(self, now: Self) -> bool {
        self.is_steady() && self.is(now)
    }
}

/// Which question: part of an answer's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Question {
    /// Place to which a superblock without an entry belongs, by a mount.
    Place = 1,
    /// Whether a mount is a guest's.
    View = 2,
    /// Actor bits of cgroups.
    Actor = 3,
    /// Place of a mount alone, without its superblock's other mounts.
    PlaceOfMount = 4,
    /// Which part of its superblock a mount shows.
    Part = 5,
}

/// The thing that a question is about: two numbers that tell it from every other one of the same
/// moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    pub first: u64,
    pub second: u32,
    pub question: Question,
}

impl Subject {
    /// The number of its slot, which it shares with other subjects.
    #[inline(always)]
    pub fn slot(self) -> u32 {
        let mixed = (self.first ^ self.question as u64).wrapping_mul(MULTIPLIER) >> 32;
        (mixed as u32 ^ self.second) & (capacity::CACHE - 1)
    }

    /// Content of a slot that keeps this answer for a moment.
    #[inline(always)]
    pub fn kept(self, answer: u64, moment: Moment) -> Slot {
        let words = self.words(moment);
        [answer, words.0, words.1, self.check(answer, words)]
    }

    /// The answer in a slot, if it is this subject's, for this moment, and whole.
    #[inline(always)]
    pub fn answer_in(self, [answer, second, third, check]: Slot, moment: Moment) -> Option<u64> {
        let words = self.words(moment);
        ((second, third) == words && check == self.check(answer, words)).then_some(answer)
    }

    #[inline(always)]
    fn words(self, moment: Moment) -> (u64, u64) {
        (moment.tree, u64::from(moment.generation) << 32 | u64::from(self.second))
    }

    #[inline(always)]
    fn check(self, answer: u64, (second, third): (u64, u64)) -> u64 {
        let first = (self.first ^ (self.question as u64) << 56).wrapping_mul(MULTIPLIER) ^ answer;
        (first.wrapping_mul(MULTIPLIER) ^ second).wrapping_mul(MULTIPLIER) ^ third
    }
}
