//! State that survives a restart: seals of operators, and granted leases with their holders.
//!
//! One JSON file, replaced whole (temporary file, fsync, rename, fsync of the directory), and then
//! a copy of it, so that one damaged file costs nothing. The kernel's enforcement depends on
//! neither: a release ends by the kernel's clock, and an operator's seal is marked in the pool's
//! entry until the next boot.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::host::durable;
use crate::model::state::{Lease, SavedState, text};

const NAME: &str = "state.json";
const COPY: &str = "state.json.copy";

/// The state could not be read or written.
#[derive(Debug, Error)]
#[error("{operation} {path}")]
pub struct StateError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The file.
#[derive(Debug)]
pub struct StateFile {
    directory: PathBuf,
    pub state: SavedState,
    /// The state on disk is older, or damaged.
    unsaved: bool,
}

/// Content of the two files.
struct Found {
    /// `None` without any file.
    state: Option<SavedState>,
    /// Files that cannot be understood, with the reasons.
    damaged: Vec<(PathBuf, String)>,
    /// Parts that may be missing in the state.
    lost: Option<String>,
}

impl StateFile {
    /// Reads the file of this boot or an earlier one. One that cannot be understood is kept aside.
    /// The second value names the parts that may have been lost.
    pub fn open(directory: &Path, boot_id: &str) -> Result<(Self, Option<String>), StateError> {
        let Found { state, damaged, mut lost } = find(directory, boot_id)?;
        for (path, why) in &damaged {
            let aside = durable::set_aside(path).map_err(|source| StateError {
                operation: "set aside",
                path: path.clone(),
                source,
            })?;
            let aside = aside.display().to_string();
            tracing::warn!(path = %path.display(), why, aside, "a state file is damaged");
            if let Some(lost) = &mut lost {
                lost.push_str(&format!("; kept as {aside}"));
            }
        }
        let mut state = state.unwrap_or_else(|| SavedState::empty(boot_id));
        if state.boot_id != boot_id {
            state.leases.clear();
            state.foreign.forget_leases();
            boot_id.clone_into(&mut state.boot_id);
        }
        lost = [lost, text::unknown_seals(&state)]
            .into_iter()
            .flatten()
            .reduce(|all, one| all + "; " + &one);
        Ok((Self { directory: directory.to_owned(), state, unsaved: !damaged.is_empty() }, lost))
    }

    /// Whether the state on disk is older: to be saved soon.
    pub fn is_unsaved(&self) -> bool {
        self.unsaved
    }

    /// Seals that the kernel's maps hold by an operator's word are an operator's, even if the file
    /// says otherwise.
    pub fn adopt_seals(&mut self, in_force: &BTreeSet<u64>) {
        let before = self.state.sealed.len();
        self.state.sealed.extend(in_force);
        self.unsaved |= self.state.sealed.len() != before;
    }

    /// Replaces the file, and then its copy.
    pub fn save(&mut self) -> Result<(), StateError> {
        self.unsaved = true;
        self.state.saved += 1;
        let bytes = text::write(&self.state);
        for name in [NAME, COPY] {
            let path = self.directory.join(name);
            durable::replace(&path, &bytes).map_err(|(operation, source)| StateError {
                operation,
                path,
                source,
            })?;
        }
        self.unsaved = false;
        Ok(())
    }
}

/// Reads both files, and changes neither. One that cannot be read is an error only if the other one
/// does not do.
fn find(directory: &Path, boot_id: &str) -> Result<Found, StateError> {
    let (mut texts, mut unreadable) = (Vec::new(), None);
    for name in [NAME, COPY] {
        let path = directory.join(name);
        match fs::read(&path) {
            Ok(bytes) => texts.push((path, bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => unreadable = Some(StateError { operation: "read", path, source }),
        }
    }
    let found = understand(texts, boot_id);
    match unreadable {
        Some(error) if found.state.is_none() || found.lost.is_some() => Err(error),
        _ => Ok(found),
    }
}

fn understand(texts: Vec<(PathBuf, Vec<u8>)>, boot_id: &str) -> Found {
    let (mut states, mut damaged, mut salvaged) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (path, bytes) in texts {
        match text::read(&bytes) {
            Ok(state) => states.push(state),
            Err(why) => {
                salvaged.extend(text::salvage(&bytes));
                damaged.push((path, why));
            }
        }
    }
    let state = states.into_iter().reduce(|file, copy| text::merge(file, copy, boot_id));
    if state.is_some() || damaged.is_empty() {
        return Found { state, damaged, lost: None };
    }
    let list: Vec<String> =
        damaged.iter().map(|(path, why)| format!("{}: {why}", path.display())).collect();
    let lost = format!("{} ({} seals found in the rest)", list.join("; "), salvaged.len());
    let state = SavedState { sealed: salvaged, ..SavedState::empty(boot_id) };
    Found { state: Some(state), damaged, lost: Some(lost) }
}

/// The leases of this boot that run at a moment of the boot clock, as the file says; the files are
/// left as they are. None without a file.
pub fn read_leases(
    directory: &Path,
    boot_id: &str,
    now_boot_ns: u64,
) -> Result<Vec<Lease>, StateError> {
    let Found { state, lost, .. } = find(directory, boot_id)?;
    if let Some(lost) = lost {
        let (operation, path) = ("understand", directory.join(NAME));
        return Err(StateError { operation, path, source: io::Error::other(lost) });
    }
    let Some(mut state) = state else { return Ok(Vec::new()) };
    state.leases.retain(|lease| state.boot_id == boot_id && lease.ends_boot_ns > now_boot_ns);
    Ok(state.leases)
}

#[cfg(test)]
#[path = "state_file_tests.rs"]
mod tests;
