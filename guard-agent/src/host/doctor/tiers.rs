//! The tiers that this host can have, and the one change that would raise it. Pure.

use guard_common::Tier;

use super::check::{Check, CheckState};
use super::facts::{HostFacts, KernelOption, Trial};
use super::host::{
    active_lsm, bpffs, btf, config_bpf_lsm, kernel_version, lockdown, security_path,
};

/// One line a tier, the strongest first.
pub(super) fn tiers(facts: &HostFacts) -> [Check; 3] {
    let worst = if is_available(facts, Tier::BpfLsm) || is_available(facts, Tier::FmodRet) {
        CheckState::Warn
    } else {
        CheckState::Fail
    };
    [Tier::BpfLsm, Tier::FmodRet, Tier::Fanotify].map(|tier| {
        let (code, name) = (format!("tier-{}", tier.name()), format!("tier {}", tier.name()));
        match obstacle(facts, tier) {
            None => Check::ok(&code, &name, available(facts, tier)),
            Some(obstacle) => {
                let (state, word) = match obstacle.state {
                    CheckState::Fail => (worst, "not available"),
                    CheckState::Ok | CheckState::Warn => (CheckState::Warn, "cannot be told"),
                };
                let found = format!("{word}: {}: {}", obstacle.name, obstacle.found);
                Check { log: obstacle.log, ..Check::new(&code, &name, state, found, obstacle.fix) }
            }
        }
    })
}

fn available(facts: &HostFacts, tier: Tier) -> String {
    // Only a trial knows the kernel's answer.
    let word =
        if facts.trials.of(tier).is_some() { "available" } else { "looks available (not tried)" };
    let rest = match tier {
        Tier::FmodRet => ": taken where bpf-lsm is not",
        Tier::Fanotify => ": taken where neither is, and leaves much open (docs/TIERS.md)",
        Tier::BpfLsm => "",
    };
    format!("{word}{rest}")
}

/// The known obstacle to a tier.
pub fn known_obstacle(facts: &HostFacts, tier: Tier) -> Option<String> {
    let check = obstacle(facts, tier).filter(|check| check.state == CheckState::Fail)?;
    Some(format!("{}: {}", check.name, check.found))
}

/// Whether nothing is known to stand against a tier.
pub(super) fn is_available(facts: &HostFacts, tier: Tier) -> bool {
    known_obstacle(facts, tier).is_none()
}

/// First obstacle to a tier, known or possible: a failed check, else the kernel's refusal in a
/// trial, else a warning. A passed trial replaces the tier's own checks.
fn obstacle(facts: &HostFacts, tier: Tier) -> Option<Check> {
    let trial = facts.trials.of(tier);
    let mut checks = match tier {
        _ if trial.is_some_and(|trial| trial.refusal.is_none()) => Vec::new(),
        Tier::BpfLsm => {
            vec![btf(facts), config_bpf_lsm(facts), security_path(facts), lockdown(facts)]
        }
        Tier::FmodRet => vec![btf(facts), bpf_events(facts), security_path(facts), lockdown(facts)],
        Tier::Fanotify => vec![fanotify(facts), kernel_version(facts)],
    };
    // A load does not ask whether it is called, nor where it is pinned.
    checks.push(bpffs(facts));
    if tier == Tier::BpfLsm {
        checks.push(active_lsm(facts));
    }
    let first = |state| checks.iter().find(|check| check.state == state).cloned();
    first(CheckState::Fail).or_else(|| trial.and_then(refused)).or_else(|| first(CheckState::Warn))
}

fn refused(trial: &Trial) -> Option<Check> {
    let (code, name) = ("kernel-refuses", "tried");
    let fix = match &trial.log {
        Some(_) => "report the verifier's message: guardctl doctor --verbose",
        None => "see the other lines, which may say why; else report it",
    };
    let check = Check::fail(code, name, trial.refusal.as_ref()?, fix);
    Some(Check { log: trial.log.clone(), ..check })
}

fn bpf_events(facts: &HostFacts) -> Check {
    let (code, name) = ("bpf-events-not-built", "CONFIG_BPF_EVENTS");
    match facts.bpf_events {
        KernelOption::Unset => {
            Check::fail(code, name, "not built in", "boot a kernel built with CONFIG_BPF_EVENTS=y")
        }
        // BPF LSM, whose hooks tell of it, needs it too; where nothing tells, the load will.
        KernelOption::Set | KernelOption::Unknown => Check::ok(code, name, "built in"),
    }
}

fn fanotify(facts: &HostFacts) -> Check {
    let (code, name) = ("fanotify-not-built", "CONFIG_FANOTIFY_ACCESS_PERMISSIONS");
    match facts.fanotify_permissions {
        KernelOption::Set => Check::ok(code, name, "built in"),
        // Distributions build both or none; where nothing tells, the agent's start will.
        KernelOption::Unknown if facts.has_fanotify => {
            Check::ok(code, name, "built in (/proc/sys/fs/fanotify)")
        }
        KernelOption::Unset | KernelOption::Unknown => {
            let fix = "boot a kernel built with CONFIG_FANOTIFY=y and \
                       CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y";
            Check::fail(code, name, "not built in", fix)
        }
    }
}
