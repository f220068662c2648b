//! Reads the facts. Nothing below a pool is looked at: the mount tables say where that is.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::members::{self, Member};
use super::{Agent, Facts, Leftover, is_temporary};
use crate::events::Time;
use crate::incus::{self, local_db};
use crate::join::{Config, Daemon};
use crate::mounts::{self, MountEntry, Snapshot};
use crate::policy::Policy;
use crate::rollback::helper::{self, HelperError};
use crate::rollback::{MountPlace, NamespaceTable, all_namespaces};
use crate::{daemon, events};

/// How long the incus client may take to ask a remote.
const REMOTE_LIMIT: Duration = Duration::from_secs(30);

/// What is asked about.
#[derive(Clone, Debug)]
pub struct Question {
    pub root: PathBuf,
    /// Where the daemon is found.
    pub incus: incus::Options,
    /// The policy in force, or the one that comes with the preset: it names the shared filesystems.
    pub policy: Policy,
    pub agent: Agent,
    pub server_name: String,
    pub address: Option<String>,
    pub members: Source,
    /// Text of a join token.
    pub token: Option<String>,
}

/// Where the list of members comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Nowhere,
    /// `incus cluster list --format json`, kept in a file.
    File(PathBuf),
    /// A remote that the incus client on this host knows.
    Remote(String),
}

/// Gathers everything. Takes as long as the remote takes, if one is asked.
pub fn gather(question: Question) -> Facts {
    let proc = Path::new("/proc");
    let own_table = File::open(proc.join("self/mountinfo")).and_then(|table| mounts::read(&table));
    let leftovers = all_namespaces(proc)
        .map(|tables| leftovers(&tables, &question.root, &question.policy))
        .map_err(|error| daemon::chain(&error));
    let (config, daemon) = match &own_table {
        Ok(snapshot) => (
            Config::from(&local_db::read(&question.incus.local_db(), snapshot)),
            incus::sight(&question.incus, snapshot, events::process::ticks_per_second()).daemon,
        ),
        Err(error) => (Config::Unreadable { why: format!("the mount table: {error}") }, Daemon::Unknown),
    };
    let names = |path: PathBuf| list(&path, own_table.as_ref().ok());
    let exists = |name: &&str| question.root.join(name).symlink_metadata().is_ok();
    let certificates = ["server.crt", "cluster.crt", "cluster.key"];
    Facts {
        leftovers,
        config,
        global_database: names(question.root.join("database/global")).map(|names| names.len()),
        certificates: certificates.into_iter().filter(exists).map(str::to_owned).collect(),
        pool_directories: own_table
            .as_ref()
            .map_err(ToString::to_string)
            .and_then(|snapshot| pool_directories(&question.root, snapshot)),
        daemon,
        agent: question.agent,
        server_name: question.server_name,
        address: question.address,
        members: members(&question.members),
        token: question.token.map(|text| members::parse_token(&text).map_err(|error| error.to_string())),
        now: Time(jiff::Timestamp::now()),
        root: question.root,
    }
}

/// Mounts of guarded kinds at or below the root, and temporary ones anywhere.
fn leftovers(tables: &[NamespaceTable], root: &Path, policy: &Policy) -> Vec<Leftover> {
    let shared = |entry: &&MountEntry| policy.filesystem(&entry.fs_type).is_some();
    let left: BTreeSet<u32> = tables
        .iter()
        .flat_map(|table| table.mounts.entries())
        .filter(shared)
        .filter(|entry| entry.mountpoint.starts_with(root) || is_temporary(&entry.mountpoint))
        .map(MountEntry::dev)
        .collect();
    // Those of the same superblock elsewhere keep it alive as well.
    tables
        .iter()
        .flat_map(|table| table.mounts.entries().iter().map(move |entry| (table, entry)))
        .filter(|(_, entry)| left.contains(&entry.dev()))
        .map(|(table, entry)| Leftover {
            place: MountPlace {
                namespace: table.namespace,
                in_host: table.is_host,
                pid: table.pid,
                mountpoint: entry.mountpoint.to_string_lossy().into_owned(),
            },
            fs_type: entry.fs_type.clone(),
            source: entry.source.to_string_lossy().into_owned(),
        })
        .collect()
}

/// Names in a directory; none if there is no such directory.
fn list(directory: &Path, snapshot: Option<&Snapshot>) -> Result<Vec<String>, String> {
    if snapshot.is_none_or(|snapshot| crate::roots::is_on_network(directory, snapshot)) {
        return Err(format!("{} lies on a network filesystem, which is not touched", directory.display()));
    }
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other,
    };
    let names = entries.and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned())).collect()
    });
    names.map_err(|error: io::Error| format!("{}: {error}", directory.display()))
}

fn pool_directories(root: &Path, snapshot: &Snapshot) -> Result<Vec<(String, bool)>, String> {
    let pools = root.join("storage-pools");
    let mut found = Vec::new();
    for name in list(&pools, Some(snapshot))? {
        let path = pools.join(&name);
        let is_mounted = snapshot.entries().iter().any(|entry| entry.mountpoint == path);
        if !is_mounted && fs::symlink_metadata(&path).is_ok_and(|about| about.is_dir()) {
            let has_content =
                list(&path, Some(snapshot))?.iter().any(|name| has_something(&path.join(name), snapshot));
            found.push((name, has_content));
        }
    }
    found.sort();
    Ok(found)
}

/// Incus makes empty directories for each kind of volume in a pool before it mounts it.
fn has_something(path: &Path, snapshot: &Snapshot) -> bool {
    match list(path, Some(snapshot)) {
        Ok(names) => !names.is_empty(),
        // No directory, or one that cannot be looked into.
        Err(_) => true,
    }
}

fn members(source: &Source) -> Option<Result<Vec<Member>, String>> {
    let text = match source {
        Source::Nowhere => return None,
        Source::File(path) => {
            fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
        }
        Source::Remote(name) => ask_remote(name),
    };
    Some(text.and_then(|text| members::parse_members(&text).map_err(|error| error.to_string())))
}

/// The client talks to the remote alone; the daemon of this host is not asked, and so not started.
fn ask_remote(name: &str) -> Result<String, String> {
    let target = format!("{}:", name.trim_end_matches(':'));
    if target == "local:" || name.is_empty() || name.starts_with('-') {
        return Err(format!("{name} is no remote: it must be a member of the cluster to be joined"));
    }
    let answer =
        helper::ask_program("incus", &["cluster", "list", &target, "--format", "json"], REMOTE_LIMIT);
    match answer {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(HelperError::Start { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err("there is no incus client on this host".to_owned())
        }
        Err(error) => Err(format!("incus cluster list {target}: {}", daemon::chain(&error))),
    }
}
