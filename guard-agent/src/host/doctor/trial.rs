//! Has the kernel judge the needs of each tier, and lets go of it at once: nothing is pinned,
//! attached or marked for anybody.
//!
//! The look of a host does not prove that its kernel takes a tier (a verifier that has become
//! stricter, a hook that is gone). So this is the same load that the agent makes. It needs the
//! agent's capabilities.

use guard_common::Tier;

use super::facts::{HostFacts, Trial, Trials};
use crate::host::bpf::load;
use crate::host::fanotify;
use crate::model::errors;

const CAP_SYS_ADMIN: u64 = 1 << 21;

impl HostFacts {
    /// Tries every tier, if this process may. It takes as long as the kernel's verifier does.
    #[must_use]
    pub fn with_trials(mut self) -> Self {
        if self.effective_capabilities.is_some_and(|effective| effective & CAP_SYS_ADMIN != 0) {
            self.trials = Trials([Tier::BpfLsm, Tier::FmodRet, Tier::Fanotify].map(attempt).into());
        }
        self
    }
}

fn attempt(tier: Tier) -> Trial {
    let name = tier.name();
    let passed = Trial { tier: name, refusal: None, log: None };
    if let Err(error) = load::try_tier(tier) {
        return Trial { refusal: Some(error.in_brief()), log: error.verifier(), ..passed };
    }
    if tier == Tier::Fanotify
        && let Err(error) = fanotify::try_marks()
    {
        return Trial { refusal: Some(errors::chain(&error)), ..passed };
    }
    passed
}
