//! What survives a restart: seals of operators, and who was granted which lease.
//!
//! One JSON file, replaced whole (temporary file, fsync, rename, fsync of the directory). What the kernel
//! enforces does not depend on it: a release ends by the kernel's clock, with or without this file.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use guard_common::Tier;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::audit::record::LeaseKind;
use crate::durable;
use crate::events::{Name, Time};

const NAME: &str = "state.json";
const VERSION: u32 = 1;

/// The state could not be read or written.
#[derive(Debug, Error)]
#[error("{operation} {path}")]
pub struct StateError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A granted lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    pub id: String,
    pub kind: LeaseKind,
    pub generation: u64,
    pub pool_id: u64,
    pub pool: String,
    pub mountpoint: String,
    pub reason: String,
    pub uid: u32,
    pub login_uid: Option<u32>,
    pub granted: Time,
    pub ends: Time,
    pub ends_boot_ns: u64,
    pub ttl_seconds: u64,
    /// Of a lease for a command tree: its cgroup and first process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandTree>,
}

/// The cgroup that a lease is bound to, and the process that it ends with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandTree {
    pub cgroup_id: u64,
    /// `s_dev` of the pool.
    pub dev: u32,
    pub pid: u32,
    /// When the process started, in ticks of the boot clock.
    pub start_ticks: u64,
}

/// Content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    /// Leases are of this boot: generations and the boot clock begin anew with the next.
    boot_id: String,
    /// Pool ids that an operator has sealed.
    pub sealed: BTreeSet<u64>,
    pub leases: Vec<Lease>,
    /// Number of the next lease.
    pub next_lease: u64,
    /// The best tier that has proven itself on this host, unless policy has taken a weaker one by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Name<Tier>>,
}

/// The file.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    pub state: State,
    /// The last save failed: what is on disk is older.
    unsaved: bool,
}

impl StateFile {
    /// Reads the file of this boot or an earlier one. One that cannot be understood is kept aside, and
    /// the second value says so.
    pub fn open(directory: &Path, boot_id: &str) -> Result<(Self, Option<String>), StateError> {
        let path = directory.join(NAME);
        let empty = State {
            version: VERSION,
            boot_id: boot_id.to_owned(),
            sealed: BTreeSet::new(),
            leases: Vec::new(),
            next_lease: 1,
            tier: None,
        };
        let (mut state, problem) = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => (empty, None),
            Err(source) => return Err(StateError { operation: "read", path, source }),
            Ok(bytes) => match parse(&bytes) {
                Ok(state) => (state, None),
                Err(why) => {
                    let aside = durable::set_aside(&path).map_err(|source| StateError {
                        operation: "set aside",
                        path: path.clone(),
                        source,
                    })?;
                    (empty, Some(format!("{why}; kept as {}", aside.display())))
                }
            },
        };
        if state.boot_id != boot_id {
            state.leases.clear();
            boot_id.clone_into(&mut state.boot_id);
        }
        Ok((Self { path, state, unsaved: false }, problem))
    }

    /// Whether the last save failed.
    pub fn is_unsaved(&self) -> bool {
        self.unsaved
    }

    /// Replaces the file.
    pub fn save(&mut self) -> Result<(), StateError> {
        let bytes =
            serde_json::to_vec_pretty(&self.state).expect("the state has string keys and finite numbers");
        let saved = durable::replace(&self.path, &bytes);
        self.unsaved = saved.is_err();
        saved.map_err(|(operation, source)| StateError { operation, path: self.path.clone(), source })
    }
}

/// The state of a file's text, or why it cannot be understood.
fn parse(bytes: &[u8]) -> Result<State, String> {
    let state: State = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if state.version == VERSION { Ok(state) } else { Err(format!("version {}", state.version)) }
}

/// The leases of this boot that run at a moment of the boot clock, as the file says; the file is left as it is. None
/// without a file.
pub fn read_leases(directory: &Path, boot_id: &str, now_boot_ns: u64) -> Result<Vec<Lease>, StateError> {
    let path = directory.join(NAME);
    let failed = |operation, source| StateError { operation, path: path.clone(), source };
    let mut state = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed("read", source)),
        Ok(bytes) => parse(&bytes).map_err(|why| failed("understand", io::Error::other(why)))?,
    };
    state.leases.retain(|lease| state.boot_id == boot_id && lease.ends_boot_ns > now_boot_ns);
    Ok(state.leases)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        let time: Time = serde_json::from_str("\"2026-01-02T03:04:05Z\"").unwrap();
        Lease {
            id: "lease-1".into(),
            kind: LeaseKind::Release,
            generation: 7,
            pool_id: 9,
            pool: "shared".into(),
            mountpoint: "/var/lib/incus/storage-pools/shared".into(),
            reason: "test".into(),
            uid: 0,
            login_uid: Some(1000),
            granted: time,
            ends: time,
            ends_boot_ns: 5,
            ttl_seconds: 600,
            command: None,
        }
    }

    #[test]
    fn seals_outlive_a_reboot_and_leases_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let (mut file, _) = StateFile::open(directory.path(), "boot-1").unwrap();
        file.state.sealed.insert(9);
        file.state.leases.push(lease());
        file.save().unwrap();
        let (same_boot, problem) = StateFile::open(directory.path(), "boot-1").unwrap();
        assert_eq!((same_boot.state.leases.len(), problem), (1, None));
        let (next_boot, _) = StateFile::open(directory.path(), "boot-2").unwrap();
        assert!(next_boot.state.leases.is_empty());
        assert!(next_boot.state.sealed.contains(&9));
    }

    #[test]
    fn a_damaged_file_is_kept_aside_and_told() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(NAME), b"{\"version\":1,\"boo").unwrap();
        let (file, problem) = StateFile::open(directory.path(), "boot-1").unwrap();
        assert!(file.state.sealed.is_empty());
        assert!(problem.unwrap().contains("state.json.unreadable"));
        assert!(directory.path().join("state.json.unreadable").exists());
    }

    #[test]
    fn leases_are_read_without_touching_the_file() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read_leases(directory.path(), "boot-1", 0).unwrap(), []);
        let (mut file, _) = StateFile::open(directory.path(), "boot-1").unwrap();
        file.state.leases.push(lease());
        file.save().unwrap();
        let ids = |boot: &str, now| read_leases(directory.path(), boot, now).unwrap().len();
        assert_eq!((ids("boot-1", 4), ids("boot-1", 5), ids("boot-2", 4)), (1, 0, 0));
        fs::write(directory.path().join(NAME), "{").unwrap();
        assert!(read_leases(directory.path(), "boot-1", 4).is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "it was set aside");
    }

    #[test]
    fn a_save_that_fails_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let (mut file, _) = StateFile::open(directory.path(), "boot-1").unwrap();
        file.state.sealed.insert(1);
        file.save().unwrap();
        fs::create_dir(directory.path().join("state.json.new")).unwrap();
        file.state.sealed.insert(2);
        assert!(file.save().is_err() && file.is_unsaved());
        let (old, _) = StateFile::open(directory.path(), "boot-1").unwrap();
        assert_eq!(old.state.sealed.len(), 1);
        fs::remove_dir(directory.path().join("state.json.new")).unwrap();
        file.save().unwrap();
        assert!(!file.is_unsaved());
        let (new, _) = StateFile::open(directory.path(), "boot-1").unwrap();
        assert_eq!(new.state.sealed.len(), 2);
    }
}
