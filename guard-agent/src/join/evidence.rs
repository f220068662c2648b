//! What can be known of a node from outside, part by part. Each part says by itself whether it could be had:
//! absence of evidence is a value of its own and never mistaken for evidence of absence.

use serde::{Deserialize, Serialize};

/// One look at a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    pub config: Config,
    pub daemon: Daemon,
    pub operation: JoinOperation,
    pub membership: Membership,
}

/// What `database/local.db` says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Config {
    /// It is there and could not be understood: locked, damaged, a schema of the future.
    Unreadable { why: String },
    /// There is no such file.
    Absent,
    Read {
        /// `cluster.https_address`.
        cluster_address: Option<String>,
        /// Rows of `raft_nodes`.
        raft_nodes: u32,
    },
}

/// The daemon's process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Daemon {
    /// Could not be told.
    Unknown,
    Stopped,
    Running {
        #[serde(flatten)]
        incarnation: Incarnation,
        /// How long it has been running.
        age_seconds: u64,
    },
}

/// One life of the daemon: a pid is used again, a pid with its start time in one boot is not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Incarnation {
    pub boot_id: String,
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`.
    pub start_ticks: u64,
}

/// Whether an operation "Joining cluster" runs (`GET /1.0/operations`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JoinOperation {
    /// Not asked, or not answered.
    Unknown,
    None,
    Running,
}

/// What `GET /1.0/cluster/members` says of this server. `/1.0` and `/1.0/cluster` are not asked: they lie
/// from the second step of a join on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Membership {
    /// The daemon does not run.
    NotAsked,
    /// 503: the daemon is starting.
    Starting,
    /// Time-out, broken connection, an error that says nothing.
    NoAnswer {
        why: String,
    },
    /// "Server is not clustered".
    NotClustered,
    /// A list of members in which this server (its `cluster.https_address`) is not.
    NotListed,
    Member,
}

impl Evidence {
    /// Nothing is known.
    pub fn none() -> Self {
        Self {
            config: Config::Unreadable { why: "not looked at yet".to_owned() },
            daemon: Daemon::Unknown,
            operation: JoinOperation::Unknown,
            membership: Membership::NotAsked,
        }
    }
}
