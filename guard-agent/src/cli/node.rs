//! The node that an operator means, and the actions on it that guardctl's own place permits.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::{CliError, NodeError};
use super::global::{Global, expect_reply};
use crate::host::host_view;
use crate::host::incus;
use crate::host::mount_table;
use crate::host::roots;
use crate::host::wipe::instances::Instance;
use crate::model::control::{Reply, Request};
use crate::model::mounts::Snapshot;
use crate::model::policy;
use crate::model::policy::Policy;

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

impl NodeError {
    /// Of instances that are in the way.
    pub fn instances(node: &Node, running: &[Instance]) -> Self {
        let processes = running.iter().map(ToString::to_string).collect();
        Self::Instances { root: node.root.clone(), processes }
    }
}

/// The directory of an Incus without `INCUS_DIR`.
const DEFAULT_DIRECTORY: &str = "/var/lib/incus";

impl Node {
    /// The node at a root, or the only one, in the policy that the agent has in force.
    pub fn find(global: &Global, root: Option<&Path>) -> Result<Self, CliError> {
        let text = expect_reply!(global, Request::PolicyShow, Reply::PolicyText(policy) => policy);
        let policy =
            policy::parse(&text.text, Path::new(&text.path)).map_err(CliError::ForeignPolicy)?;
        Ok(Self::of(policy, root, &mount_table()?)?)
    }

    /// Has a command of the incus client talk to this node's daemon, despite the operator's own
    /// environment.
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
    let table = mount_table::open(mount_table::OWN);
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
