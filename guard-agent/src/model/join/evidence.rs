//! Evidence about a node from outside, part by part. Each part says by itself whether it could be
//! read: absence of evidence is a value of its own and never mistaken for evidence of absence.

use serde::{Deserialize, Serialize};

/// One look at a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    pub config: Config,
    pub daemon: Daemon,
    pub operation: JoinOperation,
    pub membership: Membership,
    /// Time without an answer whether this server is a member; 0 if this look has one.
    #[serde(default)]
    pub unanswered_seconds: u64,
    /// The number of the event stream of this life of the daemon, while it is connected: no join
    /// can have begun unheard since an earlier look at the same one.
    #[serde(default)]
    pub stream: Option<u64>,
}

/// Content of `database/local.db`.
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
        /// This server's name in its cluster, from the row with its own address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
}

impl Config {
    /// A database that was read, without the server's name.
    #[cfg(test)]
    pub fn cluster(address: Option<&str>, raft_nodes: u32) -> Self {
        Self::Read { cluster_address: address.map(str::to_owned), raft_nodes, name: None }
    }

    /// This server's name in its cluster, as far as the database knows it.
    pub fn own_name(&self) -> Option<String> {
        match self {
            Self::Read { name, .. } => name.clone(),
            Self::Unreadable { .. } | Self::Absent => None,
        }
    }
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
        /// Time since it started.
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

/// Whether an operation "Joining cluster" runs on this server (`GET /1.0/operations`, asked for its
/// own only).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JoinOperation {
    /// Not asked, or not answered.
    Unknown,
    None,
    Running,
    /// One has failed a moment ago: Incus lists it for some seconds.
    Failed,
}

/// Answer of `GET /1.0/cluster/members` about this server. `/1.0` and `/1.0/cluster` are not asked:
/// they lie from the second step of a join on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Membership {
    /// The daemon does not run.
    NotAsked,
    /// 503: the daemon is starting, or waits until all members of its cluster are upgraded.
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
            unanswered_seconds: 0,
            stream: None,
        }
    }
}
