//! Decisions of the kernel program and incidents, as the audit log has them. Pure.

use guard_common::{Hook, Mode, Operation, Reason, Tier, Verdict};
use serde::{Deserialize, Serialize};

use super::place::{Place, device_text, pool_id_text};
use crate::model::events::{Decision, Name, Summary};
use crate::model::time::{BootOffset, Time};

/// One decision: the fields of `guard_common::Record`, with names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionBody {
    /// Enforcement mechanism.
    #[serde(default = "tier_before_tiers")]
    pub tier: Name<Tier>,
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

/// Of lines that were written before there was a second tier.
fn tier_before_tiers() -> Name<Tier> {
    Name(Tier::BpfLsm)
}

impl DecisionBody {
    /// A decision at a place. The kernel's knowledge of the place (id, generation) overrides
    /// `place`.
    pub fn new(decision: &Decision, offset: BootOffset, place: Place) -> Self {
        let pool_id = decision.pool_id.map(pool_id_text).or(place.pool_id);
        let generation = decision.generation.or(place.generation);
        Self {
            tier: Name(decision.tier),
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
    /// An incident's totals at a place. The kernel's knowledge of the place overrides `place`.
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
