//! Everything that the checks of a node look at. Pure: gathered elsewhere.

use std::path::PathBuf;

use super::ceph::Missing;
use super::members::{Member, Token};
use super::preseed::Preseed;
use super::version::{Server, Version};
use crate::model::join::{Config, Daemon};
use crate::model::posture::Posture;
use crate::model::rollback::MountPlace;
use crate::model::time::Time;

/// Everything that the checks look at. A fact that could not be read says so by itself.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The guarded root: `INCUS_DIR`.
    pub root: PathBuf,
    /// Mounts of shared filesystems at or below the root, in any mount namespace; and those that
    /// Incus makes for a moment in a temporary directory.
    pub leftovers: Result<Vec<Leftover>, String>,
    pub config: Config,
    /// Names in `database/global`.
    pub global_database: Result<usize, String>,
    /// Those of `server.crt`, `cluster.crt`, `cluster.key` that are there.
    pub certificates: Vec<String>,
    /// Directories in `storage-pools` on which nothing is mounted, with whether something is in
    /// them.
    pub pool_directories: Result<Vec<(String, bool)>, String>,
    pub daemon: Daemon,
    pub agent: Agent,
    /// The name that the node will have.
    pub server_name: String,
    /// The address that it will have, if that is known.
    pub address: Option<String>,
    /// Whether an interface of this host has it; `None` if that is not known.
    pub address_is_local: Option<bool>,
    /// `core.https_address`.
    pub core_address: Option<String>,
    /// Of the Incus on this host.
    pub version: Option<Version>,
    /// Of its daemon, if that runs and listens.
    pub api_extensions: Option<usize>,
    /// `None`: nobody was asked.
    pub members: Option<Result<Vec<Member>, String>>,
    /// A member's report of itself, if a remote was given.
    pub cluster: Option<Result<Server, String>>,
    /// Files that the cluster's pools on Ceph need and this host lacks, if a remote was given.
    pub ceph: Option<Result<Vec<Missing>, String>>,
    /// Stale entries that were removed, or why not, if that was asked for.
    pub stale: Option<Result<Vec<String>, String>>,
    pub token: Option<Result<Token, String>>,
    pub preseed: Option<Result<Preseed, String>>,
    pub now: Time,
}

impl Facts {
    /// The name that the node will have: a token's goes before all others.
    pub(super) fn wanted_name(&self) -> &str {
        match &self.token {
            Some(Ok(token)) => &token.server_name,
            _ => &self.server_name,
        }
    }
}

/// A mount that an earlier join has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    pub place: MountPlace,
    pub fs_type: String,
    pub source: String,
}

/// The agent's answer.
#[derive(Clone, Debug)]
pub enum Agent {
    /// Why it does not answer.
    Unreachable(String),
    /// It answers, and the root is none of its policy.
    Unguarded(Posture),
    /// It guards the root; whether the kernel program knows the directory.
    Guards { posture: Posture, in_force: bool },
}
