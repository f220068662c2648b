//! The node that an operator means.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::exit::Exit;
use crate::incus;
use crate::policy::Policy;

/// A guarded root whose joins are followed.
#[derive(Clone, Debug)]
pub struct Node {
    pub root: PathBuf,
    /// The daemon's systemd unit.
    pub unit: String,
    pub incus: incus::Options,
    pub policy: Policy,
}

/// Why guardctl does not do it.
#[derive(Debug, Error)]
pub enum NodeError {
    #[error("no root of the policy has join = \"incus\"")]
    NoNode,
    #[error("which node? {}", list(nodes))]
    Ambiguous { nodes: Vec<PathBuf> },
    #[error("{root} is no node of the policy in force; nodes: {}", list(nodes))]
    Unknown { root: PathBuf, nodes: Vec<PathBuf> },
    #[error("{operation}")]
    Io {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
}

impl NodeError {
    /// What the process ends with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoNode | Self::Unknown { .. } | Self::Ambiguous { .. } => Exit::Usage,
            Self::Io { .. } => Exit::Failure,
        }
    }

    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::NoNode => {
                "add [[root]] preset = \"incus\" (or join = \"incus\") to the policy; guardctl policy check"
            }
            Self::Ambiguous { .. } | Self::Unknown { .. } => "name one: --root DIR",
            Self::Io { .. } => "correct that, then try again",
        }
        .to_owned()
    }
}

fn list(nodes: &[PathBuf]) -> String {
    if nodes.is_empty() {
        return "none".to_owned();
    }
    nodes.iter().map(|node| node.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl Node {
    /// The node at a root, or the only one, in a policy.
    pub fn of(policy: Policy, root: Option<&Path>) -> Result<Self, NodeError> {
        let nodes = || policy.roots().iter().filter_map(|root| Some((root, root.incus()?)));
        let paths = || nodes().map(|(node, _)| node.path().to_owned()).collect::<Vec<_>>();
        let mut meant = nodes().filter(|(node, _)| root.is_none_or(|root| root == node.path()));
        let (found, daemon) = match (meant.next(), meant.next(), root) {
            (Some(node), None, _) => node,
            (Some(_), Some(_), _) => return Err(NodeError::Ambiguous { nodes: paths() }),
            (None, _, Some(root)) if nodes().next().is_some() => {
                return Err(NodeError::Unknown { root: root.to_owned(), nodes: paths() });
            }
            (None, _, _) => return Err(NodeError::NoNode),
        };
        let executables = found.actors().iter().filter_map(|actor| actor.executable().map(Path::to_owned));
        let incus = incus::Options {
            directory: found.path().to_owned(),
            socket: daemon.socket().to_owned(),
            cgroup: daemon.cgroup(),
            executables: executables.collect(),
            proc_root: PathBuf::from("/proc"),
        };
        Ok(Self { root: found.path().to_owned(), unit: daemon.unit().to_owned(), incus, policy })
    }
}
