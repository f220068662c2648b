//! One state of the mount table, and the difference of two.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::{MountEntry, ParseProblem, parse};

/// The mount table at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    entries: Vec<MountEntry>,
    problems: Vec<ParseProblem>,
    by_id: HashMap<u32, usize>,
}

/// The changes from one snapshot to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotDiff {
    pub added: Vec<MountEntry>,
    pub removed: Vec<MountEntry>,
    /// Same mount and superblock, other options, place or propagation: before and after.
    pub changed: Vec<(MountEntry, MountEntry)>,
}

impl SnapshotDiff {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

impl Snapshot {
    /// Reads the table's text.
    pub fn parse(table: &[u8]) -> Self {
        let (entries, problems) = parse(table);
        Self::of(entries, problems)
    }

    fn of(entries: Vec<MountEntry>, problems: Vec<ParseProblem>) -> Self {
        let by_id =
            entries.iter().enumerate().map(|(index, entry)| (entry.mount_id, index)).collect();
        Self { entries, problems, by_id }
    }

    /// The mounts, in the kernel's order.
    pub fn entries(&self) -> &[MountEntry] {
        &self.entries
    }

    /// The lines that are no mounts.
    pub fn problems(&self) -> &[ParseProblem] {
        &self.problems
    }

    /// The mount of this id.
    pub fn mount(&self, mount_id: u32) -> Option<&MountEntry> {
        self.by_id.get(&mount_id).map(|index| &self.entries[*index])
    }

    /// The topmost mount that a path lies on: a lookup would meet it, links aside.
    pub fn mount_of(&self, path: &Path) -> Option<&MountEntry> {
        let above = self.entries.iter().filter(|entry| path.starts_with(&entry.mountpoint));
        let above: Vec<(&MountEntry, usize)> =
            above.map(|entry| (entry, entry.mountpoint.components().count())).collect();
        // Of those that share a parent, one that lies higher can only have come later: it hides the
        // others.
        let mut highest: HashMap<u32, usize> = HashMap::new();
        for (entry, depth) in &above {
            let highest = highest.entry(entry.parent_id).or_insert(*depth);
            *highest = (*highest).min(*depth);
        }
        let visible =
            above.into_iter().filter(|(entry, depth)| highest.get(&entry.parent_id) == Some(depth));
        // Among those of equal depth the kernel's order decides (the last is on top), which
        // max_by_key keeps.
        visible.max_by_key(|(_, depth)| *depth).map(|(entry, _)| entry)
    }

    /// The same mounts, as a process outside the root directory `root` sees them.
    #[must_use]
    pub fn below(&self, root: &Path) -> Self {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            let relative = entry.mountpoint.strip_prefix("/").unwrap_or(&entry.mountpoint);
            // Joining an empty path would add a slash to the end.
            entry.mountpoint =
                if relative.as_os_str().is_empty() { root.to_owned() } else { root.join(relative) };
        }
        Self::of(entries, self.problems.clone())
    }

    /// These mounts, and those of another view of the same namespace that this one does not show.
    #[must_use]
    pub fn joined(&self, other: &Self) -> Self {
        let more = other.entries.iter().filter(|entry| self.mount(entry.mount_id).is_none());
        let entries = self.entries.iter().chain(more).cloned().collect();
        Self::of(entries, self.problems.iter().chain(&other.problems).cloned().collect())
    }

    /// These mounts, and those of another namespace whose superblocks this one does not show. Only
    /// for telling pools: paths of two namespaces are not to be looked up in one table.
    #[must_use]
    pub fn with_superblocks_of<'a>(&self, others: impl IntoIterator<Item = &'a Self>) -> Self {
        let shown: HashSet<u32> = self.entries.iter().map(MountEntry::dev).collect();
        let others = others.into_iter().flat_map(|other| &other.entries);
        let more = others.filter(|entry| !shown.contains(&entry.dev()));
        Self::of(self.entries.iter().chain(more).cloned().collect(), self.problems.clone())
    }

    /// The changes from this snapshot to `next`.
    pub fn diff(&self, next: &Self) -> SnapshotDiff {
        let identity = |entry: &MountEntry| (entry.mount_id, entry.dev());
        let before: HashMap<_, _> =
            self.entries.iter().map(|entry| (identity(entry), entry)).collect();
        let after: HashSet<_> = next.entries.iter().map(identity).collect();
        let mut diff = SnapshotDiff::default();
        for entry in &next.entries {
            match before.get(&identity(entry)) {
                None => diff.added.push(entry.clone()),
                Some(old) if *old != entry => diff.changed.push(((*old).clone(), entry.clone())),
                Some(_) => {}
            }
        }
        diff.removed = self
            .entries
            .iter()
            .filter(|entry| !after.contains(&identity(entry)))
            .cloned()
            .collect();
        diff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "27 1 254:0 / / rw - ext4 /dev/vda rw\n\
                         40 27 0:30 / /var/lib rw - tmpfs none rw\n\
                         41 40 0:43 / /var/lib/incus/pool rw - ceph a rw\n\
                         42 41 0:44 / /var/lib/incus/pool rw - ceph b rw\n\
                         43 27 0:45 / /var/library rw - tmpfs none rw\n";

    #[test]
    fn the_topmost_mount_wins() {
        let snapshot = Snapshot::parse(TABLE.as_bytes());
        for (path, mount_id) in [
            ("/", 27),
            ("/var", 27),
            ("/var/lib/incus", 40),
            ("/var/lib/incus/pool/x", 42),
            ("/var/library", 43),
        ] {
            assert_eq!(snapshot.mount_of(Path::new(path)).unwrap().mount_id, mount_id, "{path}");
        }
        assert_eq!(snapshot.mount(41).unwrap().source, "a");
        let other = Snapshot::parse(
            b"60 59 0:43 / /elsewhere rw - ceph a rw\n61 59 0:60 / /own rw - ceph \
             c rw\n",
        );
        let both = snapshot.with_superblocks_of([&other]);
        assert_eq!(both.entries().len(), snapshot.entries().len() + 1);
        assert_eq!(both.entries().last().unwrap().mountpoint, Path::new("/own"));
        assert_eq!(snapshot.mount(99), None);
    }

    #[test]
    fn a_mount_above_hides_what_was_there_before() {
        let table = "27 1 254:0 / / rw - ext4 /dev/vda rw\n\
                     41 27 0:43 / /a/b rw - ceph a rw\n\
                     42 27 0:44 / /a rw - tmpfs none rw\n";
        assert_eq!(
            Snapshot::parse(table.as_bytes()).mount_of(Path::new("/a/b/c")).unwrap().mount_id,
            42
        );
    }

    #[test]
    fn a_reused_mount_id_is_removed_and_added() {
        let before = Snapshot::parse(TABLE.as_bytes());
        let text =
            TABLE.replace("41 40 0:43", "41 40 0:99").replace("/var/library rw", "/var/library ro");
        let diff = before.diff(&Snapshot::parse(text.as_bytes()));
        assert_eq!((diff.added[0].minor, diff.removed[0].minor), (99, 43));
        assert_eq!((diff.added.len(), diff.removed.len(), diff.changed.len()), (1, 1, 1));
        assert_eq!(diff.changed[0].1.options, "ro");
        assert!(before.diff(&before).is_empty());
    }

    #[test]
    fn fifty_thousand_mounts() {
        let table: String =
            (0..50_000).map(|id| format!("{id} 1 0:{id} / /m/{id} rw - tmpfs none rw\n")).collect();
        let snapshot = Snapshot::parse(table.as_bytes());
        assert_eq!(snapshot.entries().len(), 50_000);
        assert!(snapshot.diff(&snapshot).is_empty());
    }

    #[test]
    fn fifty_thousand_mounts_on_one_place() {
        let mount = |id| format!("{id} {} 0:{id} / /m rw - tmpfs none rw\n", id - 1);
        let snapshot = Snapshot::parse((1..=50_000).map(mount).collect::<String>().as_bytes());
        assert_eq!(snapshot.mount_of(Path::new("/m/x")).unwrap().mount_id, 50_000);
    }
}
