//! Asks the cluster to be joined, through the incus client on this host and a remote that it knows.
//! The daemon of this host is asked only where it certainly runs and listens: it is never started.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::ceph::CephPool;
use super::members::{self, Member};
use super::stale::Cluster;
use super::version::{Server, Version};
use crate::host::rollback::helper;
use crate::host::rollback::helper::HelperError;
use crate::model::errors;

/// Longest time for the client to ask a remote.
const LIMIT: Duration = Duration::from_secs(30);
/// Longest time for the cluster to remove a member.
const REMOVAL: Duration = Duration::from_secs(120);

/// A remote of the incus client: a member of the cluster.
#[derive(Clone, Debug)]
pub struct Remote {
    name: String,
}

impl Remote {
    /// The remote of this name, with or without a colon behind it.
    pub fn named(name: &str) -> Result<Self, String> {
        let bare = name.trim_end_matches(':');
        if bare == "local" || bare.is_empty() || bare.starts_with('-') {
            return Err(format!(
                "{name} is no remote: it must be a member of the cluster to be joined"
            ));
        }
        Ok(Self { name: bare.to_owned() })
    }

    /// Version and API extensions of the member.
    pub fn server(&self) -> Result<Server, String> {
        let answer = ask(&["query", &format!("{}:/1.0", self.name)], LIMIT)?;
        parse_server(&answer)
    }

    /// The cluster's pools on Ceph.
    pub fn ceph_pools(&self) -> Result<Vec<CephPool>, String> {
        let target = format!("{}:/1.0/storage-pools?recursion=1", self.name);
        parse_pools(&ask(&["query", &target], LIMIT)?)
    }
}

impl Cluster for Remote {
    fn members(&mut self) -> Result<Vec<Member>, String> {
        let target = format!("{}:", self.name);
        let answer = ask(&["cluster", "list", &target, "--format", "json"], LIMIT)?;
        members::parse_members(&answer).map_err(|error| error.to_string())
    }

    fn remove(&mut self, name: &str) -> Result<(), String> {
        let target = format!("{}:{name}", self.name);
        ask(&["cluster", "remove", &target, "--force", "--yes"], REMOVAL).map(|_| ())
    }
}

/// Version and API extensions of this host's own daemon. Only for one that certainly listens: an
/// idle socket would start it.
pub(super) fn local_server(socket: &Path) -> Option<Server> {
    let socket = format!("INCUS_SOCKET={}", socket.display());
    let answer =
        helper::ask_program("env", &[&socket, "incus", "query", "local:/1.0"], LIMIT).ok()?;
    parse_server(&String::from_utf8_lossy(&answer)).ok()
}

/// Version of the client on this host: it comes with the daemon. Asks no server.
pub(super) fn client_version() -> Option<Version> {
    Version::parse(&ask(&["--version"], LIMIT).ok()?)
}

fn ask(arguments: &[&str], limit: Duration) -> Result<String, String> {
    match helper::ask_program("incus", arguments, limit) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(HelperError::Start { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err("there is no incus client on this host".to_owned())
        }
        Err(error) => Err(format!("incus {}: {}", arguments.join(" "), errors::chain(&error))),
    }
}

/// Reads the answer to `/1.0`.
fn parse_server(text: &str) -> Result<Server, String> {
    #[derive(Deserialize)]
    struct Answer {
        api_extensions: Vec<String>,
        environment: Environment,
    }
    #[derive(Deserialize)]
    struct Environment {
        server_version: String,
    }
    let answer: Answer = serde_json::from_str(text)
        .map_err(|error| format!("its answer to /1.0 is not understood: {error}"))?;
    let version = answer.environment.server_version;
    let version = Version::parse(&version)
        .ok_or_else(|| format!("its version is not understood: {version}"))?;
    Ok(Server { version, api_extensions: answer.api_extensions.len() })
}

/// Reads the answer to `/1.0/storage-pools?recursion=1`.
fn parse_pools(text: &str) -> Result<Vec<CephPool>, String> {
    let pools: Vec<Value> = serde_json::from_str(text)
        .map_err(|error| format!("its list of pools is not understood: {error}"))?;
    let ceph = |pool: &Value| {
        let prefix = match pool["driver"].as_str()? {
            "cephfs" => "cephfs",
            "ceph" => "ceph",
            _ => return None,
        };
        let setting = |key: &str, default: &str| {
            let value = pool["config"][format!("{prefix}.{key}")]
                .as_str()
                .filter(|value| !value.is_empty());
            value.unwrap_or(default).to_owned()
        };
        let (name, cluster) = (pool["name"].as_str()?.to_owned(), setting("cluster_name", "ceph"));
        Some(CephPool { name, cluster, user: setting("user.name", "admin") })
    };
    Ok(pools.iter().filter_map(ceph).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_itself_is_no_remote() {
        for name in ["", "local", "local:", "-c", ":"] {
            assert!(Remote::named(name).is_err(), "{name}");
        }
        assert_eq!(Remote::named("seed:").unwrap().name, "seed");
    }

    #[test]
    fn answers_of_a_member() {
        let text = r#"{"api_extensions": ["a", "b"], "api_version": "1.0",
            "environment": {"server": "incus", "server_version": "7.0.2", "server_clustered": true}}"#;
        let version = Version { major: 7, minor: 0, patch: 2 };
        assert_eq!(parse_server(text), Ok(Server { version, api_extensions: 2 }));
        assert!(parse_server("Error: not found").is_err());
        let text = r#"[{"name": "local", "driver": "dir", "config": {}},
            {"name": "shared", "driver": "cephfs", "config": {"source": "fs/a", "cephfs.user.name": "incus"}},
            {"name": "rbd", "driver": "ceph", "config": {"ceph.cluster_name": "far", "ceph.user.name": ""}}]"#;
        let pool = |name: &str, cluster: &str, user: &str| CephPool {
            name: name.to_owned(),
            cluster: cluster.to_owned(),
            user: user.to_owned(),
        };
        assert_eq!(
            parse_pools(text),
            Ok(vec![pool("shared", "ceph", "incus"), pool("rbd", "far", "admin")])
        );
        assert!(parse_pools("{}").is_err());
    }
}
