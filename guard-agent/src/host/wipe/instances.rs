//! Running instances that use files below a root: containers, virtual machines, and processes that
//! serve them. Told by mount namespace, cgroup, open files and sockets, not by program names: QEMU
//! is called `qemu-kvm` on some hosts, and its arguments name `/run/incus` only.
//!
//! Reads text below `/proc` alone; links are read, nothing is followed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host::rollback::all_namespaces;
use crate::host::rollback::container_of;
use crate::model::rollback::NamespaceTable;
use crate::model::rollback::guests::{is_host_view, part_below};

/// Parameters of a search.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// `/proc`.
    pub proc_root: &'a Path,
    /// The guarded root.
    pub root: &'a Path,
    /// The daemon, which is none.
    pub daemon: Option<u32>,
}

/// A process of an instance, or a host's process that uses an instance's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its name, or that of the process.
    pub name: String,
    pub kind: InstanceKind,
    /// The first process of it that was found.
    pub pid: u32,
    /// Name of the process.
    pub command: String,
    /// The path that it uses, as the host sees it.
    pub uses: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceKind {
    Container,
    VirtualMachine,
    /// A helper of one (virtiofsd), or a process of the host that has its files open.
    Process,
}

impl std::fmt::Display for Instance {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, kind, pid, command, uses } = self;
        let uses = uses.display();
        match kind {
            InstanceKind::Container => {
                write!(out, "container {name} (process {pid}, {command}) uses {uses}")
            }
            InstanceKind::VirtualMachine => {
                write!(out, "virtual machine {name} (process {pid}, {command}) uses {uses}")
            }
            InstanceKind::Process => write!(out, "process {pid} ({command}) uses {uses}"),
        }
    }
}

/// Directories below a root that hold files of instances. (The lease files of dnsmasq in `networks`
/// are not.)
const OF_INSTANCES: [&str; 6] =
    ["containers", "devices", "run", "shmounts", "storage-pools", "virtual-machines"];
/// Directory of a daemon without `INCUS_DIR`, and that of its runtime files.
const RUN: (&str, &str) = ("/var/lib/incus", "/run/incus");

/// Finds them. Processes that end meanwhile use nothing.
pub fn find(question: &Question<'_>) -> io::Result<Vec<Instance>> {
    let tables = all_namespaces(question.proc_root).map_err(io::Error::other)?;
    let host = tables.iter().find(|table| table.is_host);
    let host = host.ok_or_else(|| io::Error::other("PID 1 has no mount namespace"))?;
    let look = Look::new(question, &tables, host);
    let mut found: BTreeMap<(InstanceKind, String), Instance> = BTreeMap::new();
    for pid in processes(question.proc_root)? {
        if pid == 1 || Some(pid) == question.daemon {
            continue;
        }
        if let Some(instance) = look.instance(pid) {
            let key = match instance.kind {
                InstanceKind::Process => pid.to_string(),
                InstanceKind::Container | InstanceKind::VirtualMachine => instance.name.clone(),
            };
            found.entry((instance.kind, key)).or_insert(instance);
        }
    }
    Ok(found.into_values().collect())
}

struct Look<'a> {
    question: &'a Question<'a>,
    /// Guests that have something of the root mounted.
    parts: BTreeMap<u64, PathBuf>,
    /// Namespaces in which a path means the same as on the host.
    host_views: BTreeSet<u64>,
    run_directories: Vec<PathBuf>,
    /// Sockets with a name of interest, by inode.
    sockets: BTreeMap<u64, PathBuf>,
}

impl<'a> Look<'a> {
    fn new(question: &'a Question<'a>, tables: &[NamespaceTable], host: &NamespaceTable) -> Self {
        let part = |table: &NamespaceTable| {
            Some((table.namespace, part_below(table, host, question.root)?))
        };
        let mut run_directories = vec![question.root.join("run")];
        run_directories.extend((question.root == Path::new(RUN.0)).then(|| RUN.1.into()));
        let mut look = Self {
            question,
            parts: tables.iter().filter_map(part).collect(),
            host_views: tables
                .iter()
                .filter(|table| is_host_view(table, host))
                .map(|t| t.namespace)
                .collect(),
            run_directories,
            sockets: BTreeMap::new(),
        };
        let table = fs::read(question.proc_root.join("1/net/unix")).unwrap_or_default();
        let named = table.split(|byte| *byte == b'\n').filter_map(named_socket);
        look.sockets = named.filter(|(_, path)| look.is_of_instance(path)).collect();
        look
    }

    fn instance(&self, pid: u32) -> Option<Instance> {
        let directory = self.question.proc_root.join(pid.to_string());
        let namespace = namespace_of(&directory)?;
        let container = container_of(&read(&directory.join("cgroup"))).map(str::to_owned);
        let uses = match self.parts.get(&namespace) {
            Some(part) => part.clone(),
            None if self.host_views.contains(&namespace) => self.open_file(&directory)?,
            None => return None,
        };
        let command = read(&directory.join("comm")).trim_end().to_owned();
        let (kind, name) = match (container, self.name_of(&uses)) {
            (Some(name), _) => (InstanceKind::Container, name),
            (None, Some(name)) if self.host_views.contains(&namespace) => {
                (InstanceKind::VirtualMachine, name)
            }
            _ => (InstanceKind::Process, command.clone()),
        };
        Some(Instance { name, kind, pid, command, uses })
    }

    /// The first open file or socket of a process that is an instance's.
    fn open_file(&self, directory: &Path) -> Option<PathBuf> {
        let descriptors = fs::read_dir(directory.join("fd")).ok()?;
        descriptors.flatten().find_map(|entry| {
            let link = fs::read_link(entry.path()).ok()?;
            let text = link.to_string_lossy();
            let socket = text.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            match socket.and_then(|inode| inode.parse().ok()) {
                Some(inode) => self.sockets.get::<u64>(&inode).cloned(),
                None => Some(link).filter(|link| self.is_of_instance(link)),
            }
        })
    }

    fn is_of_instance(&self, path: &Path) -> bool {
        let below = |directory: &Path| {
            // The directory of an instance, and something in it.
            path.strip_prefix(directory).is_ok_and(|rest| rest.components().count() > 1)
        };
        OF_INSTANCES.iter().any(|name| below(&self.question.root.join(name)))
            || self.run_directories.iter().any(|directory| below(directory))
    }

    /// The name of the virtual machine whose file this is.
    fn name_of(&self, path: &Path) -> Option<String> {
        let first = |rest: &Path| {
            Some(rest.components().next()?.as_os_str().to_string_lossy().into_owned())
        };
        if let Some(rest) = self.run_directories.iter().find_map(|run| path.strip_prefix(run).ok())
        {
            return first(rest);
        }
        let rest = path.strip_prefix(self.question.root).ok()?;
        let mut parts =
            rest.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
        parts.find(|part| part == "virtual-machines")?;
        parts.next()
    }
}

/// Inode and path of a line of `/proc/PID/net/unix`. The names of liblxc's sockets begin with `@`.
fn named_socket(line: &[u8]) -> Option<(u64, PathBuf)> {
    let mut fields = line.splitn(2, |byte| *byte == b'/');
    let inode =
        fields.next()?.split(|byte| *byte == b' ').rfind(|field| !matches!(*field, b"" | b"@"))?;
    let inode = std::str::from_utf8(inode).ok()?.parse().ok()?;
    let mut path = b"/".to_vec();
    path.extend_from_slice(fields.next()?);
    Some((inode, PathBuf::from(OsStr::from_bytes(&path))))
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

fn namespace_of(directory: &Path) -> Option<u64> {
    let link = fs::read_link(directory.join("ns/mnt")).ok()?;
    link.to_str()?.strip_prefix("mnt:[")?.strip_suffix(']')?.parse().ok()
}

fn processes(proc_root: &Path) -> io::Result<Vec<u32>> {
    let names = fs::read_dir(proc_root)?.map(|entry| entry.map(|entry| entry.file_name()));
    let names = names.collect::<io::Result<Vec<_>>>()?;
    let mut processes: Vec<u32> =
        names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
    processes.sort_unstable();
    Ok(processes)
}

#[cfg(test)]
#[path = "instances_tests.rs"]
mod tests;
