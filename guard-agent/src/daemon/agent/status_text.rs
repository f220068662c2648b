//! One line about the agent for `systemctl status`. Pure.

use crate::model::posture::{Posture, PostureState};

/// Facts that the line shows.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub posture: Option<&'a Posture>,
    pub pools: usize,
    pub sealed: usize,
    pub leases: usize,
    /// Generation of the policy in force.
    pub policy: u64,
    /// The first problem of a policy file that was rejected.
    pub rejected: Option<&'a str>,
}

impl Facts<'_> {
    pub(super) fn running(&self) -> String {
        let sealed =
            if self.sealed > 0 { format!(" ({} sealed)", self.sealed) } else { String::new() };
        let leases = if self.leases > 0 {
            format!(", {}", counted(self.leases, "lease"))
        } else {
            String::new()
        };
        let policy = match self.rejected {
            Some(problem) => {
                format!("policy rejected, generation {} stays: {problem}", self.policy)
            }
            None => format!("policy generation {}", self.policy),
        };
        format!(
            "{}; {}{sealed}{leases}; {policy}",
            self.posture_text(),
            counted(self.pools, "pool")
        )
    }

    /// After the agent's end.
    pub(super) fn stopped(&self) -> String {
        let tier = self.posture.and_then(|posture| posture.tier).map(|tier| tier.0.name());
        match (self.posture.map(|posture| posture.state), tier) {
            (Some(PostureState::Enforcing | PostureState::Degraded), Some(tier)) => format!(
                "stopped; enforcement goes on in tier {tier} for {} (to end it: guard-agent \
                 unload)",
                counted(self.pools, "pool")
            ),
            (Some(PostureState::AuditOnly), _) => {
                "stopped; policy only observes: nothing is denied".to_owned()
            }
            _ => "stopped; nothing is enforced".to_owned(),
        }
    }

    fn posture_text(&self) -> String {
        let Some(posture) = self.posture else { return "not proven yet".to_owned() };
        let state = match posture.state {
            PostureState::Enforcing => "enforcing",
            PostureState::Degraded => "degraded",
            PostureState::AuditOnly => "audit-only",
            PostureState::Inactive => "inactive",
        };
        let tier =
            posture.tier.map(|tier| format!(" in tier {}", tier.0.name())).unwrap_or_default();
        let codes: Vec<&str> = posture.reasons.iter().map(|reason| reason.code.as_str()).collect();
        let codes =
            if codes.is_empty() { String::new() } else { format!(" ({})", codes.join(", ")) };
        format!("{state}{tier}{codes}")
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use guard_common::Tier;

    use super::*;
    use crate::model::events::Name;
    use crate::model::posture::Reason;

    fn posture(state: PostureState, tier: Option<Tier>, code: &str) -> Posture {
        let reason = Reason { code: code.to_owned(), detail: String::new(), fix: String::new() };
        let reasons = if code.is_empty() { Vec::new() } else { vec![reason] };
        Posture { state, reasons, tier: tier.map(Name), gaps: Vec::new() }
    }

    #[test]
    fn it_names_posture_tier_pools_and_policy() {
        let enforcing = posture(PostureState::Enforcing, Some(Tier::BpfLsm), "");
        let mut facts = Facts {
            posture: Some(&enforcing),
            pools: 2,
            sealed: 0,
            leases: 0,
            policy: 1,
            rejected: None,
        };
        assert_eq!(facts.running(), "enforcing in tier bpf-lsm; 2 pools; policy generation 1");
        (facts.sealed, facts.leases, facts.rejected) = (1, 3, Some("/etc/p.toml:3:1: unknown key"));
        assert_eq!(
            facts.running(),
            "enforcing in tier bpf-lsm; 2 pools (1 sealed), 3 leases; policy rejected, generation \
             1 stays: /etc/p.toml:3:1: unknown key"
        );
        let degraded = posture(PostureState::Degraded, Some(Tier::Fanotify), "tier-fanotify");
        facts.posture = Some(&degraded);
        assert!(facts.running().starts_with("degraded in tier fanotify (tier-fanotify); 2 pools"));
        facts.posture = None;
        assert!(facts.running().starts_with("not proven yet; 2 pools"));
    }

    #[test]
    fn at_the_end_it_says_what_goes_on() {
        let stopped = |posture: Option<&Posture>| {
            Facts { posture, pools: 2, sealed: 0, leases: 0, policy: 1, rejected: None }.stopped()
        };
        let enforcing = posture(PostureState::Enforcing, Some(Tier::BpfLsm), "");
        assert!(
            stopped(Some(&enforcing)).contains("enforcement goes on in tier bpf-lsm for 2 pools")
        );
        for nothing in [None, Some(&posture(PostureState::Inactive, None, ""))] {
            assert_eq!(stopped(nothing), "stopped; nothing is enforced");
        }
    }
}
