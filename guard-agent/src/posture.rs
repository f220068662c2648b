//! What is proven to be in force, with the reasons when it is less than everything.

use guard_common::Tier;
use serde::{Deserialize, Serialize};

use crate::events::Name;

/// How much is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The canary was answered at every point of the tier in force, and policy denies.
    Enforcing,
    /// Deletions are denied, but something is missing: see the reasons.
    Degraded,
    /// The canary was answered, and policy only observes.
    AuditOnly,
    /// Nothing is denied.
    Inactive,
}

/// Why the posture is not `enforcing`, or what the operator should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Stable code, e.g. `bpf-not-in-lsm-list`.
    pub code: String,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub fix: String,
}

/// Something that the tier in force leaves open and `bpf-lsm` does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Stable code.
    pub code: String,
    /// What is not covered, and when.
    pub detail: String,
}

/// State and reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Posture {
    pub state: State,
    pub reasons: Vec<Reason>,
    /// The tier that has proven itself; null if none has.
    #[serde(default)]
    pub tier: Option<Name<Tier>>,
    /// What this tier does not cover.
    #[serde(default)]
    pub gaps: Vec<Gap>,
}

/// What a tier leaves open, beyond what no tier covers (README). Pure.
pub fn gaps(tier: Tier) -> Vec<Gap> {
    let list: &[(&str, &str)] = match tier {
        // The yardstick. The others are not there yet: whoever brings one into force lists its gaps here.
        Tier::BpfLsm | Tier::FmodRet | Tier::Fanotify => &[],
    };
    list.iter().map(|(code, detail)| Gap { code: (*code).to_owned(), detail: (*detail).to_owned() }).collect()
}
