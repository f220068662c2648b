//! Which tiers this host can have, and the one change that would raise it. Pure.

use guard_common::Tier;

use super::{
    Check, CheckState, HostFacts, KernelOption, active_lsm, bpffs, btf, config_bpf_lsm, kernel_version,
    lockdown, security_path,
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
            None => Check::ok(&code, &name, available(tier)),
            Some(obstacle) => {
                let (state, word) = match obstacle.state {
                    CheckState::Fail => (worst, "not available"),
                    CheckState::Ok | CheckState::Warn => (CheckState::Warn, "cannot be told"),
                };
                let found = format!("{word}: {}: {}", obstacle.name, obstacle.found);
                Check::new(&code, &name, state, found, obstacle.fix)
            }
        }
    })
}

fn available(tier: Tier) -> &'static str {
    match tier {
        Tier::FmodRet => "available: taken where bpf-lsm is not",
        Tier::Fanotify => "available: taken where neither is, and leaves much open (README)",
        Tier::BpfLsm => "available",
    }
}

/// What is known to stand against a tier.
pub fn known_obstacle(facts: &HostFacts, tier: Tier) -> Option<String> {
    let check = obstacle(facts, tier).filter(|check| check.state == CheckState::Fail)?;
    Some(format!("{}: {}", check.name, check.found))
}

/// Whether nothing is known to stand against a tier.
pub(super) fn is_available(facts: &HostFacts, tier: Tier) -> bool {
    known_obstacle(facts, tier).is_none()
}

/// The first thing that stands against a tier, or may.
fn obstacle(facts: &HostFacts, tier: Tier) -> Option<Check> {
    let checks = match tier {
        Tier::BpfLsm => {
            vec![btf(facts), config_bpf_lsm(facts), security_path(facts), lockdown(facts), active_lsm(facts)]
        }
        Tier::FmodRet => vec![btf(facts), bpf_events(facts), security_path(facts), lockdown(facts)],
        Tier::Fanotify => vec![fanotify(facts), kernel_version(facts), bpffs(facts)],
    };
    let first = |state| checks.iter().find(|check| check.state == state).cloned();
    first(CheckState::Fail).or_else(|| first(CheckState::Warn))
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
            let fix = "boot a kernel built with CONFIG_FANOTIFY=y and CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y";
            Check::fail(code, name, "not built in", fix)
        }
    }
}
