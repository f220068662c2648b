//! Drawings of the state machine, made by letting it take every step: the drawing shows the code's
//! behaviour.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::{
    Config, Daemon, Event, Evidence, HOLD_SECONDS, Incarnation, JoinOperation, JoinSeen, Kept,
    Machine, Membership, NodeMode, NodeState, Pools,
};

/// A language that drawings are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Mermaid,
    Dot,
}

/// The cause of a transition, in a word.
type Cause = &'static str;
type Edges = BTreeMap<(&'static str, &'static str), BTreeSet<Cause>>;

/// The drawing.
pub fn draw(format: Format) -> String {
    let edges = edges();
    match format {
        Format::Mermaid => mermaid(&edges),
        Format::Dot => dot(&edges),
    }
}

fn mermaid(edges: &Edges) -> String {
    let mut text = "stateDiagram-v2\n    [*] --> unknown\n".to_owned();
    for ((from, to), causes) in edges {
        let _ = writeln!(text, "    {} --> {}: {}", node(from), node(to), join(causes));
    }
    let sealed: Vec<String> = sealed().map(node).collect();
    let _ = writeln!(
        text,
        "    classDef sealed fill:#f6d5d5,stroke:#a33\n    class {} \
         sealed",
        sealed.join(",")
    );
    text
}

fn dot(edges: &Edges) -> String {
    let mut text = "digraph join {\n    node [shape=box, style=rounded]\n".to_owned();
    for name in sealed() {
        let _ = writeln!(text, "    \"{name}\" [style=\"rounded,filled\", fillcolor=\"#f6d5d5\"]");
    }
    for ((from, to), causes) in edges {
        let _ = writeln!(text, "    \"{from}\" -> \"{to}\" [label=\"{}\"]", join(causes));
    }
    text + "}\n"
}

/// Mermaid takes no hyphen in a name.
fn node(name: &str) -> String {
    name.replace('-', "_")
}

fn join(causes: &BTreeSet<Cause>) -> String {
    causes.iter().copied().collect::<Vec<_>>().join(", ")
}

/// Names of the states that always seal.
fn sealed() -> impl Iterator<Item = &'static str> {
    let policy: BTreeSet<&str> = states()
        .iter()
        .filter(|state| state.mode() == NodeMode::Policy)
        .map(NodeState::name)
        .collect();
    let all: BTreeSet<&str> = states().iter().map(NodeState::name).collect();
    all.into_iter().filter(move |name| !policy.contains(name))
}

fn edges() -> Edges {
    let mut edges = Edges::new();
    for state in states() {
        for alive in [Pools::new(), Pools::from([(1, 1)])] {
            for (cause, event) in events() {
                let machine = Machine::at(state.clone(), alive.clone());
                let (machine, _) = machine.step(event, &mut Vec::new());
                let (from, to) = (state.name(), machine.state().name());
                if from != to {
                    edges.entry((from, to)).or_default().insert(cause);
                }
            }
        }
    }
    edges
}

fn life() -> Incarnation {
    Incarnation { boot_id: String::new(), pid: 1, start_ticks: 0 }
}

fn states() -> Vec<NodeState> {
    let unknown = |kept| NodeState::Unknown { kept };
    vec![
        unknown(Kept::Nothing),
        unknown(Kept::Standalone),
        NodeState::Unconfirmed { confirmed_by: Some(life()), held: false },
        NodeState::Unconfirmed { confirmed_by: Some(life()), held: true },
        NodeState::Left,
        NodeState::Standalone,
        NodeState::Joining { seen: JoinSeen::Prepared },
        NodeState::Joining { seen: JoinSeen::Running },
        NodeState::Joined { confirmed_by: life() },
        NodeState::JoinFailed,
        NodeState::JoinPartial,
        NodeState::RollingBack,
        NodeState::Released,
    ]
}

fn events() -> Vec<(Cause, Event)> {
    let none = Pools::new();
    let mut events = vec![
        ("join begins", Event::JoinBegan),
        ("left the cluster", Event::ClusterDisabled),
        ("new pool", Event::Pools { alive: Pools::from([(2, 2)]) }),
        ("guardctl join", Event::JoinPrepared),
        ("rollback asked", Event::RollbackAsked { by: String::new() }),
        ("rolled back", Event::RollbackEnded { alive: none }),
        ("rollback left pools", Event::RollbackEnded { alive: Pools::from([(1, 1)]) }),
        ("removed", Event::MemberRemoved),
        ("adopted", Event::Adopted { by: String::new() }),
        ("forgotten", Event::Forgotten { by: String::new() }),
    ];
    events.extend(observations().into_iter().map(|(cause, evidence)| {
        // The machine is in its first epoch.
        (cause, Event::Observed { asked: super::Epoch(1), evidence })
    }));
    events
}

/// Every kind of look that leads somewhere.
fn observations() -> Vec<(Cause, Evidence)> {
    let config = |address: bool, raft_nodes| Config::Read {
        cluster_address: address.then(String::new),
        raft_nodes,
        name: None,
    };
    let runs = |age_seconds| Daemon::Running { incarnation: life(), age_seconds };
    let other =
        Daemon::Running { incarnation: Incarnation { pid: 2, ..life() }, age_seconds: 1000 };
    let none = JoinOperation::None;
    let unanswered = || Membership::NoAnswer { why: String::new() };
    let observe = |config, daemon, operation, membership| Evidence {
        config,
        daemon,
        operation,
        membership,
        ..Evidence::none()
    };
    let silent = |evidence| Evidence { unanswered_seconds: HOLD_SECONDS, ..evidence };
    vec![
        ("no cluster", observe(config(false, 0), runs(9), none, Membership::NotClustered)),
        (
            "join runs",
            observe(config(true, 0), runs(9), JoinOperation::Running, Membership::NotClustered),
        ),
        ("no join runs", observe(config(true, 0), runs(9), none, Membership::NotClustered)),
        ("member", observe(config(true, 2), runs(9), none, Membership::Member)),
        ("no member", observe(config(true, 2), runs(9), none, Membership::NotListed)),
        ("no answer", observe(config(true, 2), runs(9), none, unanswered())),
        ("new daemon does not answer", observe(config(true, 2), other, none, unanswered())),
        ("no answer for long", silent(observe(config(true, 2), runs(9), none, unanswered()))),
        (
            "daemon stopped",
            observe(config(true, 2), Daemon::Stopped, JoinOperation::Unknown, Membership::NotAsked),
        ),
        (
            "files vanished",
            observe(Config::Absent, Daemon::Stopped, JoinOperation::Unknown, Membership::NotAsked),
        ),
        (
            "unreadable",
            observe(
                Config::Unreadable { why: String::new() },
                Daemon::Unknown,
                JoinOperation::Unknown,
                Membership::NotAsked,
            ),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_shows_the_machine_as_it_is() {
        let text = include_str!("../../../../docs/JOIN.md");
        let (_, rest) = text
            .split_once(
                "<!-- state-machine \
                 -->\n",
            )
            .expect("docs/JOIN.md has a place for it");
        let (shown, _) = rest.split_once("<!-- /state-machine -->").expect("the place ends");
        let drawn = format!("```mermaid\n{}```\n", draw(Format::Mermaid));
        assert_eq!(
            shown, drawn,
            "docs/JOIN.md is stale: put there what `guardctl state-machine` prints"
        );
    }

    #[test]
    fn nothing_leads_from_a_failed_join_to_policys_mode_but_proof() {
        for ((from, to), causes) in edges() {
            if sealed().any(|name| name == from)
                && !sealed().any(|name| name == to)
                && to != "unknown"
            {
                // (Pools that a node still has mounted when it leaves in order stay sealed.)
                let proofs = BTreeSet::from(["member", "no cluster", "left the cluster"]);
                assert!(causes.is_subset(&proofs), "{from} -> {to}: {causes:?}");
            }
        }
        assert!(draw(Format::Dot).contains("\"joining\" -> \"join-failed\""));
    }
}
