//! Requests and responses: one JSON object a line. Pure.
//!
//! ```text
//! → {"protocol":1,"request":"release","pool":"default","ttl_seconds":600,"reason":"decommission"}
//! ← {"ok":{"released":{…}}}        or  {"refused":{"code":"not-root","message":"…","fix":"…"}}
//! ```
//!
//! `events` is answered by `{"ok":{"events":{"lines":N,"follow":F}}}`, then N lines of the audit
//! log; if followed, then further lines as they are written, and `{"lagged":n}` where n lines were
//! missed.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::refusal::{Refusal, RefusalReport};
use super::report::{
    LeaseReport, NodeHistory, PolicyText, PoolReport, RollbackReport, StatusReport,
};
use crate::model::audit::Filter;

/// Version of the protocol; every request carries it.
pub const PROTOCOL: u32 = 1;
/// Bytes of a request's line at most.
pub const LINE_LIMIT: usize = 64 * 1024;
/// Lines of history at most in one answer.
pub const HISTORY_LIMIT: usize = 10_000;

/// A request to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    Status,
    Pools,
    Leases,
    PolicyShow,
    Events {
        #[serde(default)]
        follow: bool,
        #[serde(default)]
        history: usize,
        #[serde(default)]
        filter: Filter,
    },
    /// Pools are named by name, mountpoint, id or device.
    Seal {
        pool: String,
    },
    /// Takes a seal back: the pool returns to the mode that policy gives it.
    Unseal {
        pool: String,
    },
    Release {
        pool: String,
        /// The policy's default if it is left out.
        #[serde(default)]
        ttl_seconds: Option<u64>,
        reason: String,
    },
    /// A lease for the requester's own cgroup, in which it must be alone. It ends with the
    /// requester, which is or becomes the command.
    ExecLease {
        pool: String,
        /// The policy's default if it is left out.
        #[serde(default)]
        ttl_seconds: Option<u64>,
        reason: String,
    },
    LeaseRevoke {
        id: String,
    },
    PolicyReload,
    /// Unmounts the remains of a failed join on a node. Nodes are named by their root; without one
    /// it is the only one.
    Rollback {
        #[serde(default)]
        root: Option<String>,
        /// Detaches busy mounts.
        #[serde(default)]
        lazy: bool,
        /// Unmounts also from under guests.
        #[serde(default)]
        force: bool,
    },
    /// Progress or outcome of a node's last rollback.
    RollbackStatus {
        #[serde(default)]
        root: Option<String>,
    },
    /// A join is about to be started: the node's pools are sealed from now on, until it is known
    /// how it ended.
    JoinPrepare {
        #[serde(default)]
        root: Option<String>,
    },
    /// The prepared join is over, however it ended: evidence alone decides from here on.
    JoinCommandEnded {
        #[serde(default)]
        root: Option<String>,
    },
    /// An operator's word that the pools that a node has mounted are its own.
    NodeAdopt {
        #[serde(default)]
        root: Option<String>,
        reason: String,
    },
    /// An operator's word that a node's state, and the record of its own pools, are void.
    NodeForget {
        #[serde(default)]
        root: Option<String>,
        reason: String,
    },
    /// History of nodes. Without a root: all of them.
    History {
        #[serde(default)]
        root: Option<String>,
    },
}

impl Request {
    /// Whether it changes something: those need uid 0.
    pub fn is_change(&self) -> bool {
        match self {
            Self::Status
            | Self::Pools
            | Self::Leases
            | Self::PolicyShow
            | Self::Events { .. }
            | Self::History { .. }
            | Self::RollbackStatus { .. } => false,
            Self::Seal { .. }
            | Self::Unseal { .. }
            | Self::Release { .. }
            | Self::ExecLease { .. }
            | Self::LeaseRevoke { .. }
            | Self::PolicyReload
            | Self::Rollback { .. }
            | Self::JoinPrepare { .. }
            | Self::JoinCommandEnded { .. }
            | Self::NodeAdopt { .. }
            | Self::NodeForget { .. } => true,
        }
    }

    /// Its name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Pools => "pools",
            Self::Leases => "leases",
            Self::PolicyShow => "policy-show",
            Self::Events { .. } => "events",
            Self::Seal { .. } => "seal",
            Self::Unseal { .. } => "unseal",
            Self::Release { .. } => "release",
            Self::ExecLease { .. } => "exec-lease",
            Self::LeaseRevoke { .. } => "lease-revoke",
            Self::PolicyReload => "policy-reload",
            Self::History { .. } => "history",
            Self::Rollback { .. } => "rollback",
            Self::RollbackStatus { .. } => "rollback-status",
            Self::JoinPrepare { .. } => "join-prepare",
            Self::JoinCommandEnded { .. } => "join-command-ended",
            Self::NodeAdopt { .. } => "node-adopt",
            Self::NodeForget { .. } => "node-forget",
        }
    }

    /// Parses a line. A problem with it becomes a refusal that can be sent back.
    pub fn parse(line: &[u8]) -> Result<Self, Refusal> {
        let malformed = |error: serde_json::Error| Refusal::Malformed { detail: error.to_string() };
        let mut value: Value = serde_json::from_slice(line).map_err(malformed)?;
        let object = value.as_object_mut().ok_or_else(|| Refusal::Malformed {
            detail: "a request is a JSON object".to_owned(),
        })?;
        let version = object.remove("protocol");
        if version.as_ref().and_then(Value::as_u64) != Some(u64::from(PROTOCOL)) {
            return Err(Refusal::Protocol {
                spoken: PROTOCOL,
                found: version.map_or("none".to_owned(), |v| v.to_string()),
            });
        }
        let keys: Vec<String> = object.keys().cloned().collect();
        let request: Self = serde_json::from_value(value).map_err(malformed)?;
        // Serde refuses unknown fields, but not those of a request that has no content.
        let known = serde_json::to_value(&request).map_err(malformed)?;
        match keys.into_iter().find(|key| known.get(key).is_none()) {
            Some(key) => Err(Refusal::Malformed { detail: format!("unknown field `{key}`") }),
            None => Ok(request),
        }
    }

    /// The line, with its line feed.
    pub fn to_line(&self) -> String {
        #[derive(Serialize)]
        struct Envelope<'a> {
            protocol: u32,
            #[serde(flatten)]
            request: &'a Request,
        }
        to_line(&Envelope { protocol: PROTOCOL, request: self })
    }
}

/// The agent's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    Ok(Reply),
    Refused(RefusalReport),
}

impl Response {
    /// The line, with its line feed.
    pub fn to_line(&self) -> String {
        to_line(self)
    }
}

impl From<Result<Reply, Refusal>> for Response {
    fn from(result: Result<Reply, Refusal>) -> Self {
        match result {
            Ok(reply) => Self::Ok(reply),
            Err(refusal) => Self::Refused(refusal.report()),
        }
    }
}

/// The answer to a request that was granted, named for its content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    Status(Box<StatusReport>),
    Pools(Vec<PoolReport>),
    Leases(Vec<LeaseReport>),
    PolicyText(PolicyText),
    /// So many lines of history follow; then, if followed, further ones until either side closes.
    Events {
        lines: usize,
        follow: bool,
    },
    Sealed(Box<PoolReport>),
    Unsealed(Box<PoolReport>),
    Released(Box<LeaseReport>),
    /// The cgroup, as in `/proc/PID/cgroup`.
    ExecLeased {
        lease: Box<LeaseReport>,
        cgroup: String,
    },
    LeaseRevoked(Box<LeaseReport>),
    History(Vec<NodeHistory>),
    /// Generation and hash of the policy that is in force now.
    PolicyReloaded {
        generation: u64,
        hash: String,
    },
    /// To `rollback` and `rollback-status`.
    Rollback(Box<RollbackReport>),
    /// A node's root and state: to `join-prepare` and `join-command-ended`.
    NodeState {
        root: String,
        state: String,
    },
}

/// Between the lines of followed events: so many were missed by a reader that was too slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lagged {
    pub lagged: u64,
}

impl Lagged {
    /// The line, with its line feed.
    pub fn to_line(self) -> String {
        to_line(&self)
    }
}

fn to_line(value: &impl Serialize) -> String {
    let mut line =
        serde_json::to_string(value).expect("the protocol has string keys and finite numbers");
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::audit::Kind;

    fn all_requests() -> Vec<Request> {
        let filter = Filter { pool: Some("a".to_owned()), kind: Some(Kind::Lease), since: None };
        vec![
            Request::Status,
            Request::Pools,
            Request::Leases,
            Request::PolicyShow,
            Request::Events { follow: true, history: 10, filter },
            Request::Seal { pool: "a".to_owned() },
            Request::Unseal { pool: "a".to_owned() },
            Request::Release {
                pool: "a".to_owned(),
                ttl_seconds: Some(600),
                reason: "r".to_owned(),
            },
            Request::ExecLease { pool: "a".to_owned(), ttl_seconds: None, reason: "r".to_owned() },
            Request::LeaseRevoke { id: "r-1".to_owned() },
            Request::PolicyReload,
            Request::History { root: Some("/a".to_owned()) },
            Request::Rollback { root: Some("/a".to_owned()), lazy: true, force: true },
            Request::RollbackStatus { root: None },
            Request::JoinPrepare { root: None },
            Request::JoinCommandEnded { root: None },
        ]
    }

    #[test]
    fn every_request_comes_back_under_its_name() {
        for request in all_requests() {
            let line = request.to_line();
            let start = format!(r#"{{"protocol":1,"request":"{}""#, request.name());
            assert!(line.starts_with(&start) && line.ends_with("}\n"), "{line}");
            assert_eq!(Request::parse(line.as_bytes()), Ok(request));
        }
    }

    #[test]
    fn what_is_wrong_with_a_request_is_said() {
        for (line, expected) in [
            (r#"{"request":"status"}"#, "protocol"),
            (r#"{"protocol":2,"request":"status"}"#, "protocol"),
            (r#"{"protocol":"1","request":"status"}"#, "protocol"),
            (r#"{"protocol":1}"#, "missing field `request`"),
            (r#"{"protocol":1,"request":"open"}"#, "unknown variant `open`"),
            (r#"{"protocol":1,"request":"seal"}"#, "missing field `pool`"),
            (r#"{"protocol":1,"request":"seal","pool":"a","force":true}"#, "unknown field `force`"),
            (
                r#"{"protocol":1,"request":"policy-reload","dry_run":true}"#,
                "unknown field `dry_run`",
            ),
            ("[1]", "JSON object"),
            ("", "EOF"),
            ("\u{1}", "expected value"),
        ] {
            let message = Request::parse(line.as_bytes()).unwrap_err().to_string();
            assert!(message.contains(expected), "{line}: {message}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_a_request_or_a_refusal(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::parse(&line);
        }
    }
}
