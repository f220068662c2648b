//! The policy in force: taken at start, on edit, and kept for the next start.

use std::path::{Path, PathBuf};

use super::agent::Agent;
use super::{last_good, posture};
use crate::host::clock::now;
use crate::host::mount_table;
use crate::host::policy_file;
use crate::host::roots;
use crate::model::audit::Body;
use crate::model::audit::record::{PolicyBody, PolicyChange};
use crate::model::control::report::RejectedPolicy;
use crate::model::policy::{Policy, PolicyErrors};
use crate::model::time::Time;

/// The policy in force.
#[derive(Debug)]
pub struct LoadedPolicy {
    pub policy: Policy,
    pub text: String,
    pub generation: u64,
    pub loaded: Time,
    pub rejected: Option<RejectedPolicy>,
    /// What the policy file said at the last look, in force or not; or why it could not be read.
    seen: Result<String, String>,
}

/// What came of a look at the policy file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It is in force.
    InForce,
    /// It is another one, and in force from now on.
    Loaded,
    /// It is wrong, and the one before stays. Whether in another way than at the last look.
    Rejected { is_new: bool },
}

impl LoadedPolicy {
    /// Reads and validates a policy file. A file that is wrong comes with its text, as far as it
    /// could be read.
    fn load(path: &Path) -> Result<Self, (PolicyErrors, Result<String, String>)> {
        let text = policy_file::read(path).map_err(|errors| {
            let why = errors.to_string();
            (errors, Err(why))
        })?;
        let policy = crate::model::policy::parse(&text, path)
            .map_err(|errors| (errors, Ok(text.clone())))?;
        let (loaded, seen) = (now().time, Ok(text.clone()));
        Ok(Self { policy, text, generation: 1, loaded, rejected: None, seen })
    }

    /// Reads and validates a policy file; if it is wrong, the last policy that was in force, with
    /// the problems noted: a host must not boot unprotected because of a misspelt key.
    pub fn load_or_last_good(path: &Path, state_dir: &Path) -> Result<Self, PolicyErrors> {
        let (errors, seen) = match Self::load(path) {
            Ok(loaded) => return Ok(loaded),
            Err(wrong) => wrong,
        };
        let Ok(mut last) = Self::load(&last_good::path(state_dir)) else { return Err(errors) };
        last.seen = seen;
        let lines = lines(&errors);
        tracing::error!(file = %path.display(), errors = ?lines, "policy rejected, the last good \
                                                                  one is in force");
        last.rejected = Some(RejectedPolicy { at: now().time, errors: lines });
        Ok(last)
    }

    /// Whether the file says something else than at the last look, whatever came of that.
    pub fn has_changed(&self, path: &Path) -> bool {
        policy_file::read(path).map_err(|errors| errors.to_string()) != self.seen
    }

    /// Reads the file again. A bad one changes nothing but the report.
    pub fn look_again(&mut self, path: &Path, state_dir: &Path) -> Look {
        let loaded =
            Self::load(path).and_then(|loaded| match root_above(&loaded.policy, state_dir) {
                None => Ok(loaded),
                Some(root) => {
                    let what = format!("the root {} holds the state directory", root.display());
                    let hint = "keep the agent's own files outside of all roots".to_owned();
                    Err((PolicyErrors::whole_file(path.to_owned(), what, Some(hint)), loaded.seen))
                }
            });
        match loaded {
            Ok(loaded) if loaded.text == self.text => {
                self.rejected = None;
                self.seen = loaded.seen;
                Look::InForce
            }
            Ok(loaded) => {
                *self = Self { generation: self.generation + 1, ..loaded };
                Look::Loaded
            }
            Err((errors, seen)) => {
                self.seen = seen;
                let errors = lines(&errors);
                let is_new = self.rejected.as_ref().map(|old| &old.errors) != Some(&errors);
                self.rejected = Some(RejectedPolicy { at: now().time, errors });
                Look::Rejected { is_new }
            }
        }
    }
}

impl Agent {
    /// Reads the policy file again: the one way for the watch, the tick, requests and signals. Who
    /// calls it reconciles.
    pub fn reload_policy(&mut self) {
        match self.policy.look_again(&self.options.policy, &self.options.state_dir) {
            Look::InForce => {}
            Look::Loaded => {
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
            Look::Rejected { is_new } => {
                let rejected = self.policy.rejected.iter();
                let errors: Vec<String> =
                    rejected.flat_map(|rejected| rejected.errors.clone()).collect();
                tracing::error!(file = %self.options.policy.display(), ?errors, "policy rejected, \
                                                                                 the old one \
                                                                                 stays");
                if is_new {
                    self.write_policy(PolicyChange::Rejected, errors);
                }
            }
        }
        self.judge_posture();
    }

    /// Keeps the policy in force, for a start that finds a wrong file. Tried again with each tick
    /// if it fails.
    pub fn keep_policy(&mut self) {
        match last_good::save(&self.options.state_dir, &self.policy.text) {
            Ok(()) => self.troubles.clear(posture::LAST_GOOD),
            Err(error) => {
                if self.troubles.detail(posture::LAST_GOOD).is_none() {
                    tracing::error!(%error, "the policy in force could not be kept for the next \
                                             start");
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

/// The root that a directory lies in, if it lies in one, by whatever links.
pub(super) fn root_above(policy: &Policy, directory: &Path) -> Option<PathBuf> {
    // Without a mount table nothing is known to be safe to look at: paths are compared as they are
    // written.
    let table = mount_table::open(mount_table::OWN).ok();
    let place = |path: &Path| match &table {
        Some(snapshot) => roots::resolve_root(path, snapshot).0,
        None => path.to_owned(),
    };
    let of_directory = place(directory);
    let is_above =
        |root: &Path| directory.starts_with(root) || of_directory.starts_with(place(root));
    policy.roots().iter().map(|root| root.path()).find(|root| is_above(root)).map(Path::to_owned)
}

fn lines(errors: &PolicyErrors) -> Vec<String> {
    errors.to_string().lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const GOOD: &str = "version = 1\n[[root]]\npreset = \"incus\"\n";
    const OTHER: &str = "version = 1\n[[root]]\npreset = \"kubelet\"\n";
    const WRONG: &str = "version = 1\n[[root]]\npreset = \"incuss\"\n";

    struct Place {
        directory: tempfile::TempDir,
        policy: LoadedPolicy,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("policy.toml");
            fs::write(&file, GOOD).unwrap();
            let policy = LoadedPolicy::load_or_last_good(&file, directory.path()).unwrap();
            Self { directory, policy }
        }

        fn file(&self) -> PathBuf {
            self.directory.path().join("policy.toml")
        }

        /// As the tick does it: a look only if the file has changed.
        fn tick(&mut self) -> Option<Look> {
            let (file, state_dir) = (self.file(), self.directory.path().to_owned());
            self.policy.has_changed(&file).then(|| self.policy.look_again(&file, &state_dir))
        }
    }

    #[test]
    fn a_rejected_policy_is_looked_at_again_by_the_tick() {
        let mut place = Place::new();
        assert_eq!(place.tick(), None);
        fs::write(place.file(), WRONG).unwrap();
        assert_eq!(place.tick(), Some(Look::Rejected { is_new: true }));
        assert_eq!(place.tick(), None, "the same text is wrong in the same way");
        fs::write(place.file(), WRONG.replace("incuss", "incusss")).unwrap();
        assert_eq!(place.tick(), Some(Look::Rejected { is_new: true }));
        fs::write(place.file(), GOOD).unwrap();
        assert_eq!(place.tick(), Some(Look::InForce));
        assert!(place.policy.rejected.is_none());
        fs::write(place.file(), OTHER).unwrap();
        assert_eq!(place.tick(), Some(Look::Loaded));
        assert_eq!((place.policy.generation, place.policy.text.as_str()), (2, OTHER));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_looked_at_again_too() {
        let mut place = Place::new();
        fs::remove_file(place.file()).unwrap();
        assert_eq!(place.tick(), Some(Look::Rejected { is_new: true }));
        assert_eq!(place.tick(), None);
        // Unreadable in another way: the report follows.
        fs::create_dir(place.file()).unwrap();
        assert_eq!(place.tick(), Some(Look::Rejected { is_new: true }));
        let errors = &place.policy.rejected.as_ref().unwrap().errors;
        assert!(errors[0].contains("not a regular file"), "{errors:?}");
        fs::remove_dir(place.file()).unwrap();
        fs::write(place.file(), GOOD).unwrap();
        assert_eq!(place.tick(), Some(Look::InForce));
    }

    #[test]
    fn a_start_with_the_last_good_policy_ends_with_the_first_good_file() {
        let place = Place::new();
        last_good::save(place.directory.path(), GOOD).unwrap();
        fs::write(place.file(), WRONG).unwrap();
        let policy =
            LoadedPolicy::load_or_last_good(&place.file(), place.directory.path()).unwrap();
        let mut place = Place { policy, ..place };
        assert!(place.policy.rejected.is_some());
        assert_eq!(place.tick(), None);
        fs::write(place.file(), GOOD).unwrap();
        assert_eq!(place.tick(), Some(Look::InForce));
        assert!(place.policy.rejected.is_none());
    }

    #[test]
    fn a_root_around_the_state_directory_is_refused_while_running_too() {
        let mut place = Place::new();
        let root = place.directory.path().display().to_string();
        fs::write(
            place.file(),
            format!(
                "version = 1\n[[root]]\npreset = \"incus\"\npath = \
                 {root:?}\n"
            ),
        )
        .unwrap();
        assert_eq!(place.tick(), Some(Look::Rejected { is_new: true }));
        let link = place.directory.path().join("link");
        std::os::unix::fs::symlink(".", &link).unwrap();
        let root = link.display().to_string();
        fs::write(
            place.file(),
            format!(
                "version = 1\n[[root]]\npreset = \"incus\"\npath = \
                 {root:?}\n"
            ),
        )
        .unwrap();
        assert_eq!(place.tick(), Some(Look::Rejected { is_new: true }), "by a link");
        assert_eq!(place.policy.generation, 1);
    }
}
