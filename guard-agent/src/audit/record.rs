//! The audit log's schema: one JSON object a line. Pure.
//!
//! A line is an envelope (schema, sequence, time, host) and one object that is named like its `kind`.
//! Fields are only ever added within a schema version. Field names are those of `guard_common`.

use guard_common::{Hook, Mode, Operation, Reason, Verdict};
use serde::{Deserialize, Serialize};

use crate::events::{BootOffset, Decision, Name, Stamp, Summary, Time};
use crate::posture;

/// Name and version of the schema.
pub const SCHEMA: &str = "guard-agent.audit/1";

/// Where the lines come from.
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
    /// The record of what happened at `stamp`.
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
        let mut line = serde_json::to_string(self).expect("a record has string keys and finite numbers");
        line.push('\n');
        line
    }
}

/// What a line tells of.
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
            Self::Policy(_) | Self::Posture(_) | Self::Agent(_) => None,
        }
    }
}

/// A pool id as it is written: sixteen hexadecimal digits.
pub fn pool_id_text(pool_id: u64) -> String {
    format!("{pool_id:016x}")
}

/// `s_dev` as `major:minor`.
pub fn device_text(dev: u32) -> String {
    format!("{}:{}", dev >> 20, dev & 0xf_ffff)
}

/// The pool that a line is about. Everything is null for a superblock without an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Sixteen hexadecimal digits.
    pub pool_id: Option<String>,
    /// The pool's name.
    pub pool: Option<String>,
    pub mountpoint: Option<String>,
    pub generation: Option<u64>,
}

/// One decision: the fields of `guard_common::Record`, with names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionBody {
    pub hook: Name<Hook>,
    pub operation: Name<Operation>,
    pub verdict: Name<Verdict>,
    pub reason: Name<Reason>,
    pub mode: Option<Name<Mode>>,
    #[serde(flatten)]
    pub place: Place,
    pub pid: u32,
    pub tgid: u32,
    pub ppid: u32,
    pub start_boot_ns: u64,
    pub start_time: Time,
    pub uid: u32,
    pub euid: u32,
    /// Null: not set.
    pub login_uid: Option<u32>,
    pub comm: String,
    pub kernel_thread: bool,
    pub cgroup_id: u64,
    /// Mount namespace of the process.
    pub mnt_ns: u32,
    /// Mount namespace of the mount; 0: detached; null: the hook does not know the mount.
    pub mount_ns: Option<u32>,
    pub mount_id: Option<u32>,
    /// `major:minor`.
    pub device: String,
    pub parent_ino: u64,
    pub target_ino: u64,
    pub target_name: String,
    /// Inside the superblock; `…/` stands for a beginning that is missing.
    pub path: String,
    /// The known bytes of the path in hexadecimal, where `path` could not show them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
    pub path_truncated: bool,
    pub incident_count: u64,
}

impl DecisionBody {
    /// A decision at a place. What the kernel knew of the place (id, generation) stands over `place`.
    pub fn new(decision: &Decision, offset: BootOffset, place: Place) -> Self {
        let pool_id = decision.pool_id.map(pool_id_text).or(place.pool_id);
        let generation = decision.generation.or(place.generation);
        Self {
            hook: Name(decision.hook),
            operation: Name(decision.operation),
            verdict: Name(decision.verdict),
            reason: Name(decision.reason),
            mode: decision.mode.map(Name),
            place: Place { pool_id, generation, ..place },
            pid: decision.pid,
            tgid: decision.tgid,
            ppid: decision.ppid,
            start_boot_ns: decision.start_boot_ns,
            start_time: offset.stamp(decision.start_boot_ns).time,
            uid: decision.uid,
            euid: decision.euid,
            login_uid: decision.login_uid,
            comm: decision.comm.clone(),
            kernel_thread: decision.kernel_thread,
            cgroup_id: decision.cgroup_id,
            mnt_ns: decision.mnt_ns,
            mount_ns: decision.mount_ns,
            mount_id: decision.mount_id,
            device: device_text(decision.dev),
            parent_ino: decision.parent_ino,
            target_ino: decision.target_ino,
            target_name: decision.path.target_name().into_owned(),
            path: decision.path.text(),
            path_bytes: decision.path.hex_if_not_utf8(),
            path_truncated: decision.path.truncated,
            incident_count: decision.incident_count,
        }
    }
}

/// Totals of an incident so far. `count = emitted + aggregated + lost`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IncidentBody {
    /// Null: a number that this version does not know.
    pub verdict: Option<Name<Verdict>>,
    pub reason: Option<Name<Reason>>,
    #[serde(flatten)]
    pub place: Place,
    pub device: String,
    pub tgid: u32,
    pub start_boot_ns: u64,
    pub start_time: Time,
    pub comm: String,
    pub uid: u32,
    pub login_uid: Option<u32>,
    pub count: u64,
    pub emitted: u64,
    pub aggregated: u64,
    pub lost: u64,
    pub first_time: Time,
    pub last_time: Time,
    /// The process is gone; these totals are final.
    pub ended: bool,
}

impl IncidentBody {
    /// An incident's totals at a place. What the kernel knew of the place stands over `place`.
    pub fn new(summary: &Summary, offset: BootOffset, place: Place) -> Self {
        let known = |number: u64| (number != 0).then_some(number);
        let pool_id = known(summary.value.pool_id).map(pool_id_text).or(place.pool_id);
        let generation = known(summary.key.generation).or(place.generation);
        Self {
            verdict: summary.verdict().map(Name),
            reason: summary.reason().map(Name),
            place: Place { pool_id, generation, ..place },
            device: device_text(summary.key.dev),
            tgid: summary.key.tgid,
            start_boot_ns: summary.key.start_boot_ns,
            start_time: offset.stamp(summary.key.start_boot_ns).time,
            comm: summary.comm(),
            uid: summary.value.uid,
            login_uid: summary.login_uid(),
            count: summary.value.count,
            emitted: summary.value.emitted,
            aggregated: summary.aggregated(),
            lost: summary.value.lost,
            first_time: offset.stamp(summary.value.first_boot_ns).time,
            last_time: offset.stamp(summary.value.last_boot_ns).time,
            ended: summary.ended,
        }
    }
}

/// What happened to a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolChange {
    Appeared,
    Ended,
}

/// A pool appeared or ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolBody {
    pub change: PoolChange,
    #[serde(flatten)]
    pub place: Place,
    pub device: String,
    pub filesystem: String,
    pub source: String,
    pub mode: Option<Name<Mode>>,
}

/// Who or what changed a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModeCause {
    Policy,
    Operator,
    Expiry,
}

/// A pool's mode changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModeBody {
    #[serde(flatten)]
    pub place: Place,
    pub from: Option<Name<Mode>>,
    pub to: Name<Mode>,
    pub cause: ModeCause,
    /// Who asked, if someone did.
    pub uid: Option<u32>,
    pub login_uid: Option<u32>,
}

/// What happened to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseChange {
    Granted,
    Revoked,
    /// Its time is over.
    Expired,
    /// Its superblock is gone.
    Ended,
}

/// What a lease permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseKind {
    /// Everyone may delete in the pool.
    Release,
    /// One command tree may.
    Command,
}

/// A lease was granted or is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeaseBody {
    pub change: LeaseChange,
    pub id: String,
    pub lease_kind: LeaseKind,
    #[serde(flatten)]
    pub place: Place,
    pub ttl_seconds: u64,
    pub ends: Time,
    /// What the requester gave as the reason.
    pub reason: String,
    pub uid: u32,
    pub login_uid: Option<u32>,
}

/// What happened to a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyChange {
    Loaded,
    /// The policy of `generation` and `hash` stays in force.
    Rejected,
}

/// A policy was loaded or rejected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyBody {
    pub change: PolicyChange,
    pub path: String,
    /// Of the policy in force after this.
    pub generation: u64,
    /// SHA-256 of the text in force after this.
    pub hash: String,
    pub errors: Vec<String>,
}

/// The posture changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PostureBody {
    pub from: Option<posture::State>,
    #[serde(flatten)]
    pub posture: posture::Posture,
}

/// What the agent did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentChange {
    Started,
    Stopped,
    /// It took over the pins of an agent of the same build.
    Adopted,
    /// It replaced the programs of an agent of another build.
    Upgraded,
}

/// The agent itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentBody {
    pub change: AgentChange,
    pub version: String,
    pub build: String,
    pub pid: u32,
    /// The build that was there before, for adopted and upgraded.
    pub previous_build: Option<String>,
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
