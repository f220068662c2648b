//! Hints about a policy: entries that are valid but probably not meant, and shared filesystems of
//! this host that it does not name. Shown by `guardctl policy check`, `doctor` and `status`. Pure.
//!
//! Nothing here is refused: a policy that was good yesterday stays good.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::model::classify::guarding_root;
use crate::model::mounts::{MountEntry, Snapshot};
use crate::model::plan::Resolved;
use crate::model::policy::{Actor, Filesystem, Policy, Root};

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// Stable: for scripts.
    pub code: String,
    /// Place and problem.
    pub what: String,
    /// Why it matters, and the fix.
    pub fix: String,
}

impl Hint {
    fn new(code: &str, what: String, fix: impl Into<String>) -> Self {
        Self { code: code.to_owned(), what, fix: fix.into() }
    }
}

/// Cgroups that hold far more than a storage daemon.
const WIDE: &[&str] = &["/system.slice", "/user.slice", "/machine.slice", "/init.scope"];
/// Prefix of Kubernetes' cgroups, in which CSI plugins and debug pods run.
const PODS: &str = "/kubepods";
/// Programs that obey any caller: to allow one is to allow everybody who may run it.
const ANYBODYS: &str = "ash bash busybox coreutils cp csh dash env find fish install ksh ln mv \
                        nsenter perl python python3 rm rmdir rsync sh shred sudo tcsh truncate \
                        unlink xargs zsh";
/// FUSE filesystems whose data is on this host.
const LOCAL_FUSE: &str = "archivemount bindfs encfs exfat ext4 fuse-overlayfs fuse-zip fuseext2 \
                          gocryptfs gvfsd-fuse lxcfs mergerfs ntfs ntfs-3g overlayfs portal \
                          snapfuse squashfuse squashfuse_ll";

/// Hints from the file alone.
pub fn lint(policy: &Policy) -> Vec<Hint> {
    policy
        .roots()
        .iter()
        .flat_map(|root| [kinds(root), cgroups(root), actors(root)].into_iter().flatten())
        .collect()
}

fn is_in(list: &str, name: &str) -> bool {
    list.split_ascii_whitespace().any(|listed| listed == name)
}

fn place(root: &Root) -> String {
    format!("root {}", root.path().display())
}

fn has_glob(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

fn kinds(root: &Root) -> Vec<Hint> {
    let globs = root.filesystems().iter().filter(|name| has_glob(name));
    let hint = |name: &String| {
        let what =
            format!("{}: `{name}` in filesystems is no pattern, and protects nothing", place(root));
        Hint::new(
            "glob-in-filesystems",
            what,
            "name each kind as /proc/self/mountinfo does, such as \"fuse.juicefs\"",
        )
    };
    globs.map(hint).collect()
}

fn cgroups(root: &Root) -> Vec<Hint> {
    let of_actors = root.actors().iter().filter_map(Actor::cgroup).map(|path| ("an actor", path));
    let of_guests = root.guests().iter().map(|path| ("a guest", path.as_str()));
    let hint = |(who, path): (&str, &str)| {
        if let Some(inner) = path.strip_prefix("/sys/fs/cgroup") {
            let what = format!(
                "{}: the cgroup `{path}` of {who} is a path of the file system",
                place(root)
            );
            let inner = if inner.is_empty() { "/" } else { inner };
            let fix =
                format!("it matches no process: write it as /proc/PID/cgroup does, `{inner}`");
            return Some(Hint::new("cgroup-below-sysfs", what, fix));
        }
        let what = format!("{}: the cgroup `{path}` of {who} is no pattern", place(root));
        let fix = "it matches only a cgroup of that very name: name the cgroup above, with all \
                   that is below it";
        has_glob(path).then(|| Hint::new("glob-in-cgroup", what, fix))
    };
    of_actors.chain(of_guests).filter_map(hint).collect()
}

fn actors(root: &Root) -> Vec<Hint> {
    const CODE: &str = "wide-actor";
    let hint = |actor: &Actor| {
        let program =
            actor.executable().and_then(|path| path.file_name()).and_then(|name| name.to_str());
        let anybodys = program.filter(|name| is_in(ANYBODYS, without_version(name)));
        let wide = actor.cgroup().filter(|path| WIDE.contains(path) || path.starts_with(PODS));
        if let Some(path) = wide.filter(|_| actor.executable().is_none() || anybodys.is_some()) {
            let what =
                format!("{}: the actor `{path}` is far more than a storage daemon", place(root));
            let fix = match path.starts_with(PODS) {
                true => {
                    "CSI plugins and debug pods would delete through the host's mounts: name pods \
                     in guests"
                }
                false => {
                    "whatever runs there may delete: name the daemon's own unit \
                     (/system.slice/incus.service)"
                }
            };
            return Some(Hint::new(CODE, what, fix));
        }
        let name = anybodys.filter(|_| actor.cgroup().is_none())?;
        let what = format!("{}: the actor `{name}` is a program that everybody runs", place(root));
        let fix = "a deletion by hand passes: name the daemon's own executable, or its cgroup in \
                   the same entry";
        Some(Hint::new(CODE, what, fix))
    };
    root.actors().iter().filter_map(hint).collect()
}

/// `python3` of `python3.11`.
fn without_version(name: &str) -> &str {
    name.split_once('.').map_or(name, |(bare, _)| bare)
}

/// Actors that are not on this host. Of a preset's, which are those of many distributions, one
/// suffices.
pub fn unresolved(policy: &Policy, resolved: &Resolved) -> Vec<Hint> {
    let is_here = |actor: &&Actor| {
        actor.cgroup().is_none_or(|path| resolved.cgroups.contains_key(path))
            && actor.executable().is_none_or(|path| resolved.executables.contains_key(path))
    };
    let mut hints = Vec::new();
    for (root, _) in policy.roots().iter().zip(&resolved.roots).filter(|(_, found)| found.is_some())
    {
        let absent: Vec<&Actor> = root.actors().iter().filter(|actor| !is_here(actor)).collect();
        if absent.is_empty() || root.has_preset_actors() && absent.len() < root.actors().len() {
            continue;
        }
        let names: Vec<String> = absent.into_iter().map(describe).collect();
        let what = format!("{}: not on this host: {}", place(root), names.join("; "));
        let fix = "it matches nobody until it is there: start the daemon, or correct the path \
                   (systemctl show -p ControlGroup UNIT)";
        hints.push(Hint::new("unresolved-actor", what, fix));
    }
    hints
}

fn describe(actor: &Actor) -> String {
    let cgroup = actor.cgroup().map(|path| format!("cgroup {path}"));
    let executable = actor.executable().map(|path| format!("executable {}", path.display()));
    cgroup.into_iter().chain(executable).collect::<Vec<_>>().join(" with ")
}

/// Shared filesystems below roots that do not name them. One hint for each kind below each
/// (innermost) root.
pub fn unnamed_shares(policy: &Policy, snapshot: &Snapshot) -> Vec<Hint> {
    let is_guarded = |entry: &MountEntry| {
        let kind = policy.filesystem(&entry.fs_type);
        kind.is_some_and(|kind| guarding_root(&entry.mountpoint, kind, policy).is_some())
    };
    let innermost = |entry: &MountEntry| {
        let above = policy.roots().iter().filter(|root| entry.mountpoint.starts_with(root.path()));
        above.max_by_key(|root| root.path().components().count()).map(Root::path)
    };
    let open: Vec<&MountEntry> = snapshot
        .entries()
        .iter()
        .filter(|entry| is_shared(&entry.fs_type) && !is_guarded(entry))
        .collect();
    let mut hints = Vec::new();
    for root in policy.roots() {
        let mut seen: Vec<(&str, usize, &Path)> = Vec::new();
        for entry in open.iter().filter(|entry| innermost(entry) == Some(root.path())) {
            match seen.iter_mut().find(|(kind, ..)| *kind == entry.fs_type) {
                Some((_, count, _)) => *count += 1,
                None => seen.push((&entry.fs_type, 1, &entry.mountpoint)),
            }
        }
        for (kind, count, mountpoint) in seen {
            let more = if count > 1 { format!(" (mounts of it: {count})") } else { String::new() };
            let what = format!(
                "{}: {kind} at {}{more} is not protected",
                place(root),
                mountpoint.display()
            );
            let fix = format!(
                "policy does not name that kind there: add \"{kind}\" to the root's filesystems"
            );
            hints.push(Hint::new("unnamed-share", what, fix));
        }
    }
    hints
}

/// Whether a type in mountinfo may be of data that others share.
fn is_shared(fs_type: &str) -> bool {
    match fs_type.strip_prefix("fuse.") {
        Some(subtype) => !is_in(LOCAL_FUSE, subtype),
        None => {
            fs_type != "tmpfs" && !fs_type.starts_with("fuseblk") && Filesystem::is_known(fs_type)
        }
    }
}

#[cfg(test)]
mod tests;
