//! Why a request was not granted: a refusal is an answer, not an error. Pure.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a request was refused. [`code`](Self::code) is stable, `Display` is the message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error("changes need uid 0, the request came from uid {uid}")]
    NotRoot { uid: u32 },
    #[error("uid {uid} is neither root nor a member of the group `{group}`")]
    NotReader { uid: u32, group: String },
    #[error("there is no pool `{pool}`; {}", listed("pools", pools))]
    UnknownPool { pool: String, pools: Vec<String> },
    #[error("`{pool}` names more than one pool; {}", listed("candidates", candidates))]
    AmbiguousPool { pool: String, candidates: Vec<String> },
    #[error("a lease of {asked_seconds} s is longer than the policy's limit of {max_seconds} s")]
    TtlTooLong { asked_seconds: u64, max_seconds: u64 },
    #[error("a lease needs a duration of at least one second")]
    TtlZero,
    #[error("a lease needs a reason")]
    ReasonMissing,
    #[error("{limit} commands have a lease, which is as many as there may be")]
    TooManyLeases { limit: u32 },
    #[error(
        "the cgroup {cgroup} is not the requester's alone ({others} other processes): the lease \
         would be theirs too"
    )]
    SharedCgroup { cgroup: String, others: usize },
    #[error("there is no lease `{id}`; {}", listed("leases", leases))]
    NoSuchLease { id: String, leases: Vec<String> },
    #[error("the policy was rejected, the old one stays in force: {}", errors.join("; "))]
    PolicyRejected { errors: Vec<String> },
    #[error("{}{}", no_node(root.as_deref()), listed("nodes", nodes))]
    NoSuchNode { root: Option<String>, nodes: Vec<String> },
    #[error("nothing is enforced on this host: {detail}")]
    NotEnforcing { detail: String },
    #[error("{refusal}")]
    NodeState { root: String, refusal: crate::model::join::NodeRefusal },
    #[error("which node? {}", listed("nodes", nodes))]
    AmbiguousNode { nodes: Vec<String> },
    #[error(
        "Incus runs (process {pid}): it would mount its pools again, or go on to work on what is \
         not mounted"
    )]
    DaemonRuns { root: String, pid: u32 },
    #[error("{operation} failed: {detail}")]
    Failed { operation: &'static str, detail: String },
    #[error("the audit log cannot be read: {detail}")]
    AuditUnreadable { detail: String },
    #[error("not a request: {detail}")]
    Malformed { detail: String },
    #[error("this agent speaks protocol {spoken}, the request says {found}")]
    Protocol { spoken: u32, found: String },
    #[error("a request has at most {limit} bytes")]
    LineTooLong { limit: usize },
    #[error("too many connections ({limit})")]
    TooManyConnections { limit: usize },
    #[error("the agent does not answer now: {detail}")]
    Unavailable { detail: String },
}

impl Refusal {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotRoot { .. } => "not-root",
            Self::NotReader { .. } => "not-reader",
            Self::UnknownPool { .. } => "unknown-pool",
            Self::AmbiguousPool { .. } => "ambiguous-pool",
            Self::TtlTooLong { .. } => "ttl-too-long",
            Self::TtlZero => "ttl-zero",
            Self::ReasonMissing => "reason-missing",
            Self::TooManyLeases { .. } => "too-many-leases",
            Self::SharedCgroup { .. } => "shared-cgroup",
            Self::NoSuchLease { .. } => "no-such-lease",
            Self::PolicyRejected { .. } => "policy-rejected",
            Self::NoSuchNode { .. } => "no-such-node",
            Self::NotEnforcing { .. } => "not-enforcing",
            Self::AmbiguousNode { .. } => "ambiguous-node",
            Self::NodeState { .. } => "node-state",
            Self::DaemonRuns { .. } => "daemon-runs",
            Self::Failed { .. } => "failed",
            Self::AuditUnreadable { .. } => "audit-unreadable",
            Self::Malformed { .. } => "malformed",
            Self::Protocol { .. } => "protocol",
            Self::LineTooLong { .. } => "line-too-long",
            Self::TooManyConnections { .. } => "too-many-connections",
            Self::Unavailable { .. } => "unavailable",
        }
    }

    /// The advice to the operator.
    pub fn fix(&self) -> String {
        match self {
            Self::NotRoot { .. } => "run it as root (sudo guardctl …)".to_owned(),
            Self::NotReader { group, .. } => {
                format!("run it as root, or: usermod -aG {group} <user>")
            }
            Self::UnknownPool { .. } => {
                "name the pool by name, mountpoint or id: guardctl pools".to_owned()
            }
            Self::AmbiguousPool { .. } => {
                "name it by id, mountpoint or device: guardctl pools".to_owned()
            }
            Self::TtlTooLong { max_seconds, .. } => {
                format!("ask for --ttl {max_seconds}s at most, or raise the limit in the policy")
            }
            Self::TtlZero => "give --ttl, e.g. --ttl 10m".to_owned(),
            Self::ReasonMissing => "give --reason: it is written to the audit log".to_owned(),
            Self::TooManyLeases { .. } => {
                "wait until one has ended, or end one: guardctl lease list, guardctl lease revoke"
                    .to_owned()
            }
            Self::SharedCgroup { .. } => {
                "run the command with `guardctl exec`, which makes a cgroup for it".to_owned()
            }
            Self::NoSuchLease { .. } => "see guardctl lease list".to_owned(),
            Self::PolicyRejected { .. } => "correct the file: guardctl policy check".to_owned(),
            Self::NoSuchNode { .. } => {
                "name it by its guarded root: --root DIR; the policy makes a root a node: join = \
                 \"incus\""
                    .to_owned()
            }
            Self::NotEnforcing { .. } => "see guardctl doctor".to_owned(),
            Self::AmbiguousNode { .. } => "name one: --root DIR".to_owned(),
            Self::NodeState { root, refusal } => node_fix(root, refusal),
            Self::DaemonRuns { root, .. } => {
                format!("stop it first: guardctl rollback --stop-incus --root {root}")
            }
            Self::Failed { .. } | Self::AuditUnreadable { .. } => {
                "see the agent's log: journalctl -u guard-agent".to_owned()
            }
            Self::Malformed { .. } | Self::LineTooLong { .. } => {
                r#"send one line like {"protocol":1,"request":"status"}"#.to_owned()
            }
            Self::Protocol { .. } => "use the guardctl that came with the running agent".to_owned(),
            Self::TooManyConnections { .. } => {
                "end other guardctl events --follow, then try again".to_owned()
            }
            Self::Unavailable { .. } => "try again; systemctl status guard-agent".to_owned(),
        }
    }

    /// As it is sent.
    pub fn report(&self) -> RefusalReport {
        RefusalReport { code: self.code().to_owned(), message: self.to_string(), fix: self.fix() }
    }
}

fn node_fix(root: &str, refusal: &crate::model::join::NodeRefusal) -> String {
    use crate::model::join::NodeRefusal as Node;
    match refusal {
        Node::NotFailed { state: "joining" } => {
            "wait until the join has ended: guardctl status".to_owned()
        }
        Node::NotFailed { state: "joined" } => {
            "a member leaves by `incus cluster remove`, on another member; its pools go with that"
                .to_owned()
        }
        Node::NotFailed { .. } => {
            "no join has failed here: its pools are its own (incus admin shutdown unmounts them)"
                .to_owned()
        }
        Node::NotFitToJoin { state: "rolling-back" } | Node::RollingBack => {
            format!("wait for its end: guardctl status; guardctl rollback --root {root} follows it")
        }
        Node::NotFitToJoin { .. } => "it is a member already: incus cluster list".to_owned(),
        Node::HasRemains { .. } => {
            format!(
                "unmount them: guardctl rollback --root {root}; or say that they are its own: \
                 guardctl node adopt"
            )
        }
        Node::NotItsOwn { .. } => {
            "an operator's word is for a node that is in no cluster, once no join or rollback \
             runs: guardctl status"
                .to_owned()
        }
    }
}

fn no_node(root: Option<&str>) -> String {
    root.map_or_else(
        || "the policy follows no node; ".to_owned(),
        |root| format!("there is no node `{root}`; "),
    )
}

fn listed(what: &str, names: &[String]) -> String {
    if names.is_empty() { format!("{what}: none") } else { format!("{what}: {}", names.join(", ")) }
}

/// A refusal as it is sent and received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalReport {
    pub code: String,
    pub message: String,
    pub fix: String,
}
