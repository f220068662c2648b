//! Earlier answers, kept as long as they must be true.
//!
//! Two questions cost most of a decision: a mount's place, and the actor bits of a process's
//! cgroups. The answer to the first can only change when mounts or names change, or the agent's
//! maps; to the second, when the maps do (a cgroup never gets other ancestors). The kernel counts
//! changes of mounts in `mount_lock` and of names in `rename_lock` (odd while one is under way),
//! the agent those of its maps in `Config::generation` (likewise). An answer is kept with these
//! numbers if they were even and the same before and after it was found, and used while they are
//! the same again.
//!
//! A slot is one processor's, but a program can be preempted there by another one, at any word. So
//! a slot's last word is made of the others: half of one answer beside half of another is none. If
//! the kernel's numbers cannot be found, the question is asked each time.
//!
//! Here are the reads and writes; the rules that they follow are `guard_common::kept`.

use core::ptr;

use aya_ebpf::maps::PerCpuArray;
use guard_common::kept::Moment;
pub(crate) use guard_common::kept::{Question, Slot, Subject};

use crate::kernel::{self, fence};
use crate::maps::config;

/// Now, for a question about mounts.
#[inline(always)]
pub(crate) fn tree() -> Moment {
    Moment { tree: kernel::tree_sequences(), generation: generation() }
}

/// Now, for a question about the agent's maps alone.
#[inline(always)]
pub(crate) fn maps() -> Moment {
    Moment { tree: 0, generation: generation() }
}

#[inline(always)]
fn generation() -> u32 {
    config!(generation)
}

/// The answer that is kept for a subject at a moment.
#[inline(always)]
pub(crate) fn find(cache: &PerCpuArray<Slot>, subject: Subject, moment: Moment) -> Option<u64> {
    if !moment.is_steady() {
        return None;
    }
    let slot = cache.get_ptr(subject.slot())?.cast::<u64>();
    // SAFETY: points into a map's value, which lives as long as the program runs, and holds four
    // words.
    let words = unsafe {
        [
            ptr::read_volatile(slot),
            ptr::read_volatile(slot.add(1)),
            ptr::read_volatile(slot.add(2)),
            ptr::read_volatile(slot.add(3)),
        ]
    };
    subject.answer_in(words, moment)
}

/// Keeps an answer that was found since `before`, which must be the moment from before anything was
/// looked at; `now` is asked for the moment after.
#[inline(always)]
pub(crate) fn keep(
    cache: &PerCpuArray<Slot>,
    subject: Subject,
    before: Moment,
    now: fn() -> Moment,
    answer: u64,
) {
    // The reads for the answer lie between `before` and this: see `fence`.
    fence();
    if !before.lasts(now()) {
        return;
    }
    let Some(slot) = cache.get_ptr_mut(subject.slot()) else { return };
    let [answer, second, third, check] = subject.kept(answer, before);
    // SAFETY: as in `find`.
    unsafe {
        let slot = slot.cast::<u64>();
        ptr::write_volatile(slot, answer);
        ptr::write_volatile(slot.add(1), second);
        ptr::write_volatile(slot.add(2), third);
        ptr::write_volatile(slot.add(3), check);
    }
}
