//! Mount tables of all namespaces × superblocks to unmount → unmounts in order, and obstacles.
//! Pure.
//!
//! umount2(2) takes a path and unmounts the topmost mount there. So a mount comes after everything
//! that is mounted on it, and after each mount that hides its path. Mounts of others are never
//! unmounted: they are named, and everything below them stays.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::table::NamespaceTable;
use crate::model::mounts::MountEntry;

/// A superblock that has to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `s_dev` in the kernel's encoding. Used again after the superblock's end, so it only counts
    /// while the generation lives.
    pub dev: u32,
    pub generation: u64,
    /// For people.
    pub name: String,
}

/// One unmount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Inode of the mount namespace.
    pub namespace: u64,
    pub mount_id: u32,
    pub dev: u32,
    /// As seen from the namespace's root.
    pub mountpoint: PathBuf,
    pub kind: StepKind,
}

/// Why something is unmounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepKind {
    /// A mount of a superblock that has to go.
    Pool { generation: u64 },
    /// The storage daemon's own, mounted on or over such a mount below the guarded root.
    Own,
}

/// Why a mount of a target cannot be unmounted now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// Another filesystem is mounted on it.
    Foreign { namespace: u64, mountpoint: PathBuf, on: PathBuf, fs_type: String },
    /// Its path leads to another mount.
    Hidden { namespace: u64, mountpoint: PathBuf, by: PathBuf, fs_type: String },
}

/// The steps in their order, and the obstacles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnmountPlan {
    pub steps: Vec<Step>,
    pub obstacles: Vec<Obstacle>,
}

/// Filesystems that Incus mounts for itself below its directory, and that hold no data of anybody.
const OWN: [&str; 3] = ["tmpfs", "nsfs", "fuse.lxcfs"];

/// Plans the unmounts. The host's namespace comes first: a mount that is unmounted there goes from
/// those that follow it.
pub fn plan(tables: &[NamespaceTable], targets: &[Target], root: &Path) -> UnmountPlan {
    let mut plan = UnmountPlan::default();
    let hosts_first =
        tables.iter().filter(|t| t.is_host).chain(tables.iter().filter(|t| !t.is_host));
    for table in hosts_first {
        Planner::new(table, targets, root).add_to(&mut plan);
    }
    plan.obstacles.sort();
    plan.obstacles.dedup();
    plan
}

/// Plans one namespace.
struct Planner<'a> {
    table: &'a NamespaceTable,
    root: &'a Path,
    generations: BTreeMap<u32, u64>,
    by_id: BTreeMap<u32, &'a MountEntry>,
    /// In the kernel's order.
    children: BTreeMap<u32, Vec<&'a MountEntry>>,
    /// Device of the filesystem that the root directory lies on: binds of it below the root are the
    /// daemon's.
    root_dev: Option<u32>,
    /// Mounts that were looked at: whether they can go.
    settled: BTreeMap<u32, bool>,
}

impl<'a> Planner<'a> {
    fn new(table: &'a NamespaceTable, targets: &[Target], root: &'a Path) -> Self {
        let entries = table.mounts.entries();
        let mut children: BTreeMap<u32, Vec<&MountEntry>> = BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.parent_id != entry.mount_id) {
            children.entry(entry.parent_id).or_default().push(entry);
        }
        let generations: BTreeMap<u32, u64> =
            targets.iter().map(|t| (t.dev, t.generation)).collect();
        let root_dev = table.mounts.mount_of(root).map(MountEntry::dev);
        Self {
            table,
            root,
            by_id: entries.iter().map(|entry| (entry.mount_id, entry)).collect(),
            children,
            root_dev: root_dev.filter(|dev| !generations.contains_key(dev)),
            generations,
            settled: BTreeMap::new(),
        }
    }

    fn add_to(mut self, plan: &mut UnmountPlan) {
        let entries = self.table.mounts.entries().iter().rev();
        for entry in
            entries.filter(|entry| self.generations.contains_key(&entry.dev())).collect::<Vec<_>>()
        {
            self.settle(entry, plan, &mut BTreeSet::new());
        }
    }

    /// Adds the mounts that have to go before a mount, then the mount. Returns whether it can go.
    fn settle(
        &mut self,
        entry: &'a MountEntry,
        plan: &mut UnmountPlan,
        waiting: &mut BTreeSet<u32>,
    ) -> bool {
        if let Some(settled) = self.settled.get(&entry.mount_id) {
            return *settled;
        }
        if !waiting.insert(entry.mount_id) {
            // The table was read while it changed, and its lines contradict each other: the next
            // look decides.
            return false;
        }
        let mut can_go = true;
        for above in
            self.children.get(&entry.mount_id).cloned().unwrap_or_default().into_iter().rev()
        {
            if !self.may_go(above) {
                can_go = false;
                plan.obstacles.push(Obstacle::Foreign {
                    namespace: self.table.namespace,
                    mountpoint: above.mountpoint.clone(),
                    on: entry.mountpoint.clone(),
                    fs_type: above.fs_type.clone(),
                });
            } else if !self.settle(above, plan, waiting) {
                can_go = false;
            }
        }
        for cover in self.covers(entry) {
            if waiting.contains(&cover.mount_id) {
                continue;
            }
            if !self.may_go(cover) {
                can_go = false;
                plan.obstacles.push(Obstacle::Hidden {
                    namespace: self.table.namespace,
                    mountpoint: entry.mountpoint.clone(),
                    by: cover.mountpoint.clone(),
                    fs_type: cover.fs_type.clone(),
                });
            } else if !self.settle(cover, plan, waiting) {
                can_go = false;
            }
        }
        waiting.remove(&entry.mount_id);
        self.settled.insert(entry.mount_id, can_go);
        if can_go {
            plan.steps.push(self.step(entry));
        }
        can_go
    }

    fn step(&self, entry: &MountEntry) -> Step {
        let kind = match self.generations.get(&entry.dev()) {
            Some(generation) => StepKind::Pool { generation: *generation },
            None => StepKind::Own,
        };
        Step {
            namespace: self.table.namespace,
            mount_id: entry.mount_id,
            dev: entry.dev(),
            mountpoint: entry.mountpoint.clone(),
            kind,
        }
    }

    /// Whether it is a target's, or the daemon's own.
    fn may_go(&self, entry: &MountEntry) -> bool {
        let below = entry.mountpoint != self.root && entry.mountpoint.starts_with(self.root);
        let own = || OWN.contains(&entry.fs_type.as_str()) || Some(entry.dev()) == self.root_dev;
        self.generations.contains_key(&entry.dev()) || (below && own())
    }

    /// The mounts that a lookup of a mount's path meets instead of it: those that share a parent
    /// with it, or with the mounts that it is mounted on, and lie above it. (They can only have
    /// come later.)
    fn covers(&self, entry: &'a MountEntry) -> Vec<&'a MountEntry> {
        let mut covers = Vec::new();
        let (mut mount, mut seen) = (entry, BTreeSet::from([entry.mount_id]));
        while let Some(parent) = self.by_id.get(&mount.parent_id) {
            let siblings = self.children.get(&mount.parent_id).into_iter().flatten();
            covers.extend(siblings.filter(|other| {
                other.mount_id != mount.mount_id
                    && mount.mountpoint.starts_with(&other.mountpoint)
                    && mount.mountpoint != other.mountpoint
            }));
            if !seen.insert(parent.mount_id) {
                break;
            }
            mount = parent;
        }
        covers
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
