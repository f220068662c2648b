//! The proven state of enforcement, with the reasons when it is less than everything.

pub mod assess;
pub mod trouble;

pub use trouble::Troubles;

use guard_common::Tier;
use serde::{Deserialize, Serialize};

use crate::model::events::Name;

/// Extent of the enforcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PostureState {
    /// The canary was answered at every point of the tier in force, and policy denies.
    Enforcing,
    /// Deletions are denied, but something is missing: see the reasons.
    Degraded,
    /// The canary was answered, and policy only observes.
    AuditOnly,
    /// Nothing is denied.
    Inactive,
}

/// Why the posture is not `enforcing`, or a note for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Stable code, e.g. `bpf-not-in-lsm-list`.
    pub code: String,
    /// The finding.
    pub detail: String,
    /// The advice to the operator.
    pub fix: String,
}

/// Something that the tier in force leaves open and `bpf-lsm` does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Stable code.
    pub code: String,
    /// The operations that are not covered, and when.
    pub detail: String,
}

/// State and reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Posture {
    pub state: PostureState,
    pub reasons: Vec<Reason>,
    /// The tier that has proven itself; null if none has.
    #[serde(default)]
    pub tier: Option<Name<Tier>>,
    /// The gaps of this tier.
    #[serde(default)]
    pub gaps: Vec<Gap>,
}

/// The gaps of a tier, beyond those that every tier has (docs/LIMITS.md). Pure.
pub fn gaps(tier: Tier) -> Vec<Gap> {
    let list: &[(&str, &str)] = match tier {
        // The yardstick.
        Tier::BpfLsm => &[],
        Tier::FmodRet => &[
            (
                "skipped-when-preempted",
                "the kernel leaves a program out while another task that it has preempted on the \
                 same processor is in the middle of it. A second load of the same programs decides \
                 then; where two tasks have been preempted, one in each, a third one's deletion is \
                 allowed, unrecorded. It needs kernel preemption (full, lazy), and is counted \
                 (decisions-skipped)",
            ),
            (
                "before-other-lsms",
                "it decides before the host's other security modules: they do not see what it \
                 denies, and may still refuse what it records as allowed",
            ),
        ],
        Tier::Fanotify => FANOTIFY_GAPS,
    };
    list.iter()
        .map(|(code, detail)| Gap { code: (*code).to_owned(), detail: (*detail).to_owned() })
        .collect()
}

/// Guarded: recursive deletion is stopped where it lists directories. Sealed: each mount of the
/// host is read-only.
const FANOTIFY_GAPS: &[(&str, &str)] = &[
    (
        "single-deletions",
        "guarded: a file whose path is known can be removed or replaced by anybody whom its \
         permissions let; a removal is recorded (would-deny), a replacement is not",
    ),
    (
        "listing",
        "guarded: whoever is no actor and has no lease cannot list directories of a pool (`ls`, \
         backups)",
    ),
    (
        "read-only",
        "sealed: nothing can be written either, by the storage daemon neither; refusals are not \
         recorded",
    ),
    (
        "other-namespaces",
        "mounts in other mount namespaces are not covered: guests', and private copies (`unshare \
         -m`, PrivateTmp=)",
    ),
    (
        "first-moment",
        "a new pool is open from its mount until the agent has seen it, and while no agent runs; a \
         further mount of a known pool until the responder has marked it",
    ),
    (
        "open-before",
        "a directory that was opened before the pool was marked can be listed through that \
         descriptor",
    ),
    (
        "aliases",
        "the same data under another superblock, outside the guarded roots, is not covered",
    ),
    (
        "busy",
        "sealed: a mount through which a file is open for writing stays writable; its directories \
         cannot be listed",
    ),
    (
        "expiry",
        "a release that ends without an agent ends the listing of directories, and leaves its \
         mounts writable",
    ),
    (
        "superblock-end",
        "a pool counts as ended when the host's namespace has no mount of it; a rollback's proof \
         is no more than that",
    ),
    (
        "responder",
        "when the process that answers ends, the kernel allows everything in guarded pools until \
         there is another",
    ),
];
