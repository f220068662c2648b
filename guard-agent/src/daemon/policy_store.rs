//! The policy in force: taken at start, on edit, and kept for the next start.
//!
//! [`PolicyStore::reload`] is the one way to another policy, for the watch of the file, the tick,
//! requests and signals.

use std::io;
use std::path::{Path, PathBuf};

use super::last_good;
use crate::host::clock::now;
use crate::host::mount_table;
use crate::host::policy_file;
use crate::host::roots;
use crate::model::audit::record::{PolicyBody, PolicyChange};
use crate::model::control::report::RejectedPolicy;
use crate::model::policy::{Policy, PolicyErrors};
use crate::model::time::Time;

/// The policy in force, its file, and the result of the last attempt to take another one.
#[derive(Debug)]
pub(super) struct PolicyStore {
    pub current: Policy,
    pub text: String,
    pub generation: u64,
    pub loaded: Time,
    pub rejected: Option<RejectedPolicy>,
    /// Text of the policy file at the last attempt, in force or not; or why it could not be read.
    seen: Result<String, String>,
    file: PathBuf,
    state_dir: PathBuf,
}

/// A policy file that was read and is right.
struct Loaded {
    policy: Policy,
    text: String,
}

/// Problems of a policy file, with its text as far as it could be read.
type Wrong = (PolicyErrors, Result<String, String>);

/// Result of reading the policy file again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reload {
    /// The file has the policy in force.
    Unchanged,
    /// The file says something else, which is in force from now on.
    Loaded,
    /// The file is wrong, and the policy before it stays. `is_new`: it is wrong in another way than
    /// at the last attempt.
    Rejected { is_new: bool },
}

impl Loaded {
    fn read(file: &Path) -> Result<Self, Wrong> {
        let text = policy_file::read(file).map_err(|errors| {
            let why = errors.to_string();
            (errors, Err(why))
        })?;
        match crate::model::policy::parse(&text, file) {
            Ok(policy) => Ok(Self { policy, text }),
            Err(errors) => Err((errors, Ok(text))),
        }
    }
}

impl PolicyStore {
    /// Reads and validates a policy file; if it is wrong, the last policy that was in force, with
    /// the problems noted: a host must not boot unprotected because of a misspelt key.
    pub(super) fn open(file: &Path, state_dir: &Path) -> Result<Self, PolicyErrors> {
        let (loaded, wrong) = match Loaded::read(file) {
            Ok(loaded) => (loaded, None),
            Err(wrong) => match Loaded::read(&last_good::path(state_dir)) {
                Ok(last) => (last, Some(wrong)),
                Err(_) => return Err(wrong.0),
            },
        };
        let mut store = Self {
            seen: Ok(loaded.text.clone()),
            current: loaded.policy,
            text: loaded.text,
            generation: 1,
            loaded: now().time,
            rejected: None,
            file: file.to_owned(),
            state_dir: state_dir.to_owned(),
        };
        if let Some((errors, seen)) = wrong {
            let errors = lines(&errors);
            tracing::error!(file = %file.display(), ?errors, "policy rejected, the last good one \
                                                              is in force");
            store.rejected = Some(RejectedPolicy { at: now().time, errors });
            store.seen = seen;
        }
        Ok(store)
    }

    /// The policy file.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Whether the file differs from the last attempt, successful or not.
    pub(super) fn has_changed(&self) -> bool {
        policy_file::read(&self.file).map_err(|errors| errors.to_string()) != self.seen
    }

    /// Reads the file again. A wrong one changes nothing but the report.
    pub(super) fn reload(&mut self) -> Reload {
        match Loaded::read(&self.file).and_then(|loaded| self.check(loaded)) {
            Ok(loaded) => {
                self.seen = Ok(loaded.text.clone());
                self.rejected = None;
                if loaded.text == self.text {
                    return Reload::Unchanged;
                }
                (self.current, self.text, self.loaded) = (loaded.policy, loaded.text, now().time);
                self.generation += 1;
                let (generation, hash) = (self.generation, self.current.hash());
                tracing::info!(generation, hash, "policy loaded");
                Reload::Loaded
            }
            Err((errors, seen)) => {
                self.seen = seen;
                let errors = lines(&errors);
                let file = self.file.display();
                tracing::error!(%file, ?errors, "policy rejected, the old one stays");
                let is_new = self.rejected.as_ref().map(|old| &old.errors) != Some(&errors);
                self.rejected = Some(RejectedPolicy { at: now().time, errors });
                Reload::Rejected { is_new }
            }
        }
    }

    /// The agent's own files must not lie in a guarded root.
    fn check(&self, loaded: Loaded) -> Result<Loaded, Wrong> {
        let Some(root) = root_above(&loaded.policy, &self.state_dir) else { return Ok(loaded) };
        let what = format!("the root {} holds the state directory", root.display());
        let hint = "keep the agent's own files outside of all roots".to_owned();
        let errors = PolicyErrors::whole_file(self.file.clone(), what, Some(hint));
        Err((errors, Ok(loaded.text)))
    }

    /// Keeps the policy in force, for a start that finds a wrong file.
    pub(super) fn keep(&self) -> io::Result<()> {
        last_good::save(&self.state_dir, &self.text)
    }

    /// The problems of the file that was rejected last.
    pub(super) fn errors(&self) -> &[String] {
        self.rejected.as_ref().map_or(&[], |rejected| &rejected.errors)
    }

    /// A record of a policy's change.
    pub(super) fn record(&self, change: PolicyChange, errors: Vec<String>) -> PolicyBody {
        PolicyBody {
            change,
            path: self.file.display().to_string(),
            generation: self.generation,
            hash: self.current.hash().to_owned(),
            errors,
        }
    }
}

/// Interval between summaries of an incident that goes on.
pub(super) fn interval_ns(policy: &Policy) -> u64 {
    u64::try_from(policy.incident_interval().as_nanos()).unwrap_or(u64::MAX)
}

/// The root that a directory lies in, if it lies in one, by any links.
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
        policy: PolicyStore,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("policy.toml");
            fs::write(&file, GOOD).unwrap();
            let policy = PolicyStore::open(&file, directory.path()).unwrap();
            Self { directory, policy }
        }

        fn file(&self) -> PathBuf {
            self.directory.path().join("policy.toml")
        }

        /// As the tick does it: only if the file has changed.
        fn tick(&mut self) -> Option<Reload> {
            self.policy.has_changed().then(|| self.policy.reload())
        }
    }

    #[test]
    fn a_rejected_policy_is_looked_at_again_by_the_tick() {
        let mut place = Place::new();
        assert_eq!(place.tick(), None);
        fs::write(place.file(), WRONG).unwrap();
        assert_eq!(place.tick(), Some(Reload::Rejected { is_new: true }));
        assert_eq!(place.tick(), None, "the same text is wrong in the same way");
        fs::write(place.file(), WRONG.replace("incuss", "incusss")).unwrap();
        assert_eq!(place.tick(), Some(Reload::Rejected { is_new: true }));
        fs::write(place.file(), GOOD).unwrap();
        assert_eq!(place.tick(), Some(Reload::Unchanged));
        assert!(place.policy.rejected.is_none());
        fs::write(place.file(), OTHER).unwrap();
        assert_eq!(place.tick(), Some(Reload::Loaded));
        assert_eq!((place.policy.generation, place.policy.text.as_str()), (2, OTHER));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_looked_at_again_too() {
        let mut place = Place::new();
        fs::remove_file(place.file()).unwrap();
        assert_eq!(place.tick(), Some(Reload::Rejected { is_new: true }));
        assert_eq!(place.tick(), None);
        // Unreadable in another way: the report follows.
        fs::create_dir(place.file()).unwrap();
        assert_eq!(place.tick(), Some(Reload::Rejected { is_new: true }));
        let errors = &place.policy.rejected.as_ref().unwrap().errors;
        assert!(errors[0].contains("not a regular file"), "{errors:?}");
        fs::remove_dir(place.file()).unwrap();
        fs::write(place.file(), GOOD).unwrap();
        assert_eq!(place.tick(), Some(Reload::Unchanged));
    }

    #[test]
    fn a_start_with_the_last_good_policy_ends_with_the_first_good_file() {
        let place = Place::new();
        last_good::save(place.directory.path(), GOOD).unwrap();
        fs::write(place.file(), WRONG).unwrap();
        let policy = PolicyStore::open(&place.file(), place.directory.path()).unwrap();
        let mut place = Place { policy, ..place };
        assert!(place.policy.rejected.is_some());
        assert_eq!(place.tick(), None);
        fs::write(place.file(), GOOD).unwrap();
        assert_eq!(place.tick(), Some(Reload::Unchanged));
        assert!(place.policy.rejected.is_none());
    }

    #[test]
    fn a_root_around_the_state_directory_is_refused_while_running_too() {
        let mut place = Place::new();
        let link = place.directory.path().join("link");
        std::os::unix::fs::symlink(".", &link).unwrap();
        for root in [place.directory.path().to_owned(), link] {
            let text = format!("version = 1\n[[root]]\npreset = \"incus\"\npath = {root:?}\n");
            fs::write(place.file(), text).unwrap();
            assert_eq!(place.tick(), Some(Reload::Rejected { is_new: true }), "{root:?}");
        }
        assert_eq!(place.policy.generation, 1);
    }
}
