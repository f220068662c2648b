//! The node that an operator means, what guardctl may do to it from where it runs, and stopping its Incus.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::{CliError, Global, expect_reply};
use crate::control::{Reply, Request};
use crate::events::process::ticks_per_second;
use crate::exit::Exit;
use crate::incus;
use crate::join::Daemon;
use crate::mounts::{self, Snapshot};
use crate::policy::{self, Policy};
use crate::systemd;
use crate::wipe::stop;

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
    #[error("this needs uid 0")]
    NotRoot,
    #[error("guardctl runs in a mount namespace that is not the host's")]
    OtherNamespace,
    #[error("{root} lies on a network filesystem")]
    OnNetwork { root: PathBuf },
    #[error("instances run that use {root}: {}", processes.join("; "))]
    Instances { root: PathBuf, processes: Vec<String> },
    #[error("Incus still runs (process {pid}) after it was stopped: something starts it again")]
    StillRuns { pid: u32 },
    #[error("whether Incus runs cannot be told")]
    DaemonUnknown,
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
            Self::NoNode | Self::Unknown { .. } | Self::Ambiguous { .. } | Self::NotRoot => Exit::Usage,
            Self::OtherNamespace | Self::OnNetwork { .. } | Self::Instances { .. } => Exit::Refused,
            Self::StillRuns { .. } | Self::DaemonUnknown | Self::Io { .. } => Exit::Failure,
        }
    }

    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::NoNode => {
                "add [[root]] preset = \"incus\" (or join = \"incus\") to the policy; guardctl policy check"
            }
            Self::Ambiguous { .. } | Self::Unknown { .. } => "name one: --root DIR",
            Self::NotRoot => "run it as root (sudo guardctl …)",
            Self::OtherNamespace => "run it on the host: nsenter --mount --target 1 guardctl …",
            Self::OnNetwork { .. } => "what is below it belongs to others: this is nothing for guardctl",
            Self::Instances { .. } => "stop them (incus stop --all, or end the processes), then try again",
            Self::StillRuns { .. } => {
                "systemctl mask --runtime --now incus.socket incus.service; then try again"
            }
            Self::DaemonUnknown => "run it as root, and on the host",
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
    /// The node at a root, or the only one, in the policy that the agent has in force.
    pub fn find(global: &Global, root: Option<&Path>) -> Result<Self, CliError> {
        let text = expect_reply!(global, Request::PolicyShow, Reply::PolicyText(policy) => policy);
        let policy = policy::parse(&text.text, Path::new(&text.path)).map_err(CliError::ForeignPolicy)?;
        Ok(Self::of(policy, root)?)
    }

    /// The same in a given policy.
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

/// Fails unless this process sees the host's mounts, and may unmount and delete.
pub fn require_host() -> Result<(), NodeError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(NodeError::NotRoot);
    }
    let link = |path: &str, operation| {
        std::fs::read_link(path).map_err(|source| NodeError::Io { operation, source })
    };
    if link("/proc/self/ns/mnt", "look at this mount namespace")?
        != link("/proc/1/ns/mnt", "look at the host's mount namespace")?
    {
        return Err(NodeError::OtherNamespace);
    }
    Ok(())
}

/// This process's mount table, as it is now.
pub fn mount_table() -> Result<Snapshot, NodeError> {
    let operation = "read /proc/self/mountinfo";
    let table = File::open("/proc/self/mountinfo").and_then(|table| mounts::read(&table));
    table.map_err(|source| NodeError::Io { operation, source })
}

/// How long a daemon may take to end, after systemd has said that it has.
const END: Duration = Duration::from_secs(10);

/// Stops Incus and its sockets, and proves that the daemon is gone.
pub fn stop_incus(node: &Node, say: &mut dyn FnMut(&str) -> Result<(), CliError>) -> Result<(), CliError> {
    require_host()?;
    if systemd::manages_host() {
        let stopped = stop::stop_units(&stop::units(&node.unit)).map_err(CliError::Stop)?;
        if !stopped.is_empty() {
            say(&format!("stopped: {}", stopped.join(", ")))?;
        }
    }
    let end = Instant::now() + END;
    loop {
        match incus::sight(&node.incus, &mount_table()?, ticks_per_second()).daemon {
            Daemon::Stopped => return Ok(()),
            Daemon::Unknown => return Err(NodeError::DaemonUnknown.into()),
            Daemon::Running { incarnation, .. } if Instant::now() >= end => {
                return Err(NodeError::StillRuns { pid: incarnation.pid }.into());
            }
            Daemon::Running { incarnation, .. } => {
                say(&format!("SIGTERM to incusd (process {})", incarnation.pid))?;
                stop::terminate(incarnation.pid, incarnation.start_ticks).map_err(CliError::Stop)?;
            }
        }
    }
}
