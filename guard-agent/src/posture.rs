//! What is proven to be in force, with the reasons when it is less than everything.

use serde::{Deserialize, Serialize};

/// How much is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Every hook has answered the canary, and policy denies.
    Enforcing,
    /// Deletions are denied, but something is missing: see the reasons.
    Degraded,
    /// Every hook answers, and policy only observes.
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

/// State and reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Posture {
    pub state: State,
    pub reasons: Vec<Reason>,
}
