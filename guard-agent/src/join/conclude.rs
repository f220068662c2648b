//! What a look at a node means, given where it stood. Pure, and without memory of its own.

use super::machine::Machine;
use super::{Config, Daemon, Evidence, Incarnation, JoinOperation, JoinSeen, Kept, Membership, State};

/// How long a daemon may take to answer for its membership after it started. Raft contacts a leader for up to a
/// minute; until then a member that was confirmed before keeps the mode that its guests rely on.
pub const GRACE_SECONDS: u64 = 90;

/// The state that a look leads to, and why.
pub(super) fn conclude(machine: &Machine, evidence: &Evidence) -> (State, String) {
    let now = machine.state();
    if evidence.operation == JoinOperation::Running {
        return (running(), "the operation \"Joining cluster\" runs".to_owned());
    }
    match (now, &evidence.config) {
        (State::RollingBack, _) => (now.clone(), "a rollback runs".to_owned()),
        (State::Joining { seen: JoinSeen::Prepared }, _) => (now.clone(), "a join is prepared".to_owned()),
        (_, Config::Unreadable { why }) => (kept(now), format!("local.db cannot be read: {why}")),
        (_, Config::Absent) => absent(machine),
        (_, Config::Read { raft_nodes: 0, cluster_address: Some(address) }) => {
            begun(machine, address, evidence)
        }
        (_, Config::Read { raft_nodes: 0, cluster_address: None }) => unclustered(machine),
        (_, Config::Read { raft_nodes, .. }) => clustered(machine, *raft_nodes, evidence),
    }
}

fn running() -> State {
    State::Joining { seen: JoinSeen::Running }
}

fn unknown() -> State {
    State::Unknown { kept: Kept::Nothing }
}

/// The state when evidence is lost: what was proven is kept, as what it is.
fn kept(now: &State) -> State {
    match now {
        State::Standalone => State::Unknown { kept: Kept::Standalone },
        State::Joined { confirmed_by } => {
            State::Unknown { kept: Kept::Joined { confirmed_by: confirmed_by.clone() } }
        }
        other => other.clone(),
    }
}

/// No `local.db`.
fn absent(machine: &Machine) -> (State, String) {
    let now = machine.state();
    if !machine.has_pools() {
        let state = if *now == State::Released { State::Released } else { unknown() };
        return (state, "there is no local.db, and no pool".to_owned());
    }
    // Files that vanish while a pool is mounted are the sign of a deletion that is already running. Whatever the node
    // was, its pools are its remains.
    let state = if now.is_between() { now.clone() } else { State::JoinPartial };
    (state, "there is no local.db while a pool is mounted: a deletion may be running".to_owned())
}

/// A cluster address, and no raft nodes: a join that was begun and is not running.
fn begun(machine: &Machine, address: &str, evidence: &Evidence) -> (State, String) {
    let now = machine.state();
    let set = format!("cluster.https_address is {address}, and there are no raft nodes");
    let may_run = evidence.operation == JoinOperation::Unknown && evidence.daemon != Daemon::Stopped;
    match now {
        State::Joining { .. } if may_run => {
            (now.clone(), format!("{set}; whether the join runs is not known"))
        }
        State::Released if !machine.has_pools() => (State::Released, format!("{set}, and no pool")),
        _ => (State::JoinFailed, format!("{set}; no join runs")),
    }
}

/// Neither address nor raft nodes.
fn unclustered(machine: &Machine) -> (State, String) {
    const CLEAN: &str = "no cluster address is configured, and there are no raft nodes";
    if !machine.has_remains() {
        return (State::Standalone, CLEAN.to_owned());
    }
    let state = match machine.state() {
        // A join that is over and left nothing but mounts.
        State::Joining { .. } | State::JoinFailed => State::JoinFailed,
        State::RollingBack => State::RollingBack,
        _ => State::JoinPartial,
    };
    (state, format!("{CLEAN}, but pools that came with a cluster are still there"))
}

/// Raft nodes: in cluster mode at the daemon's next start at the latest.
fn clustered(machine: &Machine, raft_nodes: u32, evidence: &Evidence) -> (State, String) {
    let rows = format!("there are {raft_nodes} raft nodes");
    let partial = |why: &str| (State::JoinPartial, format!("{rows}, {why}"));
    match (&evidence.membership, &evidence.daemon) {
        (Membership::Member, Daemon::Running { incarnation, .. }) => (
            State::Joined { confirmed_by: incarnation.clone() },
            format!("{rows}, and this server is in the list of members"),
        ),
        (Membership::NotListed, _) => partial("and this server is not in the list of members"),
        (Membership::NotClustered, _) => partial("and the daemon says that it is not clustered"),
        (_, daemon) => unanswered(machine, &rows, daemon, &evidence.membership),
    }
}

/// Raft nodes, and nobody who says whether this server is a member.
fn unanswered(machine: &Machine, rows: &str, daemon: &Daemon, membership: &Membership) -> (State, String) {
    let now = machine.state();
    let why = match (membership, daemon) {
        (_, Daemon::Stopped) => "the daemon does not run".to_owned(),
        (Membership::Starting, _) => "the daemon is starting".to_owned(),
        (Membership::NoAnswer { why }, _) => format!("the database does not answer: {why}"),
        _ => "the daemon could not be asked".to_owned(),
    };
    let because = format!("{rows}; {why}");
    if let State::Joined { confirmed_by } | State::Unknown { kept: Kept::Joined { confirmed_by } } = now {
        if may_still_answer(confirmed_by, daemon) {
            let kept = Kept::Joined { confirmed_by: confirmed_by.clone() };
            return (State::Unknown { kept }, because);
        }
        return (State::JoinPartial, format!("{because}, {GRACE_SECONDS} s after the daemon started anew"));
    }
    match now {
        State::Joining { .. } if *daemon != Daemon::Stopped => (now.clone(), because),
        // A rollback leaves the database as it was: as long as no daemon goes by it, nothing has changed.
        State::Released if !machine.has_pools() && !matches!(daemon, Daemon::Running { .. }) => {
            (State::Released, format!("{because}, and no pool"))
        }
        _ => (State::JoinPartial, because),
    }
}

/// Whether a member that was confirmed is believed although it does not answer: the same life of the daemon has
/// lost its leader, or another has not had the time to find one.
fn may_still_answer(confirmed_by: &Incarnation, daemon: &Daemon) -> bool {
    match daemon {
        Daemon::Stopped | Daemon::Unknown => true,
        Daemon::Running { incarnation, age_seconds } => {
            incarnation == confirmed_by || *age_seconds < GRACE_SECONDS
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn evidence(cluster_address: Option<&str>, raft_nodes: u32, daemon: Daemon) -> Evidence {
        let config = Config::Read { cluster_address: cluster_address.map(str::to_owned), raft_nodes };
        Evidence { config, daemon, operation: JoinOperation::None, membership: Membership::NotAsked }
    }

    #[test]
    fn what_was_rolled_back_stays_so_until_a_pool_or_a_daemon_comes() {
        let rolled_back = Machine::at(State::Released, BTreeSet::new());
        let address = Some("10.0.0.2:8443");
        for raft_nodes in [0, 2] {
            let (state, because) = conclude(&rolled_back, &evidence(address, raft_nodes, Daemon::Stopped));
            assert_eq!(state, State::Released, "{because}");
        }
        let mounted_again = Machine::at(State::Released, BTreeSet::from([1]));
        let (state, _) = conclude(&mounted_again, &evidence(address, 2, Daemon::Stopped));
        assert_eq!(state, State::JoinPartial);
        let incarnation = Incarnation { boot_id: "b".to_owned(), pid: 7, start_ticks: 1 };
        let running = Daemon::Running { incarnation, age_seconds: 1 };
        assert_eq!(conclude(&rolled_back, &evidence(address, 2, running)).0, State::JoinPartial);
    }
}
