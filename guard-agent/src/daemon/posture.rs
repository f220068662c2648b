//! What the agent's posture is, from what it knows to be wrong.

use std::collections::BTreeMap;
use std::path::Path;

use guard_common::Tier;

use super::agent::Agent;
use crate::host::doctor;
use crate::model::audit::Body;
use crate::model::audit::record::PostureBody;
use crate::model::classify::Classification;
use crate::model::control::report::RejectedPolicy;
use crate::model::events::Name;
use crate::model::join;
use crate::model::plan::{Resolved, absent_actors};
use crate::model::policy::{Actor, DefaultMode, Policy, Root, TierChoice};
use crate::model::posture::{Posture, Reason, State, gaps};

/// A stable code, and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trouble {
    /// How much is left in force. First: the worst is named first.
    leaves: Leaves,
    code: &'static str,
    fix: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Leaves {
    Nothing,
    Part,
}

pub const CANARY: Trouble = Trouble {
    code: "canary-failed",
    fix: "run `guardctl doctor`: most often `bpf` is missing in the kernel's list of active LSMs \
          (parameter lsm=)",
    leaves: Leaves::Nothing,
};
pub const UNPINNED: Trouble = Trouble {
    code: "link-unpinned",
    fix: "restart the agent: it pins its programs anew",
    leaves: Leaves::Part,
};
pub const RECONCILE: Trouble = Trouble {
    code: "maps-not-current",
    fix: "new pools are still protected as unclassified; see the agent's log, then restart it",
    leaves: Leaves::Part,
};
pub const UNRESOLVED: Trouble = Trouble {
    leaves: Leaves::Part,
    code: "path-unresolved",
    fix: "make the path readable for the agent, or correct the policy: what it names is not in \
          force",
};
pub const MOUNT_TABLE: Trouble = Trouble {
    code: "mount-table-unclear",
    fix: "report the line: a mount in it has no entry of its own",
    leaves: Leaves::Part,
};
pub const STATE: Trouble = Trouble {
    code: "state-file",
    fix: "check the space and permissions of the state directory: it is written again by itself",
    leaves: Leaves::Part,
};
pub const STATE_LOST: Trouble = Trouble {
    code: "state-lost",
    fix: "look at `guardctl pools` and seal what has to be sealed: seals that were in force are \
          still; any `guardctl seal` or `unseal`, or a restart, ends this reason",
    leaves: Leaves::Part,
};
pub const JOURNAL: Trouble = Trouble {
    code: "journal-not-written",
    fix: "check the space and permissions of the state directory: until then no node's pools are \
          weakened",
    leaves: Leaves::Part,
};
pub const LAST_GOOD: Trouble = Trouble {
    leaves: Leaves::Part,
    code: "policy-not-kept",
    fix: "check the space and permissions of the state directory: a start with a wrong policy file \
          would find none",
};
pub const AUDIT: Trouble = Trouble {
    code: "audit-not-written",
    fix: "make room for the audit log; waiting records are written then",
    leaves: Leaves::Part,
};
pub const WEAK_TIER: Trouble = Trouble {
    code: "tier-fanotify",
    fix: "run `guardctl doctor`: it names what would raise the tier",
    leaves: Leaves::Part,
};
pub const UNMARKED: Trouble = Trouble {
    code: "mounts-unmarked",
    fix: "see the detail: directories of these mounts can be listed, and so deleted, by everybody; \
          it is tried again. Too many open files: raise the sysctl fs.fanotify.max_user_groups",
    leaves: Leaves::Part,
};
pub const UNSEALED: Trouble = Trouble {
    code: "mounts-not-sealed",
    fix: "see the detail: `busy` means that a file is open for writing through the mount (`fuser \
          -vm MOUNTPOINT`); until then listing its directories is refused to everybody, and it is \
          tried again",
    leaves: Leaves::Part,
};
pub const UNSEEN: Trouble = Trouble {
    code: "deletions-unseen",
    fix: "see the detail: what this tier does not stop is not in the audit log either; for want of \
          room the host deletes faster than can be read (sysctl fs.fanotify.max_queued_events), \
          and the next proof forgets it. Too many open files: raise the sysctl \
          fs.fanotify.max_user_groups",
    leaves: Leaves::Part,
};
pub const RESPONDER: Trouble = Trouble {
    code: "responder-replaced",
    fix: "see the agent's log: for a moment the kernel allowed everything in guarded pools; this \
          ends with the next proof",
    leaves: Leaves::Part,
};
pub const RECORDS: Trouble = Trouble {
    code: "records-undecodable",
    fix: "agent and kernel program do not match: restart the agent",
    leaves: Leaves::Part,
};
pub const INCIDENTS: Trouble = Trouble {
    leaves: Leaves::Part,
    code: "incidents-full",
    fix: "end what deletes in so many processes: their deletions are denied and counted, and the \
          audit log has no line of them",
};

pub const TIER_LOST: Trouble = Trouble {
    code: "tier-lost",
    fix: "run `guardctl doctor`: it names the change that brings the stronger tier back; or take \
          this one by name in the policy: [enforcement] tier",
    leaves: Leaves::Part,
};
pub const OTHER_TIER: Trouble = Trouble {
    code: "tier-not-as-policy",
    fix: "restart the agent: the tier is chosen when it starts",
    leaves: Leaves::Part,
};
/// A live pool in which nobody may delete that policy lets.
pub const NO_ACTOR: Trouble = Trouble {
    code: "no-actor",
    fix: "name the storage daemon of this host in the policy: actors = [{ executable = \
          \"/usr/sbin/incusd\" }], say (`ls -l /proc/$(pidof incusd)/exe` tells which); it is \
          denied deletion until then",
    leaves: Leaves::Part,
};
/// The policy file on disk is not the one in force.
const POLICY_REJECTED: Trouble = Trouble {
    code: "policy-rejected",
    fix: "correct the file (`guardctl policy check` names every problem): it is read again within \
          seconds",
    leaves: Leaves::Part,
};
/// A followed node's join has failed. Its pools are sealed, which is right and not what anybody
/// wants to keep.
const NODE_FAILED: Trouble = Trouble {
    code: "node-failed",
    fix: "run `guardctl rollback` and then join again: docs/RUNBOOK.md; `guardctl history` tells \
          how it came here",
    leaves: Leaves::Part,
};
pub const SKIPPED: Trouble = Trouble {
    code: "decisions-skipped",
    fix: "boot with lsm=…,bpf (see `guardctl doctor`) and a kernel from 6.2 on, which never skips \
          those programs, or with preempt=voluntary where the kernel takes that; the count begins \
          anew with the next load of the programs",
    leaves: Leaves::Part,
};

/// What is wrong now.
#[derive(Debug, Default)]
pub struct Troubles(BTreeMap<Trouble, String>);

impl Troubles {
    /// Notes a trouble, with what was found.
    pub fn set(&mut self, trouble: Trouble, detail: String) {
        self.0.insert(trouble, detail);
    }

    /// It is over.
    pub fn clear(&mut self, trouble: Trouble) {
        self.0.remove(&trouble);
    }

    /// What was found, if it is noted.
    pub fn detail(&self, trouble: Trouble) -> Option<String> {
        self.0.get(&trouble).cloned()
    }

    /// Sets or clears.
    pub fn set_if(&mut self, trouble: Trouble, detail: impl FnOnce() -> Option<String>) {
        match detail() {
            Some(detail) => self.set(trouble, detail),
            None => self.clear(trouble),
        }
    }
}

impl Agent {
    /// Works the posture out, and writes it down if it is another one.
    pub(super) fn judge_posture(&mut self) {
        // Before the first canary nothing is known, and nothing is said.
        if self.posture.is_none()
            && self.proven_at.is_none()
            && !self.troubles.0.contains_key(&CANARY)
        {
            return;
        }
        // Both end by themselves with what they tell of, wherever that ended.
        self.troubles.set_if(POLICY_REJECTED, || self.policy.rejected.as_ref().map(rejection));
        let states = self.nodes.iter().map(|(root, node)| (root, node.state()));
        let failed = failed_nodes(states);
        self.troubles.set_if(NODE_FAILED, || failed);
        let mut posture =
            judge(&self.troubles, self.proven_at.and(self.tier), self.policy_only_observes());
        if posture.state == State::Inactive {
            // The canary only knows that nothing answered; the host's preconditions tell why. They
            // are looked at once: that takes seconds on a slow host (all of the kernel's BTF), and
            // they change with a boot.
            let choice = self.policy.policy.tier();
            posture.reasons.extend(
                self.preconditions.get_or_insert_with(|| failed_preconditions(choice)).clone(),
            );
        }
        let essence = |posture: &Posture| {
            (
                posture.state,
                posture.tier,
                codes(posture).into_iter().map(str::to_owned).collect::<Vec<_>>(),
            )
        };
        if self.posture.as_ref().map(essence) == Some(essence(&posture)) {
            self.posture = Some(posture);
            return;
        }
        let from = self.posture.as_ref().map(|old| old.state);
        let tier = posture.tier.map_or("none", |tier| tier.0.name());
        tracing::info!(?from, to = ?posture.state, tier, reasons = ?codes(&posture), "posture");
        self.posture = Some(posture.clone());
        self.write(Body::Posture(PostureBody { from, posture }));
    }

    fn policy_only_observes(&self) -> bool {
        self.policy.policy.roots().iter().all(|root| root.default_mode() == DefaultMode::Observed)
    }
}

/// What is wrong with a rejected policy file, in a line. All of it is in the policy's own part of
/// the status. Roots with a live pool none of whose actors is there.
pub(super) fn without_actor(
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

fn rejection(rejected: &RejectedPolicy) -> String {
    let first = rejected.errors.first().map_or("no reason was given", String::as_str);
    match rejected.errors.len() {
        0 | 1 => format!("the policy file on disk is not in force: {first}"),
        lines => {
            format!("the policy file on disk is not in force; the first of {lines} lines: {first}")
        }
    }
}

/// The nodes whose join has failed, in a line.
fn failed_nodes<'n>(nodes: impl Iterator<Item = (&'n Path, &'n join::State)>) -> Option<String> {
    let failed = nodes.filter(|(_, state)| state.has_failed());
    let failed: Vec<String> =
        failed.map(|(root, state)| format!("{} is {}", root.display(), state.name())).collect();
    (!failed.is_empty()).then(|| failed.join(", "))
}

fn codes(posture: &Posture) -> Vec<&str> {
    posture.reasons.iter().map(|reason| reason.code.as_str()).collect()
}

/// What `doctor` finds wrong with this host, or with the one tier that policy lets be tried.
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

/// The posture that follows from what is known. `proven`: the tier that the canary has proven.
/// Pure.
pub fn judge(troubles: &Troubles, proven: Option<Tier>, only_observes: bool) -> Posture {
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
            State::Inactive
        } else if !troubles.0.is_empty() {
            State::Degraded
        } else if only_observes {
            reasons.push(Reason {
                code: "policy-observes".to_owned(),
                detail: "every guarded root has mode \"observed\"".to_owned(),
                fix: "set mode = \"guarded\" in the policy to deny deletions".to_owned(),
            });
            State::AuditOnly
        } else {
            State::Enforcing
        };
    let tier = proven.filter(|_| state != State::Inactive);
    Posture { state, reasons, tier: tier.map(Name), gaps: tier.map(gaps).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_posture_is_no_better_than_what_is_proven() {
        let mut troubles = Troubles::default();
        assert_eq!(judge(&troubles, None, false).state, State::Inactive);
        assert_eq!(judge(&troubles, Some(Tier::BpfLsm), false).state, State::Enforcing);
        let observing = judge(&troubles, Some(Tier::BpfLsm), true);
        assert_eq!(
            (observing.state, codes(&observing)),
            (State::AuditOnly, vec!["policy-observes"])
        );
        troubles.set(AUDIT, "disk full".to_owned());
        assert_eq!(judge(&troubles, Some(Tier::BpfLsm), false).state, State::Degraded);
        troubles.set(CANARY, "silent".to_owned());
        let inactive = judge(&troubles, Some(Tier::BpfLsm), false);
        assert_eq!(inactive.state, State::Inactive);
        assert_eq!(codes(&inactive), ["canary-failed", "audit-not-written"]);
        assert_eq!(inactive.tier, None);
        troubles.clear(CANARY);
        troubles.clear(AUDIT);
        assert_eq!(judge(&troubles, Some(Tier::BpfLsm), false).state, State::Enforcing);
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
        use join::{Kept, State};
        let (one, two) = (Path::new("/one"), Path::new("/two"));
        let unknown = State::Unknown { kept: Kept::Nothing };
        assert_eq!(failed_nodes([(one, &State::Standalone), (two, &unknown)].into_iter()), None);
        assert_eq!(
            failed_nodes([(one, &State::RollingBack), (two, &State::Released)].into_iter()),
            None
        );
        let told =
            failed_nodes([(one, &State::JoinFailed), (two, &State::JoinPartial)].into_iter());
        assert_eq!(told.as_deref(), Some("/one is join-failed, /two is join-partial"));
    }
}
