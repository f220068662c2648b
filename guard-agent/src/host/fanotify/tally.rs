//! Answers that are only counted, until they are written down together: a write for each costs the
//! waiting process as much as the look at it. Pure.

use super::decide::Outcome;

/// So many at most are not written down yet.
const MOST: u64 = 64;

/// The same outcome in the same pool, so often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub outcome: Outcome,
    /// The pool's.
    pub generation: u64,
    pub number: u64,
}

/// Counts that are not written down yet. The tally goes with the process: a pause of the questions,
/// or enough of them, settles it.
#[derive(Debug, Default)]
pub(super) struct Tally {
    counted: Vec<Counted>,
    number: u64,
}

impl Tally {
    pub(super) fn add(&mut self, outcome: Outcome, generation: u64) {
        self.number += 1;
        let same =
            |counted: &&mut Counted| (counted.outcome, counted.generation) == (outcome, generation);
        match self.counted.iter_mut().find(same) {
            Some(counted) => counted.number += 1,
            None => self.counted.push(Counted { outcome, generation, number: 1 }),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.number == 0
    }

    /// Whether it shall not wait for a pause.
    pub(super) fn is_full(&self) -> bool {
        self.number >= MOST
    }

    /// All of it, which is gone then.
    pub(super) fn take(&mut self) -> Vec<Counted> {
        self.number = 0;
        std::mem::take(&mut self.counted)
    }
}

#[cfg(test)]
mod tests {
    use guard_common::{Reason, Verdict};

    use super::*;

    #[test]
    fn each_is_counted_once_where_it_belongs() {
        let actor = Outcome { verdict: Verdict::Allowed, reason: Reason::Actor };
        let other = Outcome { verdict: Verdict::Allowed, reason: Reason::Lease };
        let mut tally = Tally::default();
        assert!(tally.is_empty());
        for (outcome, generation) in [(actor, 1), (actor, 2), (actor, 1), (other, 1)] {
            tally.add(outcome, generation);
        }
        assert!(!tally.is_empty());
        let counted = |outcome, generation, number| Counted { outcome, generation, number };
        assert_eq!(
            tally.take(),
            [counted(actor, 1, 2), counted(actor, 2, 1), counted(other, 1, 1)]
        );
        assert!(tally.is_empty() && tally.take().is_empty());
    }

    #[test]
    fn it_is_full_by_the_number_of_answers_and_not_of_outcomes() {
        let outcome = Outcome { verdict: Verdict::Allowed, reason: Reason::Actor };
        let mut tally = Tally::default();
        for number in 0..MOST {
            assert!(!tally.is_full());
            tally.add(outcome, number % 2);
        }
        assert!(tally.is_full());
        tally.take();
        assert!(!tally.is_full());
    }
}
