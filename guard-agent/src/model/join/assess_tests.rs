//! Assessments of looks: some seal, some hold, some change nothing.

use super::super::{Effect, Event, NodeMode, Pools};
use super::*;

const ADDRESS: Option<&str> = Some("10.0.0.2:8443");
/// Generation and lasting id.
const POOL: (u64, u64) = (1, 11);

fn life(pid: u32) -> Incarnation {
    Incarnation { boot_id: "b".to_owned(), pid, start_ticks: 1 }
}

fn runs(pid: u32) -> Daemon {
    Daemon::Running { incarnation: life(pid), age_seconds: 1000 }
}

fn evidence(cluster_address: Option<&str>, raft_nodes: u32, daemon: Daemon) -> Evidence {
    Evidence {
        config: Config::cluster(cluster_address, raft_nodes),
        daemon,
        operation: JoinOperation::None,
        ..Evidence::none()
    }
}

fn member(pid: u32) -> Evidence {
    Evidence { membership: Membership::Member, ..evidence(ADDRESS, 2, runs(pid)) }
}

fn starting(pid: u32, unanswered_seconds: u64) -> Evidence {
    Evidence {
        membership: Membership::Starting,
        unanswered_seconds,
        ..evidence(ADDRESS, 2, runs(pid))
    }
}

fn joined() -> NodeState {
    NodeState::Joined { confirmed_by: life(7) }
}

fn at(state: NodeState) -> Machine {
    Machine::at(state, Pools::from([POOL]))
}

fn observed(machine: Machine, evidence: Evidence) -> Machine {
    let asked = machine.epoch();
    step(machine, Event::Observed { asked, evidence })
}

fn step(machine: Machine, event: Event) -> Machine {
    let (machine, result) = machine.step(event, &mut Vec::<Effect>::new());
    assert_eq!(result, Ok(()));
    machine
}

/// The mode of the pool.
fn mode(machine: &Machine) -> NodeMode {
    machine.modes().of(POOL.0)
}

#[test]
fn a_member_is_sealed_by_no_join_of_another() {
    let machine = observed(at(joined()), member(7));
    // The operation of a daemon that tells of those of others, or that names no server.
    for membership in
        [Membership::Member, Membership::NoAnswer { why: String::new() }, Membership::Starting]
    {
        let evidence = Evidence { operation: JoinOperation::Running, membership, ..member(7) };
        let machine = observed(machine.clone(), evidence);
        assert_eq!((machine.state(), mode(&machine)), (&joined(), NodeMode::Policy));
    }
    let machine = step(machine, Event::JoinBegan);
    assert_eq!(machine.state(), &joined());
    // The list of members speaks before the node's own operation has ended.
    let running = Evidence { operation: JoinOperation::Running, ..member(7) };
    let machine = observed(at(NodeState::Joining { seen: JoinSeen::Running }), running);
    assert_eq!((machine.state(), mode(&machine)), (&joined(), NodeMode::Policy));
}

#[test]
fn a_join_of_its_own_seals_whatever_was_before() {
    for before in [NodeState::Standalone, NodeState::Left, joined()] {
        let join = Evidence { operation: JoinOperation::Running, ..evidence(ADDRESS, 0, runs(7)) };
        let machine = observed(at(before), join);
        assert_eq!((machine.state().name(), mode(&machine)), ("joining", NodeMode::Sealed));
    }
}

#[test]
fn a_short_silence_changes_nothing_and_a_long_one_holds() {
    let machine = observed(at(joined()), member(7));
    let unreadable = Config::Unreadable { why: "locked".to_owned() };
    for seconds in [1, 30] {
        for config in [Config::cluster(ADDRESS, 2), unreadable.clone()] {
            let machine = observed(machine.clone(), Evidence { config, ..starting(7, seconds) });
            assert_eq!((machine.state(), mode(&machine)), (&joined(), NodeMode::Policy));
        }
    }
    let machine = observed(machine, starting(7, HOLD_SECONDS));
    assert_eq!((machine.state().name(), mode(&machine)), ("unconfirmed", NodeMode::Held));
    // For however long, and through a restart of the agent.
    let machine = observed(machine, starting(8, 100_000));
    assert_eq!(mode(&machine), NodeMode::Held);
    let found = [(POOL.0, NodeMode::Held)].into();
    let machine = Machine::restored(machine.state().clone(), machine.memory().clone(), &found);
    let machine = step(machine, Event::Pools { alive: [POOL].into() });
    let machine = observed(machine, starting(8, 0));
    assert_eq!(mode(&machine), NodeMode::Held);
    let machine = observed(machine, member(8));
    assert_eq!((machine.state().name(), mode(&machine)), ("joined", NodeMode::Policy));
}

#[test]
fn a_daemon_that_starts_anew_has_the_same_time_to_answer() {
    let machine = observed(at(joined()), member(7));
    let machine = observed(machine, evidence(ADDRESS, 2, Daemon::Stopped));
    assert_eq!((machine.state().name(), mode(&machine)), ("unconfirmed", NodeMode::Policy));
    let machine = observed(machine, starting(8, 59));
    assert_eq!(mode(&machine), NodeMode::Policy);
    assert_eq!(mode(&observed(machine, starting(8, 60))), NodeMode::Held);
}

#[test]
fn a_member_that_nobody_has_confirmed_is_held_and_never_sealed() {
    let machine = observed(at(NodeState::Unknown { kept: Kept::Nothing }), starting(7, 0));
    assert_eq!((machine.state().name(), mode(&machine)), ("unconfirmed", NodeMode::Held));
}

#[test]
fn positive_evidence_seals_a_member() {
    for membership in [Membership::NotListed, Membership::NotClustered] {
        for before in [joined(), NodeState::Unconfirmed { confirmed_by: None, held: true }] {
            let machine =
                observed(at(before), Evidence { membership: membership.clone(), ..member(7) });
            assert_eq!(
                (machine.state(), mode(&machine)),
                (&NodeState::JoinPartial, NodeMode::Sealed)
            );
        }
    }
    let vanished = Evidence { config: Config::Absent, daemon: Daemon::Stopped, ..Evidence::none() };
    assert_eq!(observed(at(joined()), vanished).state(), &NodeState::JoinPartial);
}

#[test]
fn a_removal_by_force_seals_until_the_list_says_otherwise() {
    let machine = step(observed(at(joined()), member(7)), Event::MemberRemoved);
    assert_eq!((machine.state(), mode(&machine)), (&NodeState::JoinPartial, NodeMode::Sealed));
    let machine = observed(machine, starting(7, 1));
    assert_eq!(machine.state(), &NodeState::JoinPartial);
    // Late events of it are no news.
    let machine = step(machine, Event::MemberRemoved);
    assert_eq!(observed(machine, member(7)).state(), &joined());
}

#[test]
fn a_node_that_leaves_in_order_keeps_no_pool_and_may_make_its_own() {
    let machine = step(observed(at(joined()), member(7)), Event::ClusterDisabled);
    assert_eq!((machine.state(), mode(&machine)), (&NodeState::Left, NodeMode::Sealed));
    let machine = observed(machine, evidence(ADDRESS, 2, Daemon::Stopped));
    assert_eq!((machine.state(), mode(&machine)), (&NodeState::Left, NodeMode::Sealed));
    let alone = || Evidence {
        membership: Membership::NotClustered,
        stream: Some(1),
        ..evidence(ADDRESS, 0, runs(8))
    };
    let machine = observed(machine, alone());
    assert_eq!((machine.state(), mode(&machine)), (&NodeState::Left, NodeMode::Sealed));
    assert_eq!(machine.may_roll_back(), Ok(()), "what it still has mounted may be unmounted");
    let machine = step(machine, Event::Pools { alive: Pools::new() });
    let machine = observed(machine, alone());
    let machine = step(machine, Event::Pools { alive: [(2, 22)].into() });
    assert_eq!(machine.modes().of(2), NodeMode::Sealed, "until a look speaks for it");
    let machine = observed(machine, alone());
    assert_eq!((machine.state(), machine.modes().of(2)), (&NodeState::Left, NodeMode::Policy));
}

#[test]
fn a_node_that_leaves_is_not_condemned_for_a_database_that_is_not_empty_yet() {
    let says = |state| {
        let evidence =
            Evidence { membership: Membership::NotClustered, ..evidence(ADDRESS, 2, runs(7)) };
        observed(at(state), evidence).state().clone()
    };
    assert_eq!(says(NodeState::Left), NodeState::Left);
    assert_eq!(says(joined()), NodeState::JoinPartial, "one that nobody has seen leave");
}

#[test]
fn a_pool_that_came_unseen_with_an_address_set_is_sealed_until_an_operator_says_so() {
    let followed = |stream| Evidence { stream, ..evidence(ADDRESS, 0, runs(7)) };
    let machine = observed(Machine::at(NodeState::Standalone, Pools::new()), followed(None));
    let machine = step(machine, Event::Pools { alive: [POOL].into() });
    let machine = observed(machine, followed(Some(1)));
    assert_eq!((machine.state(), mode(&machine)), (&NodeState::JoinFailed, NodeMode::Sealed));
    let machine = step(machine, Event::Adopted { by: "uid 0".to_owned() });
    let machine = observed(machine, followed(Some(1)));
    assert_eq!((machine.state(), mode(&machine)), (&NodeState::Standalone, NodeMode::Policy));
    // Lastingly.
    let again = Machine::restored(NodeState::JoinFailed, machine.memory().clone(), &[].into());
    let again = step(again, Event::Pools { alive: [(2, POOL.1)].into() });
    let again = step(again, Event::Forgotten { by: "uid 0".to_owned() });
    assert!(again.memory().own.is_empty());
}

#[test]
fn a_question_without_an_answer_condemns_no_pool() {
    let standing =
        |operation| Evidence { operation, stream: Some(1), ..evidence(ADDRESS, 0, runs(7)) };
    let machine =
        observed(Machine::at(NodeState::Standalone, Pools::new()), standing(JoinOperation::None));
    let machine = step(machine, Event::Pools { alive: [POOL].into() });
    let machine = observed(machine, standing(JoinOperation::Unknown));
    assert_eq!((machine.state(), mode(&machine)), (&NodeState::Standalone, NodeMode::Sealed));
    let machine = observed(machine, standing(JoinOperation::None));
    assert_eq!((machine.state(), mode(&machine)), (&NodeState::Standalone, NodeMode::Policy));
}

#[test]
fn making_a_cluster_is_no_join() {
    let machine = observed(at(NodeState::Standalone), evidence(None, 0, runs(7)));
    assert_eq!(mode(&machine), NodeMode::Policy);
    let machine = observed(machine, evidence(ADDRESS, 0, runs(7)));
    assert_eq!((machine.state(), mode(&machine)), (&NodeState::Standalone, NodeMode::Policy));
    let unanswered = Membership::NoAnswer { why: "no leader".to_owned() };
    let machine =
        observed(machine, Evidence { membership: unanswered, ..evidence(ADDRESS, 1, runs(7)) });
    assert_eq!((machine.state().name(), mode(&machine)), ("unconfirmed", NodeMode::Policy));
    let machine = observed(machine, member(7));
    assert_eq!((machine.state().name(), mode(&machine)), ("joined", NodeMode::Policy));
}

#[test]
fn a_standalone_server_gets_its_own_pool_back_after_a_mistaken_join() {
    let machine = observed(at(NodeState::Standalone), evidence(None, 0, runs(7)));
    let machine = step(machine, Event::JoinBegan);
    let strange = (2, 22);
    let machine = step(machine, Event::Pools { alive: [POOL, strange].into() });
    let failed = Evidence { operation: JoinOperation::Failed, ..evidence(ADDRESS, 0, runs(7)) };
    let machine = observed(machine, failed);
    assert_eq!(machine.state(), &NodeState::JoinFailed);
    let machine = step(machine, Event::RollbackAsked { by: String::new() });
    let machine = step(machine, Event::RollbackEnded { alive: Pools::new() });
    assert_eq!(machine.state(), &NodeState::Released);
    // Both come back, as other superblocks.
    let machine = step(machine, Event::Pools { alive: [(3, POOL.1), (4, strange.1)].into() });
    let machine = observed(machine, evidence(ADDRESS, 0, runs(8)));
    assert_eq!(machine.state(), &NodeState::JoinFailed);
    let machine = step(machine, Event::Pools { alive: [(3, POOL.1)].into() });
    let machine = observed(machine, evidence(None, 0, runs(8)));
    assert_eq!(
        (machine.state(), machine.modes().of(3)),
        (&NodeState::Standalone, NodeMode::Policy)
    );
    // A pool of the cluster stays the cluster's, even against the configuration.
    let machine = step(machine, Event::JoinBegan);
    let machine = step(machine, Event::Pools { alive: [(3, POOL.1), (5, strange.1)].into() });
    let machine = observed(machine, evidence(None, 0, runs(8)));
    assert_eq!(
        (machine.state(), machine.modes().of(5)),
        (&NodeState::JoinFailed, NodeMode::Sealed)
    );
}

#[test]
fn a_host_without_incus_is_no_news() {
    let nothing =
        || Evidence { config: Config::Absent, daemon: Daemon::Stopped, ..Evidence::none() };
    let Assessment { state, because, .. } = Machine::unknown().assess(&nothing());
    assert_eq!(state, NodeState::Unknown { kept: Kept::Nothing });
    assert!(!because.contains("deletion"), "{because}");
    let machine =
        observed(Machine::at(NodeState::Unknown { kept: Kept::Nothing }, Pools::new()), nothing());
    assert_eq!(machine.state(), &NodeState::Unknown { kept: Kept::Nothing });
}

#[test]
fn what_was_rolled_back_stays_so_until_a_pool_or_a_daemon_comes() {
    let rolled_back = Machine::at(NodeState::Released, Pools::new());
    for raft_nodes in [0, 2] {
        let evidence = evidence(ADDRESS, raft_nodes, Daemon::Stopped);
        let Assessment { state, because, .. } = rolled_back.assess(&evidence);
        assert_eq!(state, NodeState::Released, "{because}");
    }
    let assessment = at(NodeState::Released).assess(&evidence(ADDRESS, 2, Daemon::Stopped));
    assert_eq!(assessment.state, NodeState::JoinPartial);
    let assessment = rolled_back.assess(&evidence(ADDRESS, 2, runs(7)));
    assert_eq!(assessment.state, NodeState::JoinPartial);
    let assessment = at(NodeState::Released).assess(&evidence(None, 0, runs(7)));
    assert_eq!(
        assessment.state,
        NodeState::JoinFailed,
        "the pool may be the cluster's, mounted again"
    );
}
