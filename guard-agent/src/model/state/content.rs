//! The content of the state file.

use std::collections::BTreeSet;

use guard_common::Tier;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::model::audit::record::LeaseKind;
use crate::model::events::Name;
use crate::model::time::Time;

/// A granted lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub id: String,
    pub kind: LeaseKind,
    pub generation: u64,
    pub pool_id: u64,
    pub pool: String,
    pub mountpoint: String,
    pub reason: String,
    pub uid: u32,
    pub login_uid: Option<u32>,
    pub granted: Time,
    pub ends: Time,
    pub ends_boot_ns: u64,
    pub ttl_seconds: u64,
    /// Of a lease for a command tree: its cgroup and first process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandTree>,
}

/// The cgroup that a lease is bound to, and the process that it ends with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandTree {
    pub cgroup_id: u64,
    /// `s_dev` of the pool.
    pub dev: u32,
    pub pid: u32,
    /// When the process started, in ticks of the boot clock.
    pub start_ticks: u64,
}

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedState {
    /// Leases are of this boot: generations and the boot clock begin anew with the next.
    pub(crate) boot_id: String,
    /// Pool ids that an operator has sealed.
    pub sealed: BTreeSet<u64>,
    pub leases: Vec<Lease>,
    /// Number of the next lease.
    pub next_lease: u64,
    /// The best tier that has proven itself on this host, unless policy has taken a weaker one by
    /// name.
    pub tier: Option<Name<Tier>>,
    /// Number of times that the state was saved.
    pub(crate) saved: u64,
    pub(crate) foreign: Foreign,
}

/// Parts of a file that this version does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Foreign {
    pub(crate) fields: Map<String, Value>,
    pub(crate) sealed: Vec<Value>,
    pub(crate) leases: Vec<Value>,
    pub(crate) tier: Option<Value>,
}

impl Foreign {
    /// Leases are of one boot.
    pub(crate) fn forget_leases(&mut self) {
        self.leases.clear();
    }
}

impl SavedState {
    /// Nothing yet, in this boot.
    pub(crate) fn empty(boot_id: &str) -> Self {
        Self {
            boot_id: boot_id.to_owned(),
            sealed: BTreeSet::new(),
            leases: Vec::new(),
            next_lease: 1,
            tier: None,
            saved: 0,
            foreign: Foreign::default(),
        }
    }
}
