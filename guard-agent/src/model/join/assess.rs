//! Meaning of a look at a node, given its state before. Pure, and without memory of its own.

use super::machine::{Assessment, Machine};
use super::{
    Config, Daemon, Evidence, Incarnation, JoinOperation, JoinSeen, Kept, Membership, NodeState,
};

/// Longest silence of a member before its daemon may delete no more. An election, a lock and a slow
/// answer take less; a member that was removed while nobody listened answers never.
pub const HOLD_SECONDS: u64 = 60;

impl Machine {
    /// The state that a look leads to, and why.
    pub(super) fn assess(&self, evidence: &Evidence) -> Assessment {
        let now = self.state();
        if runs_here(now, evidence) {
            let running = NodeState::Joining { seen: JoinSeen::Running };
            return Assessment::new(running, "the operation \"Joining cluster\" runs");
        }
        match (now, &evidence.config) {
            (NodeState::RollingBack, _) => Assessment::new(now.clone(), "a rollback runs"),
            (NodeState::Joining { seen: JoinSeen::Prepared }, _) => {
                Assessment::new(now.clone(), "a join is prepared")
            }
            (_, Config::Unreadable { why }) => unreadable(now, why, evidence),
            (_, Config::Absent) => absent(self),
            (_, Config::Read { raft_nodes: 0, cluster_address: Some(address), .. }) => {
                begun(self, address, evidence)
            }
            (_, Config::Read { raft_nodes: 0, cluster_address: None, .. }) => {
                unclustered(self, evidence)
            }
            (_, Config::Read { raft_nodes, .. }) => clustered(self, *raft_nodes, evidence),
        }
    }
}

/// Whether a join of this server runs.
///
/// Incus lists a server among the members from the end of the transaction on that brings all it has
/// into the cluster's database; the operation's later steps cannot undo the membership. And a
/// member cannot join: the API refuses it, so an operation on a server that this life of the daemon
/// has proven a member is not its own.
fn runs_here(now: &NodeState, evidence: &Evidence) -> bool {
    let in_cluster = match evidence.config {
        Config::Read { raft_nodes, .. } => raft_nodes > 0,
        Config::Unreadable { .. } => true,
        Config::Absent => false,
    };
    let proven = match (now, &evidence.daemon) {
        (NodeState::Joined { confirmed_by }, Daemon::Running { incarnation, .. }) => {
            confirmed_by == incarnation
        }
        _ => false,
    };
    let is_member = evidence.membership == Membership::Member || proven;
    evidence.operation == JoinOperation::Running && !(in_cluster && is_member)
}

/// The state of a member that nobody speaks for. Without news for long, its daemon deletes nothing
/// any more.
fn unconfirmed(confirmed_by: Option<Incarnation>, held: bool, evidence: &Evidence) -> NodeState {
    NodeState::Unconfirmed {
        confirmed_by,
        held: held || evidence.unanswered_seconds >= HOLD_SECONDS,
    }
}

/// `local.db` cannot be read now: proven facts are kept unchanged. It is locked for moments
/// whenever Incus writes.
fn unreadable(now: &NodeState, why: &str, evidence: &Evidence) -> Assessment {
    let patient = evidence.unanswered_seconds < HOLD_SECONDS;
    let state = match now {
        NodeState::Standalone if !patient => NodeState::Unknown { kept: Kept::Standalone },
        NodeState::Joined { confirmed_by } if !patient && !is_confirmed(confirmed_by, evidence) => {
            unconfirmed(Some(confirmed_by.clone()), false, evidence)
        }
        NodeState::Unconfirmed { confirmed_by, held } => {
            unconfirmed(confirmed_by.clone(), *held, evidence)
        }
        other => other.clone(),
    };
    Assessment::new(state, format!("local.db cannot be read: {why}"))
}

/// The daemon that has confirmed the membership before confirms it again.
fn is_confirmed(confirmed_by: &Incarnation, evidence: &Evidence) -> bool {
    let same = matches!(&evidence.daemon, Daemon::Running { incarnation, .. } if incarnation == confirmed_by);
    same && evidence.membership == Membership::Member
}

/// No `local.db`.
fn absent(machine: &Machine) -> Assessment {
    const NONE: &str = "there is no local.db";
    let now = machine.state();
    let (state, because) = match (machine.alive(), now) {
        // Not told yet of the pools.
        (None, _) => (now.clone(), NONE.to_owned()),
        (Some(alive), NodeState::Released) if alive.is_empty() => {
            (now.clone(), format!("{NONE}, and no pool"))
        }
        (Some(alive), _) if alive.is_empty() => {
            (NodeState::Unknown { kept: Kept::Nothing }, format!("{NONE}, and no pool"))
        }
        (Some(_), NodeState::Unknown { kept: Kept::Nothing }) => (now.clone(), NONE.to_owned()),
        (Some(_), state) if state.is_between() => (now.clone(), NONE.to_owned()),
        // Files that vanish while a pool is mounted are the sign of a deletion that is already
        // running. In every earlier state of the node, its pools are the join's remains.
        (Some(_), _) => (
            NodeState::JoinPartial,
            format!("{NONE} any more while a pool is mounted: a deletion may be running"),
        ),
    };
    Assessment::new(state, because)
}

/// A cluster address, and no raft nodes: a join was begun and does not run, a cluster is about to
/// be made, or the node has left one. The address alone is no sign of a failure: the remains of a
/// join are.
fn begun(machine: &Machine, address: &str, evidence: &Evidence) -> Assessment {
    let now = machine.state();
    let set = format!("cluster.https_address is {address}, and there are no raft nodes");
    let may_run =
        evidence.operation == JoinOperation::Unknown && evidence.daemon != Daemon::Stopped;
    let failed = || Assessment::new(NodeState::JoinFailed, format!("{set}; no join runs"));
    match now {
        NodeState::Joining { .. } if may_run => {
            Assessment::new(now.clone(), format!("{set}; whether the join runs is not known"))
        }
        _ if evidence.operation == JoinOperation::Failed => {
            Assessment::new(NodeState::JoinFailed, format!("{set}; a join has just failed"))
        }
        NodeState::Joining { .. } | NodeState::JoinFailed | NodeState::JoinPartial => failed(),
        NodeState::Joined { .. } | NodeState::Unconfirmed { confirmed_by: Some(_), .. } => {
            Assessment::speaking(NodeState::Left, format!("{set} any more"))
        }
        NodeState::Released if !machine.has_pools() => {
            Assessment::new(NodeState::Released, format!("{set}, and no pool"))
        }
        // One question without an answer is no evidence: the pool alone stays sealed until the next
        // look.
        NodeState::Standalone | NodeState::Left
            if may_run
                && machine.has_strangers(None)
                && !machine.has_strangers(evidence.stream) =>
        {
            Assessment::new(now.clone(), format!("{set}; whether a join runs is not known"))
        }
        _ if machine.has_strangers(quiet_stream(evidence)) => Assessment::new(
            NodeState::JoinFailed,
            format!("{set}; a pool is mounted, and nobody has seen that it is the node's own"),
        ),
        NodeState::Left => Assessment::speaking(NodeState::Left, set),
        _ => Assessment::speaking(NodeState::Standalone, format!("{set}; no join has left a pool")),
    }
}

/// The event stream, if no join runs or has just failed.
fn quiet_stream(evidence: &Evidence) -> Option<u64> {
    evidence.stream.filter(|_| evidence.operation == JoinOperation::None)
}

/// Neither address nor raft nodes.
fn unclustered(machine: &Machine, evidence: &Evidence) -> Assessment {
    const CLEAN: &str = "no cluster address is configured, and there are no raft nodes";
    let remains = || format!("{CLEAN}, but pools that came with a cluster are still there");
    if evidence.operation == JoinOperation::Failed {
        return Assessment::new(NodeState::JoinFailed, format!("{CLEAN}; a join has just failed"));
    }
    if !machine.has_remains() {
        let doubtful =
            machine.memory().join_failed && machine.has_strangers(quiet_stream(evidence));
        return if doubtful {
            let because = format!(
                "{CLEAN}, but a join has failed here, and nobody has seen whose pool is mounted"
            );
            Assessment::new(NodeState::JoinFailed, because)
        } else {
            Assessment::speaking(NodeState::Standalone, CLEAN)
        };
    }
    match machine.state() {
        NodeState::Joined { .. } | NodeState::Unconfirmed { .. } | NodeState::Left => {
            Assessment::speaking(NodeState::Left, remains())
        }
        // A join that is over and left nothing but mounts.
        NodeState::Joining { .. } | NodeState::JoinFailed | NodeState::Released => {
            Assessment::new(NodeState::JoinFailed, remains())
        }
        _ => Assessment::new(NodeState::JoinPartial, remains()),
    }
}

/// Raft nodes: in cluster mode at the daemon's next start at the latest.
fn clustered(machine: &Machine, raft_nodes: u32, evidence: &Evidence) -> Assessment {
    let rows = format!("there are {raft_nodes} raft nodes");
    let partial = |why: &str| Assessment::new(NodeState::JoinPartial, format!("{rows}, {why}"));
    match (&evidence.membership, &evidence.daemon) {
        (Membership::Member, Daemon::Running { incarnation, .. }) => Assessment::speaking(
            NodeState::Joined { confirmed_by: incarnation.clone() },
            format!("{rows}, and this server is in the list of members"),
        ),
        (Membership::NotListed, _) => partial("and this server is not in the list of members"),
        // It is on its way out: its database has not been emptied yet.
        (Membership::NotClustered, _) if *machine.state() == NodeState::Left => Assessment::new(
            NodeState::Left,
            format!("{rows}, and the daemon says that it is not clustered any more"),
        ),
        (Membership::NotClustered, _) => partial("and the daemon says that it is not clustered"),
        _ => unanswered(machine, &rows, evidence),
    }
}

/// Raft nodes, and no answer whether this server is a member.
fn unanswered(machine: &Machine, rows: &str, evidence: &Evidence) -> Assessment {
    let daemon = &evidence.daemon;
    let why = match (&evidence.membership, daemon) {
        (_, Daemon::Stopped) => "the daemon does not run".to_owned(),
        (Membership::Starting, _) => {
            "the daemon is starting, or waits for the upgrade of other members".to_owned()
        }
        (Membership::NoAnswer { why }, _) => format!("the database does not answer: {why}"),
        _ => "the daemon could not be asked".to_owned(),
    };
    let patient = evidence.unanswered_seconds < HOLD_SECONDS;
    let now = machine.state();
    let state = match now {
        NodeState::Joined { confirmed_by } => {
            let same = match daemon {
                Daemon::Running { incarnation, .. } => incarnation == confirmed_by,
                Daemon::Unknown => true,
                Daemon::Stopped => false,
            };
            if same && patient {
                now.clone()
            } else {
                unconfirmed(Some(confirmed_by.clone()), false, evidence)
            }
        }
        NodeState::Unconfirmed { confirmed_by, held } => {
            unconfirmed(confirmed_by.clone(), *held, evidence)
        }
        // A cluster that is being made: the rows come before the first answer.
        NodeState::Standalone | NodeState::Unknown { kept: Kept::Standalone } => {
            unconfirmed(None, false, evidence)
        }
        // Nobody has ever seen it a member, and nothing speaks against it: its guests go on.
        NodeState::Unknown { kept: Kept::Nothing } => unconfirmed(None, true, evidence),
        // It is on its way out: its database has not been emptied yet.
        NodeState::Left if patient => NodeState::Left,
        NodeState::Left => unconfirmed(None, true, evidence),
        NodeState::Joining { .. }
            if *daemon != Daemon::Stopped && (may_run(evidence) || patient) =>
        {
            now.clone()
        }
        // A rollback leaves the database as it was: as long as no daemon goes by it, nothing has
        // changed.
        NodeState::Released
            if !machine.has_pools() && !matches!(daemon, Daemon::Running { .. }) =>
        {
            NodeState::Released
        }
        _ => NodeState::JoinPartial,
    };
    Assessment::new(state, format!("{rows}; {why}"))
}

fn may_run(evidence: &Evidence) -> bool {
    matches!(evidence.operation, JoinOperation::Unknown | JoinOperation::Running)
}

#[cfg(test)]
#[path = "assess_tests.rs"]
mod tests;
