//! The world around a node, for the model checker: the true node, the part of it that reaches the
//! agent, the agent that may die at any effect, and the kernel's entry of the pool. The machine in
//! it is the real one.

mod agent;
mod lab;
mod message;
mod world;

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use stateright::{Checker, Expectation, HasDiscoveries, Model};

use lab::Lab;
use world::{Bounds, Fault, World};

/// Each alone with one or two of the others is explored whole; all at once would take hours. (Wide
/// bounds are first: a broken variant is looked for from the end.)
const BOUNDS: [Bounds; 8] = [
    Bounds { kills: 1, starts: 1, joins: 1, ..SMALL },
    Bounds { crashes: 1, joins: 1, removals: 1, ..SMALL },
    Bounds { joins: 1, removals: 1, silences: 1, ..SMALL },
    Bounds { joins: 2, ..SMALL },
    Bounds { joins: 1, mounts: 1, ..SMALL },
    Bounds { crashes: 1, joins: 1, ..SMALL },
    Bounds { joins: 1, others: 1, ..SMALL },
    Bounds { joins: 1, releases: 1, ..SMALL },
];
const SMALL: Bounds = Bounds {
    crashes: 0,
    kills: 0,
    starts: 0,
    joins: 0,
    releases: 0,
    removals: 0,
    others: 0,
    silences: 0,
    mounts: 0,
    under_way: 1,
};

#[test]
fn all_invariants_hold_in_every_reachable_state() {
    let (mut states, mut depth, mut seen) = (0, 0, BTreeSet::new());
    for bounds in BOUNDS {
        let checker = Lab { fault: Fault::None, bounds }.checker().threads(2).spawn_bfs().join();
        println!("note: join model: {} states within {bounds:?}", checker.unique_state_count());
        states += checker.unique_state_count();
        depth = depth.max(checker.max_depth());
        for property in checker.model().properties() {
            match property.expectation {
                Expectation::Always => checker.assert_no_discovery(property.name),
                _ if checker.discovery(property.name).is_some() => drop(seen.insert(property.name)),
                _ => {}
            }
        }
    }
    // The model reaches the states that matter.
    assert_eq!(seen.len(), 5, "only seen: {seen:?}");
    println!(
        "note: join model: {states} states explored, longest history {depth} steps, every \
         invariant holds"
    );
}

/// For histories that are too long to be explored whole.
const LONG: Bounds = Bounds {
    crashes: 6,
    kills: 6,
    starts: 6,
    joins: 4,
    releases: 3,
    removals: 2,
    others: 6,
    silences: 4,
    mounts: 4,
    under_way: 4,
};

proptest! {
    // The same histories each time: a run tells of the change at hand. For others: PROPTEST_RNG_SEED
    // and PROPTEST_CASES.
    #![proptest_config(ProptestConfig {
        cases: 400,
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::default()
    })]

    #[test]
    fn all_invariants_hold_along_long_histories(
        choices in proptest::collection::vec(any::<usize>(), 1..400),
    ) {
        let lab = Lab { fault: Fault::None, bounds: LONG };
        let properties: Vec<_> =
            lab.properties().into_iter().filter(|property| property.expectation == Expectation::Always).collect();
        let (mut world, mut actions) = (World::new(LONG), Vec::new());
        for choice in choices {
            actions.clear();
            lab.actions(&world, &mut actions);
            let Some(action) = actions.get(choice % actions.len().max(1)).cloned() else { break };
            let Some(next) = lab.next_state(&world, action.clone()) else { continue };
            world = next;
            for property in &properties {
                prop_assert!((property.condition)(&lab, &world), "{}: after {action:?}: \
                                                                  {world:?}", property.name);
            }
        }
    }
}

/// A broken machine, or broken surroundings, must break the invariant that they are about.
fn breaks(fault: Fault, invariant: &str) {
    // From the one with releases back: a lease shows only there.
    let is_caught = BOUNDS.iter().rev().any(|&bounds| {
        let lab = Lab { fault, bounds };
        let names = lab.properties().into_iter().map(|property| property.name);
        let name =
            names.into_iter().find(|name| name.starts_with(invariant)).expect("it is a property");
        let wanted = HasDiscoveries::AnyOf([name].into());
        let checker = lab.checker().threads(2).finish_when(wanted).spawn_bfs().join();
        checker.discovery(name).is_some()
    });
    assert!(is_caught, "{fault:?} was not caught");
}

#[test]
fn an_open_kernel_breaks_the_first_invariant() {
    breaks(Fault::OpenKernel, "1");
}

#[test]
fn taking_loss_for_proof_breaks_the_second_invariant() {
    breaks(Fault::LossIsProof, "2");
}

#[test]
fn believing_old_answers_breaks_the_second_invariant() {
    breaks(Fault::NoEpochs, "2");
}

#[test]
fn trusting_new_pools_breaks_the_second_invariant() {
    breaks(Fault::TrustsNewPools, "2");
}

#[test]
fn a_lease_without_end_breaks_the_third_invariant() {
    breaks(Fault::EndlessLease, "3");
}

#[test]
fn not_hearing_the_rollbacks_end_breaks_the_fourth_invariant() {
    breaks(Fault::DeafToRollback, "4");
}

#[test]
fn never_weakening_breaks_the_fifth_invariant() {
    breaks(Fault::NeverWeakens, "5");
}

#[test]
fn taking_others_news_for_its_own_breaks_the_sixth_invariant() {
    breaks(Fault::OthersFrames, "6");
}

#[test]
fn asking_for_the_clusters_operations_breaks_the_sixth_invariant() {
    breaks(Fault::OthersOperations, "6");
}

#[test]
fn not_hearing_a_removal_breaks_the_second_invariant() {
    breaks(Fault::DeafToRemoval, "2");
}

#[test]
fn taking_silence_for_proof_breaks_the_sixth_invariant() {
    breaks(Fault::SilenceIsProof, "6");
}

#[test]
fn asking_the_wrong_socket_breaks_the_fifth_invariant() {
    breaks(Fault::WrongSocket, "5");
}

#[test]
fn forgetting_the_journal_breaks_the_second_invariant() {
    breaks(Fault::LostJournal, "2");
}

#[test]
fn not_hearing_the_operator_breaks_the_seventh_invariant() {
    breaks(Fault::DeafToOperator, "7");
}
