//! The posture that follows from the troubles, and the lines that tell of them. Pure.

use std::path::Path;

use guard_common::Tier;

use super::trouble::{Leaves, Troubles};
use super::{Posture, PostureState, Reason, gaps};
use crate::model::classify::Classification;
use crate::model::control::report::RejectedPolicy;
use crate::model::events::Name;
use crate::model::join;
use crate::model::plan::{Resolved, absent_actors};
use crate::model::policy::{Actor, DefaultMode, Policy, Root};

/// Roots with a live pool none of whose actors is there, in a line.
pub fn without_actor(
    policy: &Policy,
    classification: &Classification,
    resolved: &Resolved,
) -> Option<String> {
    let describe = |index: usize, root: &Root| {
        let pool = classification.pools.iter().find(|pool| pool.root == index)?;
        let absent = absent_actors(root, resolved)
            .filter(|_| root.default_mode() != DefaultMode::Observed)?;
        let path = |actor: &Actor| match (actor.cgroup(), actor.executable()) {
            (_, Some(executable)) => executable.display().to_string(),
            (cgroup, None) => format!("cgroup {}", cgroup.unwrap_or_default()),
        };
        let absent: Vec<String> = absent.into_iter().map(path).collect();
        Some(format!(
            "pool {}: none of its actors is on this host ({})",
            pool.name,
            absent.join(", ")
        ))
    };
    let roots = policy.roots().iter().enumerate();
    let found: Vec<String> = roots.filter_map(|(index, root)| describe(index, root)).collect();
    (!found.is_empty()).then(|| found.join("; "))
}

/// The first problem of a rejected policy file, in a line. The policy's own part of the status has
/// all of them.
pub fn rejection(rejected: &RejectedPolicy) -> String {
    let first = rejected.errors.first().map_or("no reason was given", String::as_str);
    match rejected.errors.len() {
        0 | 1 => format!("the policy file on disk is not in force: {first}"),
        lines => {
            format!("the policy file on disk is not in force; the first of {lines} lines: {first}")
        }
    }
}

/// The nodes whose join has failed, in a line.
pub fn failed_nodes<'n>(
    nodes: impl Iterator<Item = (&'n Path, &'n join::NodeState)>,
) -> Option<String> {
    let failed = nodes.filter(|(_, state)| state.has_failed());
    let failed: Vec<String> =
        failed.map(|(root, state)| format!("{} is {}", root.display(), state.name())).collect();
    (!failed.is_empty()).then(|| failed.join(", "))
}

/// The codes of a posture's reasons, in their order.
pub fn codes(posture: &Posture) -> Vec<&str> {
    posture.reasons.iter().map(|reason| reason.code.as_str()).collect()
}

/// The posture that follows from the facts. `proven`: the tier that the canary has proven.
pub fn assess(troubles: &Troubles, proven: Option<Tier>, only_observes: bool) -> Posture {
    let mut reasons: Vec<Reason> = troubles
        .0
        .iter()
        .map(|(trouble, detail)| Reason {
            code: trouble.code.to_owned(),
            detail: detail.clone(),
            fix: trouble.fix.to_owned(),
        })
        .collect();
    let state =
        if proven.is_none() || troubles.0.keys().any(|trouble| trouble.leaves == Leaves::Nothing) {
            PostureState::Inactive
        } else if !troubles.0.is_empty() {
            PostureState::Degraded
        } else if only_observes {
            reasons.push(Reason {
                code: "policy-observes".to_owned(),
                detail: "every guarded root has mode \"observed\"".to_owned(),
                fix: "set mode = \"guarded\" in the policy to deny deletions".to_owned(),
            });
            PostureState::AuditOnly
        } else {
            PostureState::Enforcing
        };
    let tier = proven.filter(|_| state != PostureState::Inactive);
    Posture { state, reasons, tier: tier.map(Name), gaps: tier.map(gaps).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use guard_common::Tier;

    use super::super::trouble::{AUDIT, CANARY};
    use super::*;

    #[test]
    fn the_posture_is_no_better_than_what_is_proven() {
        let mut troubles = Troubles::default();
        assert_eq!(assess(&troubles, None, false).state, PostureState::Inactive);
        assert_eq!(assess(&troubles, Some(Tier::BpfLsm), false).state, PostureState::Enforcing);
        let observing = assess(&troubles, Some(Tier::BpfLsm), true);
        assert_eq!(
            (observing.state, codes(&observing)),
            (PostureState::AuditOnly, vec!["policy-observes"])
        );
        troubles.set(AUDIT, "disk full".to_owned());
        assert_eq!(assess(&troubles, Some(Tier::BpfLsm), false).state, PostureState::Degraded);
        troubles.set(CANARY, "silent".to_owned());
        let inactive = assess(&troubles, Some(Tier::BpfLsm), false);
        assert_eq!(inactive.state, PostureState::Inactive);
        assert_eq!(codes(&inactive), ["canary-failed", "audit-not-written"]);
        assert_eq!(inactive.tier, None);
        troubles.clear(CANARY);
        troubles.clear(AUDIT);
        assert_eq!(assess(&troubles, Some(Tier::BpfLsm), false).state, PostureState::Enforcing);
    }

    #[test]
    fn a_rejected_policy_is_told_with_its_first_problem() {
        let at = serde_json::from_str("\"2026-01-02T03:04:05Z\"").unwrap();
        let errors = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        let mut rejected = RejectedPolicy { at, errors: errors(&["p.toml:3: unknown key `rots`"]) };
        let told = rejection(&rejected);
        assert_eq!(told, "the policy file on disk is not in force: p.toml:3: unknown key `rots`");
        rejected.errors = errors(&["p.toml:3: one", "p.toml:4: two"]);
        assert!(rejection(&rejected).ends_with("the first of 2 lines: p.toml:3: one"));
    }

    #[test]
    fn only_failed_nodes_are_told() {
        use join::{Kept, NodeState};
        let (one, two) = (Path::new("/one"), Path::new("/two"));
        let unknown = NodeState::Unknown { kept: Kept::Nothing };
        assert_eq!(
            failed_nodes([(one, &NodeState::Standalone), (two, &unknown)].into_iter()),
            None
        );
        assert_eq!(
            failed_nodes([(one, &NodeState::RollingBack), (two, &NodeState::Released)].into_iter()),
            None
        );
        let told = failed_nodes(
            [(one, &NodeState::JoinFailed), (two, &NodeState::JoinPartial)].into_iter(),
        );
        assert_eq!(told.as_deref(), Some("/one is join-failed, /two is join-partial"));
    }
}
