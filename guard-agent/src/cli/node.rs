//! The node that an operator means, and what guardctl may do to it from where it runs.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

use super::{CliError, Global, expect_reply};
use crate::control::{Reply, Request};
use crate::exit::Exit;
use crate::host_view;
use crate::incus;
use crate::mounts::{self, Snapshot};
use crate::policy::{self, Policy};
use crate::roots;
use crate::wipe::instances::Instance;

/// A guarded root whose joins are followed.
#[derive(Clone, Debug)]
pub struct Node {
    /// As policy spells it: the agent's name for the node.
    pub root: PathBuf,
    /// The same with links followed, as mount tables show it: to be compared with mounts, opened
    /// and walked.
    pub place: PathBuf,
    /// The daemon's systemd unit.
    pub unit: String,
    pub incus: incus::Options,
    pub policy: Policy,
}

/// The directory of an Incus without `INCUS_DIR`.
const DEFAULT_DIRECTORY: &str = "/var/lib/incus";

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
    #[error("guardctl runs in a mount or PID namespace that is not the host's")]
    OtherNamespace,
    #[error("{root} lies on a network filesystem")]
    OnNetwork { root: PathBuf },
    #[error("instances run that use {root}: {}", processes.join("; "))]
    Instances { root: PathBuf, processes: Vec<String> },
    #[error("guests use the pools of {root}: {}", guests.join("; "))]
    Guests { root: PathBuf, guests: Vec<String> },
    #[error("{root} has local pools that would be lost: {}", pools.join("; "))]
    LocalPools { root: PathBuf, pools: Vec<String> },
    #[error("Incus still runs (process {pid}) after it was stopped: something starts it again")]
    StillRuns { pid: u32 },
    #[error("cannot tell whether Incus runs")]
    DaemonUnknown,
    #[error("Incus does not run, and cannot stop its instances")]
    CannotStopInstances,
    #[error("Incus does not run")]
    NotStarted { command: String },
    #[error("{units} cannot start: masked")]
    Masked { units: String },
    #[error("an earlier rollback or wipe has left {path}, which keeps Incus from starting")]
    Held { path: PathBuf },
    #[error("interrupted while {doing}")]
    Interrupted { doing: &'static str, next: String },
    #[error("{what} has not ended within {} s", limit.as_secs())]
    Overdue { what: &'static str, limit: std::time::Duration, next: String },
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
            Self::NoNode | Self::Unknown { .. } | Self::Ambiguous { .. } | Self::NotRoot => {
                Exit::Usage
            }
            Self::OtherNamespace
            | Self::OnNetwork { .. }
            | Self::Instances { .. }
            | Self::Guests { .. }
            | Self::LocalPools { .. }
            | Self::CannotStopInstances
            | Self::Held { .. }
            | Self::Masked { .. } => Exit::Refused,
            Self::StillRuns { .. }
            | Self::DaemonUnknown
            | Self::NotStarted { .. }
            | Self::Interrupted { .. }
            | Self::Overdue { .. }
            | Self::Io { .. } => Exit::Failure,
        }
    }

    /// Of instances that are in the way.
    pub fn instances(node: &Node, running: &[Instance]) -> Self {
        let processes = running.iter().map(ToString::to_string).collect();
        Self::Instances { root: node.root.clone(), processes }
    }

    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::NotStarted { command } => return format!("start it first: {command}"),
            Self::Masked { units } => return format!("systemctl unmask {units}, then try again"),
            Self::Interrupted { next, .. } | Self::Overdue { next, .. } => return next.clone(),
            Self::NoNode => {
                "add [[root]] preset = \"incus\" (or join = \"incus\") to the policy; guardctl \
                 policy check"
            }
            Self::Ambiguous { .. } | Self::Unknown { .. } => "name one: --root DIR",
            Self::NotRoot => "run it as root (sudo guardctl …)",
            Self::OtherNamespace => "run it on the host: nsenter --mount --target 1 guardctl …",
            Self::OnNetwork { .. } => {
                "what is below it belongs to others: this is nothing for guardctl"
            }
            Self::Instances { .. } => {
                "stop them (incus stop --all --all-projects, or end the processes), then try \
                 again; or let this command stop them: --stop-instances"
            }
            Self::Guests { .. } => {
                "stop them (incus stop NAME, or end the processes), then try again; or let this \
                 command stop the instances: --stop-instances. guardctl rollback --force unmounts \
                 from under them: what they write there goes to their own disk then"
            }
            Self::Held { .. } => {
                "guardctl rollback (or guardctl wipe) goes on where that ended; to have Incus back \
                 without: guardctl rollback --release-hold"
            }
            Self::LocalPools { .. } => "guardctl wipe, without --yes, lists them",
            Self::CannotStopInstances => {
                "start Incus and stop them (incus stop --all --all-projects), or end their \
                 processes; then try again"
            }
            Self::StillRuns { .. } => {
                "stop what starts it (systemctl status PID names its unit), then run the same \
                 command again"
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
        let policy =
            policy::parse(&text.text, Path::new(&text.path)).map_err(CliError::ForeignPolicy)?;
        Ok(Self::of(policy, root, &mount_table()?)?)
    }

    /// Has a command of the incus client talk to this node's daemon, whatever the operator's own
    /// environment says.
    pub fn address(&self, command: &mut Command) {
        let directory = &self.incus.directory;
        let socket = self.incus.socket.clone().unwrap_or_else(|| directory.join("unix.socket"));
        // Fedora's daemon listens in /run/incus, where a client without these two looks first.
        let elsewhere =
            directory == Path::new(DEFAULT_DIRECTORY) && socket.symlink_metadata().is_err();
        if elsewhere {
            command.env_remove("INCUS_DIR").env_remove("INCUS_SOCKET");
        } else {
            command.env("INCUS_DIR", directory).env("INCUS_SOCKET", socket);
        }
    }

    /// The same in a given policy. `root` may be spelt in another way than in the policy.
    pub fn of(policy: Policy, root: Option<&Path>, snapshot: &Snapshot) -> Result<Self, NodeError> {
        let place = |path: &Path| roots::resolve_root(path, snapshot).0;
        let is_meant =
            |known: &Path| root.is_none_or(|root| root == known || place(root) == place(known));
        let nodes = || policy.roots().iter().filter_map(|root| Some((root, root.incus()?)));
        let paths = || nodes().map(|(node, _)| node.path().to_owned()).collect::<Vec<_>>();
        let mut meant = nodes().filter(|(node, _)| is_meant(node.path()));
        let (found, daemon) = match (meant.next(), meant.next(), root) {
            (Some(node), None, _) => node,
            (Some(_), Some(_), _) => return Err(NodeError::Ambiguous { nodes: paths() }),
            (None, _, Some(root)) if nodes().next().is_some() => {
                return Err(NodeError::Unknown { root: root.to_owned(), nodes: paths() });
            }
            (None, _, _) => return Err(NodeError::NoNode),
        };
        let executables =
            found.actors().iter().filter_map(|actor| actor.executable().map(Path::to_owned));
        let incus = incus::Options {
            directory: found.path().to_owned(),
            socket: daemon.socket().map(Path::to_owned),
            cgroup: daemon.cgroup(),
            executables: executables.collect(),
            proc_root: PathBuf::from("/proc"),
        };
        let (root, place) = (found.path().to_owned(), place(found.path()));
        Ok(Self { root, place, unit: daemon.unit().to_owned(), incus, policy })
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
    // A container's PID 1 is in the container's mount namespace too.
    let foreign = host_view::foreign_pid_namespace();
    match foreign
        .map_err(|source| NodeError::Io { operation: "look at this PID namespace", source })?
    {
        Some(_) => Err(NodeError::OtherNamespace),
        None => Ok(()),
    }
}

/// This process's mount table, as it is now.
pub fn mount_table() -> Result<Snapshot, NodeError> {
    let operation = "read /proc/self/mountinfo";
    let table = File::open("/proc/self/mountinfo").and_then(|table| mounts::read(&table));
    table.map_err(|source| NodeError::Io { operation, source })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn environment(root: &Path, socket: Option<&Path>) -> Vec<(String, Option<String>)> {
        let socket = socket.map(|socket| {
            format!(
                "incus_socket = \
                 {:?}\n",
                socket.display().to_string()
            )
        });
        let text = format!(
            "version = 1\n[[root]]\npreset = \"incus\"\npath = {:?}\n{}",
            root.display().to_string(),
            socket.unwrap_or_default()
        );
        let policy = policy::parse(&text, Path::new("test")).unwrap();
        let node = Node::of(policy, None, &Snapshot::parse(b"")).unwrap();
        let mut command = Command::new("incus");
        node.address(&mut command);
        let text = |value: &OsStr| value.to_string_lossy().into_owned();
        command.get_envs().map(|(name, value)| (text(name), value.map(text))).collect()
    }

    #[test]
    fn the_client_talks_to_the_nodes_own_daemon() {
        let root = Path::new("/srv/b");
        let expected = |socket: &str| {
            [("INCUS_DIR", "/srv/b"), ("INCUS_SOCKET", socket)]
                .map(|(name, value)| (name.to_owned(), Some(value.to_owned())))
        };
        assert_eq!(environment(root, None), expected("/srv/b/unix.socket"));
    }

    #[test]
    fn a_default_daemon_whose_socket_is_elsewhere_is_found_by_the_client_itself() {
        let found =
            environment(Path::new("/var/lib/incus"), Some(Path::new("/nonexistent/unix.socket")));
        assert_eq!(found, ["INCUS_DIR", "INCUS_SOCKET"].map(|name| (name.to_owned(), None)));
    }

    #[test]
    fn a_root_that_is_a_link_is_followed_and_keeps_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(directory.path()).unwrap();
        let (disk, link) = (base.join("disk/incus"), base.join("incus"));
        fs::create_dir_all(&disk).unwrap();
        symlink("disk/incus", &link).unwrap();
        let text = format!(
            "version = 1\n[[root]]\npreset = \"incus\"\npath = \
             {:?}\n",
            link.display().to_string()
        );
        let policy = || policy::parse(&text, Path::new("policy.toml")).unwrap();
        let snapshot = Snapshot::parse(b"1 0 8:1 / / rw - ext4 /dev/vda rw\n");
        for meant in [
            None,
            Some(link.as_path()),
            Some(disk.as_path()),
            Some(base.join("disk/../incus").as_path()),
        ] {
            let node = Node::of(policy(), meant, &snapshot).unwrap();
            assert_eq!(
                (node.root.as_path(), node.place.as_path()),
                (link.as_path(), disk.as_path())
            );
        }
        let other = base.join("other");
        assert!(matches!(
            Node::of(policy(), Some(&other), &snapshot),
            Err(NodeError::Unknown { .. })
        ));
    }
}
