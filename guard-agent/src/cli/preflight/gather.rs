//! Reads the facts. Nothing below a pool is looked at: the mount tables show the pools' places.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use super::members::{self, Member, ReadError, Token};
use super::preseed::Preseed;
use super::remote::{self, Remote};
use super::stale::Cluster as _;
use super::{Agent, Facts, Leftover, ceph, is_temporary};
use crate::host::incus;
use crate::host::incus::local_db;
use crate::host::mount_table;
use crate::host::rollback::all_namespaces;
use crate::model::address::Address;
use crate::model::errors;
use crate::model::join::{Config, Daemon};
use crate::model::mounts::{MountEntry, Snapshot};
use crate::model::policy::Policy;
use crate::model::rollback::{MountPlace, NamespaceTable};
use crate::model::time::Time;

/// Directory in which Ceph's clients look for their files.
const CEPH: &str = "/etc/ceph";

/// Subject of a preflight.
#[derive(Clone, Debug)]
pub struct Question {
    /// As policy spells it.
    pub root: PathBuf,
    /// The same with links followed, as mount tables show it.
    pub place: PathBuf,
    /// Options to find the daemon.
    pub incus: incus::Options,
    /// The policy in force, or the one that comes with the preset: it names the shared filesystems.
    pub policy: Policy,
    pub agent: Agent,
    pub server_name: String,
    pub address: Option<String>,
    pub members: Source,
    pub token: Option<TokenText>,
    pub preseed: Option<Result<Preseed, String>>,
}

/// A join token, as it is written.
#[derive(Clone, Debug)]
pub enum TokenText {
    /// As `incus cluster add` prints it.
    Printed(String),
    /// As Incus reads it in a preseed.
    Bare(String),
}

/// Source of the list of members.
#[derive(Clone, Debug)]
pub enum Source {
    Nowhere,
    /// `incus cluster list --format json`, kept in a file.
    File(PathBuf),
    Remote(Remote),
}

/// Gathers everything. Takes as long as the remote takes, if one is asked.
pub fn gather(question: Question) -> Facts {
    let proc = Path::new("/proc");
    let own_table = mount_table::open(proc.join("self/mountinfo"));
    let leftovers = all_namespaces(proc)
        .map(|tables| leftovers(&tables, &question.place, &question.policy))
        .map_err(|error| errors::chain(&error));
    let (config, core_address, sighting) = match &own_table {
        Ok(snapshot) => {
            let database = local_db::read(&question.incus.local_db(), snapshot);
            let core_address =
                database.as_ref().ok().and_then(|database| database.core_address.clone());
            let ticks = crate::host::process::ticks_per_second();
            (
                Config::from(&database),
                core_address,
                Some(incus::sight(&question.incus, snapshot, ticks)),
            )
        }
        Err(error) => (Config::Unreadable { why: format!("the mount table: {error}") }, None, None),
    };
    // Connecting to a socket that no daemon holds would start one.
    let own = match sighting.as_ref().map(|sighting| &sighting.listener) {
        Some(incus::Listener::Daemon(socket)) => remote::local_server(socket),
        _ => None,
    };
    let mut asked = None;
    let members = match question.members {
        Source::Nowhere => None,
        Source::File(path) => Some(from_file(&path)),
        Source::Remote(mut remote) => {
            let members = remote.members();
            // One that does not answer is told of once.
            if members.is_ok() {
                asked = Some((remote.server(), remote.ceph_pools()));
            }
            Some(members)
        }
    };
    let (cluster, pools) = asked.unzip();
    let names = |path: PathBuf| list(&path, own_table.as_ref().ok());
    let exists = |name: &&str| question.place.join(name).symlink_metadata().is_ok();
    let certificates = ["server.crt", "cluster.crt", "cluster.key"];
    Facts {
        leftovers,
        config,
        global_database: names(question.place.join("database/global")).map(|names| names.len()),
        certificates: certificates.into_iter().filter(exists).map(str::to_owned).collect(),
        pool_directories: own_table
            .as_ref()
            .map_err(ToString::to_string)
            .and_then(|snapshot| pool_directories(&question.place, snapshot)),
        daemon: sighting.map_or(Daemon::Unknown, |sighting| sighting.daemon),
        agent: question.agent,
        server_name: question.server_name,
        address_is_local: question.address.as_deref().and_then(is_local),
        address: question.address,
        core_address,
        version: own.as_ref().map(|own| own.version).or_else(remote::client_version),
        api_extensions: own.map(|own| own.api_extensions),
        members,
        cluster,
        ceph: pools.map(|pools| Ok(ceph::look(&pools?, Path::new(CEPH)))),
        stale: None,
        token: question.token.map(|token| read_token(&token).map_err(|error| error.to_string())),
        preseed: question.preseed,
        now: Time(jiff::Timestamp::now()),
        root: question.root,
    }
}

fn read_token(token: &TokenText) -> Result<Token, ReadError> {
    match token {
        TokenText::Printed(text) => members::parse_token(text),
        TokenText::Bare(text) => members::decode_token(text),
    }
}

/// A mount's superblock, and its source on the server.
fn superblock(entry: &MountEntry) -> (u32, &OsStr) {
    (entry.dev(), &entry.source)
}

/// Mounts of guarded kinds at or below the root, and temporary ones anywhere.
fn leftovers(tables: &[NamespaceTable], root: &Path, policy: &Policy) -> Vec<Leftover> {
    let shared = |entry: &&MountEntry| policy.filesystem(&entry.fs_type).is_some();
    let left: BTreeSet<(u32, &OsStr)> = tables
        .iter()
        .flat_map(|table| table.mounts.entries())
        .filter(shared)
        .filter(|entry| entry.mountpoint.starts_with(root) || is_temporary(&entry.mountpoint))
        .map(superblock)
        .collect();
    // Those of the same superblock elsewhere keep it alive as well. (Other exports of a server may
    // share it.)
    tables
        .iter()
        .flat_map(|table| table.mounts.entries().iter().map(move |entry| (table, entry)))
        .filter(|(_, entry)| left.contains(&superblock(entry)))
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
    if snapshot.is_none_or(|snapshot| crate::host::roots::is_on_network(directory, snapshot)) {
        return Err(format!(
            "{} lies on a network filesystem, which is not touched",
            directory.display()
        ));
    }
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other,
    };
    let names = entries.and_then(|entries| {
        entries
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect()
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
            let has_content = list(&path, Some(snapshot))?
                .iter()
                .any(|name| has_something(&path.join(name), snapshot));
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

fn from_file(path: &Path) -> Result<Vec<Member>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    members::parse_members(&text).map_err(|error| error.to_string())
}

/// Whether an interface has the address: only then can a socket be bound to it. Names are not
/// looked up.
fn is_local(address: &str) -> Option<bool> {
    let ip = Address::parse(address).ip()?;
    match TcpListener::bind((ip, 0)) {
        Ok(_) => Some(true),
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Some(false),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::host::roots;

    #[test]
    fn addresses_of_this_host() {
        assert_eq!(is_local("127.0.0.1:8443"), Some(true));
        assert_eq!(is_local("192.0.2.7"), Some(false), "a network for documents");
        assert_eq!(is_local("n2.example"), None);
    }

    #[test]
    fn pools_below_a_linked_root_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(directory.path()).unwrap();
        let (disk, link) = (base.join("disk/incus"), base.join("incus"));
        fs::create_dir_all(disk.join("storage-pools/shared")).unwrap();
        fs::create_dir_all(disk.join("storage-pools/local/custom/volume")).unwrap();
        symlink("disk/incus", &link).unwrap();
        let table = format!(
            "1 0 8:1 / / rw - ext4 /dev/vda rw\n\
             2 1 0:43 / {}/storage-pools/shared rw - ceph admin@1.fs=/ rw\n",
            disk.display()
        );
        let mounts = Snapshot::parse(table.as_bytes());
        let place = roots::resolve_root(&link, &mounts).0;
        assert_eq!(pool_directories(&place, &mounts).unwrap(), [("local".to_owned(), true)]);

        let policy = "version = 1\n[[root]]\npreset = \"incus\"\n";
        let policy = crate::model::policy::parse(policy, Path::new("policy.toml")).unwrap();
        let tables = [NamespaceTable { namespace: 1, is_host: true, pid: 1, mounts }];
        let found = leftovers(&tables, &place, &policy);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].place.mountpoint.ends_with("disk/incus/storage-pools/shared"));
        assert_eq!(
            leftovers(&tables, &link, &policy),
            [],
            "as policy spells it, nothing is below it"
        );
    }
}
