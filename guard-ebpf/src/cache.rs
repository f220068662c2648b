//! Earlier answers, kept as long as they must be true.
//!
//! Two questions cost most of a decision: where a mount lies, and what a process's cgroups say. The answer to the first can
//! only change when mounts or names change, or the agent's maps; to the second, when the maps do (a cgroup never gets other
//! ancestors). The kernel counts changes of mounts in `mount_lock` and of names in `rename_lock` (odd while one is under
//! way), the agent those of its maps in `Config::generation` (likewise). An answer is kept with these numbers if
//! they were even and the same before and after it was found, and used while they are the same again.
//!
//! A slot is one processor's, but a program can be preempted there by another one, at any word. So a slot's last word is
//! made of the others: half of one answer beside half of another is none. Where the kernel's numbers cannot be found the
//! question is asked each time.

use core::ptr;

use aya_ebpf::maps::PerCpuArray;
use guard_common::names::capacity;

use crate::kernel::{self, fence};
use crate::maps::config;

/// Subject and answer, two words of validity, check word.
pub type Slot = [u64; 4];

const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// The state of the world that an answer holds for.
#[derive(Clone, Copy)]
pub struct Moment {
    /// Numbers of the kernel: mounts in the lower half, names in the upper. 0 for questions that do not hang on them.
    tree: u64,
    generation: u32,
}

/// Now, for a question about mounts.
#[inline(always)]
pub fn tree() -> Moment {
    Moment { tree: kernel::tree_sequences(), generation: generation() }
}

/// Now, for a question about the agent's maps alone.
#[inline(always)]
pub fn maps() -> Moment {
    Moment { tree: 0, generation: generation() }
}

#[inline(always)]
fn generation() -> u32 {
    config!(generation)
}

impl Moment {
    /// Whether nothing is changing.
    #[inline(always)]
    fn is_steady(self) -> bool {
        const ODD: u64 = 1 | 1 << 32;
        self.tree & ODD == 0 && self.generation & 1 == 0
    }

    #[inline(always)]
    fn is(self, other: Self) -> bool {
        self.tree == other.tree && self.generation == other.generation
    }
}

/// Which question: part of what tells one answer from another.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Question {
    /// Where a superblock without an entry belongs, by a mount.
    Place = 1,
    /// Whether a mount is a guest's.
    View = 2,
    /// What cgroups say.
    Actor = 3,
    /// Where a mount lies, whatever its superblock's other mounts are.
    PlaceOfMount = 4,
    /// Which part of its superblock a mount shows.
    Part = 5,
}

/// The thing that a question is about: two numbers that tell it from every other one of the same moment.
#[derive(Clone, Copy)]
pub struct Subject {
    pub first: u64,
    pub second: u32,
    pub question: Question,
}

impl Subject {
    #[inline(always)]
    fn slot(self) -> u32 {
        let mixed = (self.first ^ self.question as u64).wrapping_mul(MULTIPLIER) >> 32;
        (mixed as u32 ^ self.second) & (capacity::CACHE - 1)
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

/// The answer that is kept for a subject at a moment.
#[inline(always)]
pub fn find(cache: &PerCpuArray<Slot>, subject: Subject, moment: Moment) -> Option<u64> {
    if !moment.is_steady() {
        return None;
    }
    let slot = cache.get_ptr(subject.slot())?.cast::<u64>();
    // SAFETY: points into a map's value, which lives as long as the program runs, and holds four words.
    let [answer, second, third, check] = unsafe {
        [
            ptr::read_volatile(slot),
            ptr::read_volatile(slot.add(1)),
            ptr::read_volatile(slot.add(2)),
            ptr::read_volatile(slot.add(3)),
        ]
    };
    let words = subject.words(moment);
    ((second, third) == words && check == subject.check(answer, words)).then_some(answer)
}

/// Keeps an answer that was found since `before`, which must be the moment from before anything was looked at; `now` is
/// asked for the moment after.
#[inline(always)]
pub fn keep(cache: &PerCpuArray<Slot>, subject: Subject, before: Moment, now: fn() -> Moment, answer: u64) {
    // What was looked at was read before this, and after `before`: see `fence`.
    fence();
    if !before.is_steady() || !before.is(now()) {
        return;
    }
    let Some(slot) = cache.get_ptr_mut(subject.slot()) else { return };
    let words = subject.words(before);
    // SAFETY: as in `find`.
    unsafe {
        let slot = slot.cast::<u64>();
        ptr::write_volatile(slot, answer);
        ptr::write_volatile(slot.add(1), words.0);
        ptr::write_volatile(slot.add(2), words.1);
        ptr::write_volatile(slot.add(3), subject.check(answer, words));
    }
}
