//! Which tier is put in force, and whether it is a weaker one than this host has had.
//!
//! The strongest one that answers the canary. All share the maps, and a deletion passes only if all
//! that are attached allow it: while one tier takes another's place there is no gap.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use guard_common::Tier;

use crate::host::bpf::LoadError;
use crate::host::bpf::load;
use crate::host::bpf::load::{BareMaps, Prepared};
use crate::host::bpf::pins::Pins;
use crate::host::bpf::{CanaryError, Maps, Programs};
use crate::host::doctor;
use crate::model::errors::chain;
use crate::model::policy::TierChoice;

const ACTIVE_LSMS: &str = "/sys/kernel/security/lsm";

/// Foundation of a tier, before it is in force.
#[derive(Debug)]
pub(super) enum Foundation {
    /// Programs in the kernel.
    Programs(Prepared),
    /// Maps only: the answers come from user space.
    Maps(BareMaps),
}

impl Foundation {
    pub(super) fn maps(&self) -> Result<Maps, LoadError> {
        match self {
            Self::Programs(prepared) => prepared.maps(),
            Self::Maps(bare) => bare.maps(),
        }
    }

    pub(super) fn map_directory(&self) -> PathBuf {
        match self {
            Self::Programs(prepared) => prepared.map_directory(),
            Self::Maps(bare) => bare.map_directory(),
        }
    }
}

/// The tier in force, or the maps for the next one.
pub(super) enum Reached {
    /// The last tier with programs, and the canary's result.
    Programs(Programs, Result<(), CanaryError>),
    /// None with programs: the tier that answers from user space is next.
    Maps(BareMaps),
}

/// The tiers that are still to be tried, and why others were not put in force.
#[derive(Debug)]
pub(super) struct Ladder {
    pins: Pins,
    untried: VecDeque<Tier>,
    /// For people: `bpf-lsm: why`.
    pub(super) passed_over: Vec<String>,
}

impl Ladder {
    /// The tiers that policy allows on this host. `has_programs`: some are pinned, which are of
    /// this boot.
    pub(super) fn of_this_host(pins: &Pins, has_programs: bool, choice: TierChoice) -> Self {
        let active = std::fs::read_to_string(ACTIVE_LSMS).ok();
        let (mut untried, passed_over) = candidates(choice, active.as_deref());
        if choice == TierChoice::Auto && has_programs {
            // An older agent's programs are stronger than their replacement would be: rather they
            // go on, and this agent ends with the reason.
            untried.retain(|tier| *tier != Tier::Fanotify);
        }
        Self { pins: pins.clone(), untried, passed_over }
    }

    /// Prepares the strongest one left that this kernel takes.
    pub(super) fn next(&mut self) -> Result<Foundation, LoadError> {
        loop {
            // The caller has seen that there is a next one.
            let tier = self.untried.pop_front().unwrap_or(Tier::BpfLsm);
            let prepared = match tier {
                Tier::Fanotify => load::prepare_maps(&self.pins).map(Foundation::Maps),
                Tier::BpfLsm | Tier::FmodRet => {
                    load::prepare(&self.pins, tier).map(Foundation::Programs)
                }
            };
            match prepared {
                Err(error) if self.goes_on_after(&error) => {
                    self.pass_over(tier, &error, &error.in_brief());
                }
                result => return result,
            }
        }
    }

    /// Whether there are tiers still to be tried.
    pub(super) fn has_more(&self) -> bool {
        !self.untried.is_empty()
    }

    pub(super) fn goes_on_after(&self, error: &LoadError) -> bool {
        !self.untried.is_empty() && error.is_of_the_tier()
    }

    /// Notes why a tier was not put in force.
    pub(super) fn pass_over(
        &mut self,
        tier: Tier,
        error: &(dyn std::error::Error + 'static),
        in_brief: &str,
    ) {
        let (name, why) = (tier.name(), chain(error));
        tracing::warn!(tier = name, why, "this tier cannot be had, the next one is tried");
        // The verifier's words are for the log. A known obstacle to the tier says more.
        let known = doctor::known_obstacle(&doctor::HostFacts::gather(Path::new("/")), tier);
        self.passed_over.push(format!("{name}: {}", known.as_deref().unwrap_or(in_brief)));
    }
}

/// The tiers to try, strongest first, and why which are not. If `bpf` is not among the active LSMs,
/// its hooks are never called: a load would be wasted. Pure.
fn candidates(choice: TierChoice, active_lsms: Option<&str>) -> (VecDeque<Tier>, Vec<String>) {
    match (choice, active_lsms.map(str::trim)) {
        (TierChoice::Only(tier), _) => (VecDeque::from([tier]), Vec::new()),
        (TierChoice::Auto, Some(list))
            if !list.is_empty() && list.split(',').all(|lsm| lsm != "bpf") =>
        {
            let why = format!("bpf-lsm: bpf is not among the kernel's active LSMs ({list})");
            (VecDeque::from([Tier::FmodRet, Tier::Fanotify]), vec![why])
        }
        (TierChoice::Auto, _) => {
            (VecDeque::from([Tier::BpfLsm, Tier::FmodRet, Tier::Fanotify]), Vec::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_comes_first_and_what_cannot_prove_itself_is_not_tried() {
        let tried = |choice, lsms| Vec::from(candidates(choice, lsms).0);
        let all = [Tier::BpfLsm, Tier::FmodRet, Tier::Fanotify];
        assert_eq!(tried(TierChoice::Auto, Some("capability,yama,bpf\n")), all);
        assert_eq!(tried(TierChoice::Auto, None), all);
        assert_eq!(tried(TierChoice::Auto, Some("")), all);
        assert_eq!(
            tried(TierChoice::Auto, Some("capability,bpfx")),
            [Tier::FmodRet, Tier::Fanotify]
        );
        assert_eq!(tried(TierChoice::Only(Tier::BpfLsm), Some("yama")), [Tier::BpfLsm]);
        let (_, why) = candidates(TierChoice::Auto, Some("yama\n"));
        assert_eq!(why, ["bpf-lsm: bpf is not among the kernel's active LSMs (yama)"]);
    }
}
