//! The agent's posture: the present troubles, and their consequences.

use std::path::Path;

use guard_common::Tier;

use crate::host::doctor;
use crate::model::audit::record::PostureBody;
use crate::model::control::report::RejectedPolicy;
use crate::model::policy::{DefaultMode, Policy, TierChoice};
use crate::model::posture::assess::{assess, codes, rejection};
use crate::model::posture::trouble::{CANARY, NODE_FAILED, POLICY_REJECTED};
use crate::model::posture::{Posture, PostureState, Reason, Troubles};

/// Inputs of the posture beside the troubles.
#[derive(Debug)]
pub(super) struct PostureFacts<'a> {
    pub policy: &'a Policy,
    pub rejected: Option<&'a RejectedPolicy>,
    /// The nodes whose join has failed, in a line.
    pub failed_nodes: Option<String>,
    /// The tier that the canary has proven.
    pub proven: Option<Tier>,
}

/// The posture, and everything that it follows from.
#[derive(Debug, Default)]
pub(super) struct PostureTracker {
    pub troubles: Troubles,
    posture: Option<Posture>,
    /// Preconditions that the host lacks; known once they were asked for.
    preconditions: Option<Vec<Reason>>,
}

impl PostureTracker {
    /// The posture as it was last assessed; none before the first canary.
    pub(super) fn posture(&self) -> Option<&Posture> {
        self.posture.as_ref()
    }

    /// Works the posture out. Returns a record if it is another one than before.
    pub(super) fn assess(&mut self, facts: PostureFacts<'_>) -> Option<PostureBody> {
        self.assess_with(facts, failed_preconditions)
    }

    fn assess_with(
        &mut self,
        facts: PostureFacts<'_>,
        look_at_host: impl FnOnce(TierChoice) -> Vec<Reason>,
    ) -> Option<PostureBody> {
        // Before the first canary nothing is known, and nothing is said.
        if self.posture.is_none()
            && facts.proven.is_none()
            && self.troubles.detail(CANARY).is_none()
        {
            return None;
        }
        // Both end by themselves with their cause, in any place.
        self.troubles.set_if(POLICY_REJECTED, || facts.rejected.map(rejection));
        self.troubles.set_if(NODE_FAILED, || facts.failed_nodes);
        let roots = facts.policy.roots();
        let only_observes = roots.iter().all(|root| root.default_mode() == DefaultMode::Observed);
        let mut posture = assess(&self.troubles, facts.proven, only_observes);
        if posture.state == PostureState::Inactive {
            // The canary only knows that nothing answered; the host's preconditions tell why. They
            // are looked at once: that takes seconds on a slow host (all of the kernel's BTF), and
            // they change with a boot.
            let choice = facts.policy.tier();
            let found = self.preconditions.get_or_insert_with(|| look_at_host(choice));
            posture.reasons.extend(found.clone());
        }
        let essence = |posture: &Posture| {
            let codes = codes(posture).into_iter().map(str::to_owned);
            (posture.state, posture.tier, codes.collect::<Vec<_>>())
        };
        let is_new = self.posture.as_ref().map(essence) != Some(essence(&posture));
        let from = self.posture.replace(posture.clone()).map(|old| old.state);
        if !is_new {
            return None;
        }
        let tier = posture.tier.map_or("none", |tier| tier.0.name());
        tracing::info!(?from, to = ?posture.state, tier, reasons = ?codes(&posture), "posture");
        Some(PostureBody { from, posture })
    }
}

/// Failed checks of `doctor` for this host, or for the one tier that policy allows.
fn failed_preconditions(choice: TierChoice) -> Vec<Reason> {
    let checks = doctor::checks(&doctor::HostFacts::gather(Path::new("/")));
    let wanted = match choice {
        TierChoice::Auto => None,
        TierChoice::Only(tier) => Some(format!("tier-{}", tier.name())),
    };
    let failed = checks.into_iter().filter(|check| {
        check.state == doctor::CheckState::Fail
            || (check.state == doctor::CheckState::Warn && wanted.as_ref() == Some(&check.code))
    });
    failed
        .map(|check| Reason {
            code: check.code,
            detail: check.found,
            fix: check.fix.unwrap_or_default(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::parse;
    use crate::model::posture::trouble::AUDIT;

    fn policy() -> Policy {
        parse("version = 1\n[[root]]\npreset = \"incus\"\n", Path::new("policy.toml")).unwrap()
    }

    fn facts(policy: &Policy, proven: Option<Tier>) -> PostureFacts<'_> {
        PostureFacts { policy, rejected: None, failed_nodes: None, proven }
    }

    #[test]
    fn a_posture_is_told_once_and_again_when_it_is_another() {
        let (policy, mut tracker) = (policy(), PostureTracker::default());
        assert_eq!(tracker.assess(facts(&policy, None)), None, "nothing is known yet");
        assert_eq!(tracker.posture(), None);
        let proven = Some(Tier::BpfLsm);
        let first = tracker.assess(facts(&policy, proven)).unwrap();
        assert_eq!((first.from, first.posture.state), (None, PostureState::Enforcing));
        assert_eq!(tracker.assess(facts(&policy, proven)), None);

        tracker.troubles.set(AUDIT, "disk full".to_owned());
        let second = tracker.assess(facts(&policy, proven)).unwrap();
        assert_eq!(second.from, Some(PostureState::Enforcing));
        // Another detail of the same trouble is shown, and is no news.
        tracker.troubles.set(AUDIT, "disk still full".to_owned());
        assert_eq!(tracker.assess(facts(&policy, proven)), None);
        assert_eq!(tracker.posture().unwrap().reasons[0].detail, "disk still full");
    }

    #[test]
    fn a_failed_node_ends_as_a_reason_by_itself() {
        let (policy, mut tracker) = (policy(), PostureTracker::default());
        let failed = Some("/one is join-failed".to_owned());
        let facts_of =
            |failed_nodes| PostureFacts { failed_nodes, ..facts(&policy, Some(Tier::BpfLsm)) };
        let told = tracker.assess(facts_of(failed)).unwrap();
        assert_eq!(codes(&told.posture), ["node-failed"]);
        let told = tracker.assess(facts_of(None)).unwrap();
        assert_eq!(told.posture.state, PostureState::Enforcing);
    }

    #[test]
    fn an_inactive_posture_names_what_the_host_lacks_and_looks_once() {
        let (policy, mut tracker) = (policy(), PostureTracker::default());
        tracker.troubles.set(CANARY, "silent".to_owned());
        let lacking = |_: TierChoice| {
            let (code, detail, fix) = ("no-bpf".to_owned(), String::new(), String::new());
            vec![Reason { code, detail, fix }]
        };
        let told = tracker.assess_with(facts(&policy, None), lacking).unwrap();
        assert_eq!(codes(&told.posture), ["canary-failed", "no-bpf"]);
        let told = tracker.assess_with(facts(&policy, None), |_| panic!("looked twice"));
        assert_eq!(told, None);
    }
}
