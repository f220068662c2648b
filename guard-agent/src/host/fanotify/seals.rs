//! Mounts that were made read-only, on disk before they are: `seals.json` in the state directory.
//!
//! One JSON file, replaced whole like the state file. An agent that dies in between finds the
//! mount's former state here, whether or not it has been changed yet. Mounts do not outlive a boot,
//! so the file of another boot is empty.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::marks;
use super::order::SealedMount;
use crate::host::durable;

const NAME: &str = "seals.json";
const VERSION: u32 = 1;

/// The file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}")]
pub struct SealsError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A later version's further fields are passed over: mounts that were sealed by it are restored all
/// the same.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    boot_id: String,
    mounts: BTreeSet<SealedMount>,
}

/// The file, and its content.
#[derive(Debug)]
pub(super) struct Seals {
    path: PathBuf,
    boot_id: String,
    mounts: BTreeSet<SealedMount>,
}

impl Seals {
    /// Reads the file of this boot. One that cannot be understood is an error: it may name mounts
    /// that would stay read-only for ever.
    pub(super) fn open(directory: &Path, boot_id: &str) -> Result<Self, SealsError> {
        let path = directory.join(NAME);
        let failed = |operation, source| SealsError { operation, path: path.clone(), source };
        let mounts = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(source) => return Err(failed("read", source)),
            Ok(bytes) => {
                let content: Content = serde_json::from_slice(&bytes)
                    .map_err(|error| failed("understand", error.into()))?;
                if content.version != VERSION {
                    return Err(failed(
                        "understand",
                        io::Error::other(format!("version {}", content.version)),
                    ));
                }
                if content.boot_id == boot_id { content.mounts } else { BTreeSet::new() }
            }
        };
        Ok(Self { path, boot_id: boot_id.to_owned(), mounts })
    }

    /// The mounts that are read-only, or about to be.
    pub(super) fn mounts(&self) -> &BTreeSet<SealedMount> {
        &self.mounts
    }

    /// Replaces the file, unless it says so already.
    pub(super) fn record(&mut self, mounts: BTreeSet<SealedMount>) -> Result<(), SealsError> {
        if mounts == self.mounts {
            return Ok(());
        }
        let content = Content { version: VERSION, boot_id: self.boot_id.clone(), mounts };
        let bytes = serde_json::to_vec_pretty(&content)
            .expect("the content has string keys and finite numbers");
        durable::replace(&self.path, &bytes).map_err(|(operation, source)| SealsError {
            operation,
            path: self.path.clone(),
            source,
        })?;
        self.mounts = content.mounts;
        Ok(())
    }

    /// Makes every recorded mount writable again, for the end of all enforcement. Returns the
    /// failures.
    pub(super) fn restore_all(&mut self) -> Vec<(PathBuf, io::Error)> {
        let mut problems = Vec::new();
        let mut left = BTreeSet::new();
        for record in &self.mounts {
            let path = &record.mountpoint.0;
            let mount = marks::open_mount(path, record.mount_id);
            let restored = mount.and_then(|mount| match mount {
                Some(mount) => marks::set_read_only(&mount, false),
                None => Ok(()),
            });
            if let Err(error) = restored {
                left.insert(record.clone());
                problems.push((path.clone(), error));
            }
        }
        if let Err(error) = self.record(left) {
            problems.push((self.path.clone(), error.source));
        }
        problems
    }
}

/// Number of mounts of this boot that are recorded as read-only.
pub fn recorded(directory: &Path, boot_id: &str) -> Result<usize, SealsError> {
    Ok(Seals::open(directory, boot_id)?.mounts().len())
}

#[cfg(test)]
mod tests {
    use super::super::order::PathText;
    use super::*;

    fn sealed(mount_id: u32) -> BTreeSet<SealedMount> {
        [SealedMount { mount_id, dev: 43, mountpoint: PathText("/r/pool".into()) }].into()
    }

    #[test]
    fn seals_outlive_the_agent_and_end_with_the_boot() {
        let directory = tempfile::tempdir().unwrap();
        let mut seals = Seals::open(directory.path(), "boot-1").unwrap();
        seals.record(sealed(41)).unwrap();
        assert_eq!(*Seals::open(directory.path(), "boot-1").unwrap().mounts(), sealed(41));
        assert!(Seals::open(directory.path(), "boot-2").unwrap().mounts().is_empty());
    }

    #[test]
    fn what_cannot_be_written_is_not_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let mut seals = Seals::open(directory.path(), "boot-1").unwrap();
        fs::create_dir(directory.path().join("seals.json.new")).unwrap();
        assert!(seals.record(sealed(41)).is_err() && seals.mounts().is_empty());
    }

    #[test]
    fn a_damaged_file_is_no_empty_one() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["{", "{\"version\":9,\"boot_id\":\"boot-1\",\"mounts\":[]}"] {
            fs::write(directory.path().join(NAME), text).unwrap();
            assert!(Seals::open(directory.path(), "boot-1").is_err(), "{text}");
        }
    }
}
