//! The audit log's schema: one JSON object a line. Pure.
//!
//! A line is an envelope (schema, sequence, time, host) and one object that is named like its
//! `kind`. Fields are only ever added within a schema version. Field names are those of
//! `guard_common`.

use serde::{Deserialize, Serialize};

pub use super::changes::*;
pub use super::decisions::*;
pub use super::place::{Place, device_text, pool_id_text};
use crate::model::time::{Stamp, Time};

/// Name and version of the schema.
pub const SCHEMA: &str = "guard-agent.audit/1";

/// Origin of the lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub host: String,
    pub boot_id: String,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub schema: String,
    /// Grows by one a record; a gap is a record that could not be written.
    pub sequence: u64,
    pub time: Time,
    pub boot_ns: u64,
    pub boot_id: String,
    pub host: String,
    pub kind: Kind,
    #[serde(flatten)]
    pub body: Body,
}

impl Record {
    /// The record of an event at `stamp`.
    pub fn new(origin: &Origin, sequence: u64, stamp: Stamp, body: Body) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            sequence,
            time: stamp.time,
            boot_ns: stamp.boot_ns,
            boot_id: origin.boot_id.clone(),
            host: origin.host.clone(),
            kind: body.kind(),
            body,
        }
    }

    /// The line, with its line feed.
    pub fn to_line(&self) -> String {
        let mut line =
            serde_json::to_string(self).expect("a record has string keys and finite numbers");
        line.push('\n');
        line
    }
}

/// The kind of event that a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Decision,
    Incident,
    Pool,
    Mode,
    Lease,
    Policy,
    Posture,
    Agent,
    Node,
}

/// The kind-specific part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Body {
    /// The kernel program decided about one deletion.
    Decision(Box<DecisionBody>),
    /// Totals of one process's decisions on one pool.
    Incident(Box<IncidentBody>),
    /// A pool appeared or ended.
    Pool(PoolBody),
    /// A pool's mode changed.
    Mode(ModeBody),
    /// A lease was granted or is over.
    Lease(LeaseBody),
    /// A policy was loaded or rejected.
    Policy(PolicyBody),
    /// The posture changed.
    Posture(PostureBody),
    /// The agent itself.
    Agent(AgentBody),
    /// A node came into another state on its way into a cluster.
    Node(NodeBody),
}

impl Body {
    /// The kind of this body.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Decision(_) => Kind::Decision,
            Self::Incident(_) => Kind::Incident,
            Self::Pool(_) => Kind::Pool,
            Self::Mode(_) => Kind::Mode,
            Self::Lease(_) => Kind::Lease,
            Self::Policy(_) => Kind::Policy,
            Self::Posture(_) => Kind::Posture,
            Self::Agent(_) => Kind::Agent,
            Self::Node(_) => Kind::Node,
        }
    }

    /// The pool that it is about, if it is about one.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Decision(body) => Some(&body.place),
            Self::Incident(body) => Some(&body.place),
            Self::Pool(body) => Some(&body.place),
            Self::Mode(body) => Some(&body.place),
            Self::Lease(body) => Some(&body.place),
            Self::Policy(_) | Self::Posture(_) | Self::Agent(_) | Self::Node(_) => None,
        }
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
