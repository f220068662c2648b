//! A model of the answers that the kernel program keeps (`guard_common::kept`): is one ever used
//! that is out of date?
//!
//! One slot of one processor, as the program's `cache.rs` uses it. Each read or write of one word
//! is a step, and so is each look at the world. Programs on one processor preempt each other in any
//! order: one that was preempted may go on before the other has ended. Other processors change
//! mounts and names, each under its seqlock. The agent changes maps under `Config::generation`, and
//! may die in between. The real code decides which answers are kept and which part of them is used;
//! only the order of its reads and writes is written again here.
//!
//! **Invariant.** The world is the state that walks read. An answer that is found tells the state
//! of the world, as a whole, at one moment since its reader's first step. A walk without a cache
//! gives less: each part of its answer was true at some moment between its start and its end, but
//! the parts need not have been true together.
//!
//! **Left out.** *Memory order*: all processors see a step at once. In the program, `fence` stands
//! between a walk and the second look at the numbers; between the first look and the walk nothing
//! does, and x86 does not reorder reads. *Wrap*: a number comes back after 2^32 steps, so a program
//! that stands still for exactly so many takes the world for unchanged. *Equal check words by
//! chance*: only those of the values that occur here are compared. *Other processors' slots*: each
//! processor has its own, and a program does not move while it runs.

mod lab;

use std::collections::BTreeSet;

use guard_common::kept::{Question, Subject};
use stateright::{Checker, Expectation, HasDiscoveries, Model};

use lab::Part::{Maps, Mounts, Names};
use lab::{Bounds, Fault, Lab, VALID};

const SUBJECT: Subject = Subject { first: 0x40, second: 0x2b, question: Question::Place };
/// Two that share the slot: mounts of one superblock, and of two. (Two questions about one mount
/// never share one.)
const BY_MOUNT: &[Subject] = &[SUBJECT, Subject { first: 0x2d00, ..SUBJECT }];
const BY_DEVICE: &[Subject] = &[SUBJECT, Subject { second: SUBJECT.second + 0x100, ..SUBJECT }];
const ALONE: &[Subject] = &[SUBJECT];

/// Each is explored whole.
const BOUNDS: &[Bounds] = &[
    Bounds { parts: &[Mounts], changes: [1, 0, 0], subjects: BY_MOUNT, ..SMALL },
    Bounds { parts: &[Mounts], changes: [1, 0, 0], subjects: BY_DEVICE, ..SMALL },
    MOUNTS_TWICE,
    Bounds { parts: &[Names], changes: [0, 1, 0], at_once: 3, ..SMALL },
    Bounds { parts: &[Maps], changes: [0, 0, 2], deaths: 1, ..SMALL },
    Bounds { parts: &[Mounts, Names, Maps], changes: [1, 1, 1], programs: 2, at_once: 1, ..SMALL },
    Bounds { parts: &[Mounts, Names], changes: [1, 1, 0], ..SMALL },
    Bounds { parts: &[Names, Maps], changes: [0, 1, 1], ..SMALL },
];
const SMALL: Bounds =
    Bounds { parts: &[], programs: 3, at_once: 2, changes: [0; 3], deaths: 0, subjects: ALONE };

const MOUNTS_TWICE: Bounds = Bounds { parts: &[Mounts], changes: [2, 0, 0], ..SMALL };

#[test]
fn no_answer_is_found_that_was_not_true_since_its_reader_began() {
    let (mut states, mut depth, mut seen) = (0, 0, BTreeSet::new());
    for &bounds in BOUNDS {
        let checker = Lab { fault: Fault::None, bounds }.checker().threads(2).spawn_bfs().join();
        println!(
            "note: model of kept answers: {} states within {bounds:?}",
            checker.unique_state_count()
        );
        states += checker.unique_state_count();
        depth = depth.max(checker.max_depth());
        checker.assert_no_discovery(VALID);
        let properties = checker.model().properties();
        let sometimes =
            properties.iter().filter(|property| property.expectation == Expectation::Sometimes);
        seen.extend(
            sometimes
                .map(|property| property.name)
                .filter(|name| checker.discovery(name).is_some()),
        );
    }
    // The model gets to where it matters.
    assert_eq!(seen.len(), 3, "only seen: {seen:?}");
    println!(
        "note: model of kept answers: {states} states explored, longest history {depth} steps"
    );
}

#[test]
fn the_subjects_of_the_model_share_a_slot() {
    for subjects in [BY_MOUNT, BY_DEVICE] {
        assert_eq!(subjects[0].slot(), subjects[1].slot(), "{subjects:?}");
        assert_ne!(subjects[0], subjects[1]);
    }
}

/// A broken variant must find an answer that was not true.
fn breaks(fault: Fault, within: &[Bounds]) {
    let is_caught = within.iter().any(|&bounds| {
        let wanted = HasDiscoveries::AnyOf([VALID].into());
        let checker =
            Lab { fault, bounds }.checker().threads(2).finish_when(wanted).spawn_bfs().join();
        checker.discovery(VALID).is_some()
    });
    assert!(is_caught, "{fault:?} was not caught");
}

#[test]
fn no_second_look_at_the_numbers_is_caught() {
    breaks(Fault::NoSecondLook, BOUNDS);
}

#[test]
fn no_check_word_is_caught() {
    // With one subject: it is a torn answer that is caught, not another one's.
    breaks(Fault::NoCheckWord, &[MOUNTS_TWICE]);
}

#[test]
fn odd_numbers_taken_for_steady_ones_are_caught() {
    breaks(Fault::OddNumbers, BOUNDS);
}

#[test]
fn not_looking_at_the_number_of_names_is_caught() {
    breaks(Fault::NoNames, BOUNDS);
}

#[test]
fn words_without_the_generation_are_caught() {
    breaks(Fault::NoGeneration, BOUNDS);
}

#[test]
fn words_without_the_subject_are_caught() {
    breaks(Fault::NoSubject, BOUNDS);
}

#[test]
fn changes_that_are_counted_afterwards_are_caught() {
    breaks(Fault::CountsLate, BOUNDS);
}
