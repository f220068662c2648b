//! The policy in force: taken at start, on edit, and kept for the next start.

use std::path::Path;

use super::owner::{Owner, now};
use super::{last_good, posture};
use crate::audit::Body;
use crate::audit::record::{PolicyBody, PolicyChange};
use crate::control::report::RejectedPolicy;
use crate::events::Time;
use crate::policy::{Policy, PolicyErrors, file};

/// The policy in force.
#[derive(Debug)]
pub struct LoadedPolicy {
    pub policy: Policy,
    pub text: String,
    pub generation: u64,
    pub loaded: Time,
    pub rejected: Option<RejectedPolicy>,
    /// What the policy file said at the last look, in force or not; nothing if it could not be read.
    seen: Option<String>,
}

impl LoadedPolicy {
    /// Reads and validates a policy file. A file that is wrong comes with its text, as far as it could be read.
    fn load(path: &Path) -> Result<Self, (PolicyErrors, Option<String>)> {
        let text = file::read(path).map_err(|errors| (errors, None))?;
        let policy = crate::policy::parse(&text, path).map_err(|errors| (errors, Some(text.clone())))?;
        let (loaded, seen) = (now().time, Some(text.clone()));
        Ok(Self { policy, text, generation: 1, loaded, rejected: None, seen })
    }

    /// Reads and validates a policy file; if it is wrong, the last policy that was in force, with the
    /// problems noted: a host must not boot unprotected because of a misspelt key.
    pub fn load_or_last_good(path: &Path, state_dir: &Path) -> Result<Self, PolicyErrors> {
        let (errors, seen) = match Self::load(path) {
            Ok(loaded) => return Ok(loaded),
            Err(wrong) => wrong,
        };
        let Ok(mut last) = Self::load(&last_good::path(state_dir)) else { return Err(errors) };
        last.seen = seen;
        let lines: Vec<String> = errors.to_string().lines().map(str::to_owned).collect();
        tracing::error!(file = %path.display(), errors = ?lines, "policy rejected, the last good one is in force");
        last.rejected = Some(RejectedPolicy { at: now().time, errors: lines });
        Ok(last)
    }
}

impl Owner {
    /// Reads the policy file again. A bad one changes nothing but the report.
    pub fn reload_policy(&mut self) {
        match LoadedPolicy::load(&self.options.policy) {
            Ok(loaded) if loaded.text == self.policy.text => {
                self.policy.rejected = None;
                self.policy.seen = loaded.seen;
            }
            Ok(mut loaded) => {
                loaded.generation = self.policy.generation + 1;
                self.policy = loaded;
                self.incidents.set_interval(interval_ns(&self.policy.policy));
                self.keep_policy();
                self.follow_policy();
                self.judge_tier();
                tracing::info!(
                    generation = self.policy.generation,
                    hash = self.policy.policy.hash(),
                    "policy loaded"
                );
                self.write_policy(PolicyChange::Loaded, Vec::new());
            }
            Err((errors, seen)) => {
                self.policy.seen = seen;
                let errors: Vec<String> = errors.to_string().lines().map(str::to_owned).collect();
                tracing::error!(file = %self.options.policy.display(), ?errors, "policy rejected, the old one stays");
                let rejected = RejectedPolicy { at: now().time, errors: errors.clone() };
                if self.policy.rejected.as_ref().map(|old| &old.errors) != Some(&errors) {
                    self.write_policy(PolicyChange::Rejected, errors);
                }
                self.policy.rejected = Some(rejected);
            }
        }
        self.judge_posture();
    }

    /// Whether the file is another than at the last look, whatever came of that: for hosts where it cannot be watched.
    pub(super) fn policy_file_changed(&self) -> bool {
        file::read(&self.options.policy).ok() != self.policy.seen
    }

    /// Keeps the policy in force, for a start that finds a wrong file. Tried again with each tick if it fails.
    pub fn keep_policy(&mut self) {
        match last_good::save(&self.options.state_dir, &self.policy.text) {
            Ok(()) => self.troubles.clear(posture::LAST_GOOD),
            Err(error) => {
                if self.troubles.detail(posture::LAST_GOOD).is_none() {
                    tracing::error!(%error, "the policy in force could not be kept for the next start");
                }
                self.troubles.set(posture::LAST_GOOD, error.to_string());
            }
        }
    }

    /// Writes down what became of a policy.
    pub(super) fn write_policy(&mut self, change: PolicyChange, errors: Vec<String>) {
        self.write(Body::Policy(PolicyBody {
            change,
            path: self.options.policy.display().to_string(),
            generation: self.policy.generation,
            hash: self.policy.policy.hash().to_owned(),
            errors,
        }));
    }
}

/// How often an incident that goes on is summed up.
pub(super) fn interval_ns(policy: &Policy) -> u64 {
    u64::try_from(policy.incident_interval().as_nanos()).unwrap_or(u64::MAX)
}
