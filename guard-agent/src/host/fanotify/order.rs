//! The agent's wanted state of each mount, and the outcome: one JSON value a line between the agent
//! and its responder. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use guard_common::{Mode, PoolEntry, PoolKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::mounts::{MountEntry, Snapshot};

/// A path in JSON: a string, or its bytes where they are no text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathText(pub PathBuf);

impl Serialize for PathText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => serializer.collect_seq(self.0.as_os_str().as_bytes()),
        }
    }
}

impl<'de> Deserialize<'de> for PathText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(PathBuf),
            Bytes(Vec<u8>),
        }
        Ok(Self(match Form::deserialize(deserializer)? {
            Form::Text(path) => path,
            Form::Bytes(bytes) => OsString::from_vec(bytes).into(),
        }))
    }
}

/// A line to the responder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// Answer at once.
    Ping(u64),
    /// The state that all mounts shall be in. A mount that is not named bears no mark.
    Order(Order),
}

/// The wanted state of all mounts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub serial: u64,
    pub mounts: Vec<Wanted>,
}

/// The wanted state of one mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    pub mount_id: u32,
    /// `s_dev` in the kernel's encoding.
    pub dev: u32,
    /// As in [`PoolKey`]: 0 where the superblock has no parts.
    #[serde(default)]
    pub head: u32,
    /// Path by which it is reached.
    pub path: PathText,
    /// The part of the superblock that is mounted.
    pub root: PathText,
    /// Whether opening a directory in it is asked about.
    pub marked: bool,
    /// Whether it belongs to a pool: then deletions in its superblock are seen.
    pub is_pool: bool,
    /// Nothing: it stays as it is.
    pub read_only: Option<bool>,
}

/// A line from the responder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    Pong {
        number: u64,
        /// Number of times so far that deletions could not be seen, for want of room.
        missed: u64,
        /// Superblocks whose deletions cannot be seen, with the reasons.
        unseen: Option<String>,
        /// The reason if further mounts are not marked when they are attached.
        unwatched: Option<String>,
    },
    /// An order was carried out, as far as that was possible.
    Done { serial: u64, mounts: Vec<MountOutcome> },
}

/// Outcome for one mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOutcome {
    pub mount_id: u32,
    /// There is another mount, or none, by now.
    pub gone: bool,
    /// It could not be marked.
    pub unmarked: Option<String>,
    /// Its attribute could not be changed.
    pub unsealed: Option<String>,
}

/// A mount that was writable before it was sealed. One that was read-only already has no such
/// record: it is left as it is, also when its pool is no longer sealed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SealedMount {
    pub mount_id: u32,
    pub dev: u32,
    pub mountpoint: PathText,
}

impl SealedMount {
    fn of(entry: &MountEntry) -> Self {
        Self {
            mount_id: entry.mount_id,
            dev: entry.dev(),
            mountpoint: PathText(entry.mountpoint.clone()),
        }
    }

    /// Whether the mount table has this very mount.
    fn is(&self, entry: &MountEntry) -> bool {
        self.mount_id == entry.mount_id
            && self.dev == entry.dev()
            && self.mountpoint.0 == entry.mountpoint
    }
}

/// The steps for the mounts of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// To be on disk before the order goes out.
    pub sealed: BTreeSet<SealedMount>,
    pub mounts: Vec<Wanted>,
}

/// Mounts that their superblock does not tell all of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Special {
    /// Ids of mounts that are left alone: a visitor's at home.
    pub free: BTreeSet<u32>,
    /// By the mount's id: the head of the part of its superblock that it is of.
    pub heads: BTreeMap<u32, u32>,
}

/// The state that the host's mounts shall be in.
///
/// Sealed pools are read-only, but while a command has a lease on one: `leased` holds their
/// generations. A mount that is no longer sealed becomes writable again; one that was read-only
/// before it was sealed is not touched.
pub fn steps(
    pools: &BTreeMap<PoolKey, PoolEntry>,
    leased: &BTreeSet<u64>,
    special: &Special,
    snapshot: &Snapshot,
    recorded: &BTreeSet<SealedMount>,
) -> Steps {
    let mut steps = Steps::default();
    for mount in snapshot.entries() {
        let head = special.heads.get(&mount.mount_id).copied().unwrap_or(0);
        let pool = pools.get(&PoolKey { dev: mount.dev(), head });
        let pool = pool.filter(|_| !special.free.contains(&mount.mount_id));
        let seal =
            pool.is_some_and(|entry| is_sealed(entry) && !leased.contains(&entry.generation));
        let record = recorded.iter().find(|record| record.is(mount));
        if pool.is_none() && record.is_none() {
            continue;
        }
        let record = match record {
            Some(record) => Some(record.clone()),
            None if seal && !mount.is_read_only() => Some(SealedMount::of(mount)),
            None => None,
        };
        let read_only = match &record {
            _ if seal => Some(true),
            Some(_) => Some(false),
            None => None,
        };
        steps.sealed.extend(record);
        steps.mounts.push(Wanted {
            mount_id: mount.mount_id,
            dev: mount.dev(),
            head,
            path: PathText(mount.mountpoint.clone()),
            root: PathText(mount.root.clone()),
            marked: pool.is_some(),
            // A deletion on a visitor's superblock may be one at home, and one on a superblock with
            // parts may be another's: the event does not name the mount.
            is_pool: head == 0 && pool.is_some_and(|entry| !crate::model::plan::is_visitor(entry)),
            read_only,
        });
    }
    steps
}

fn is_sealed(entry: &PoolEntry) -> bool {
    matches!(Mode::from_u32(entry.mode), Some(Mode::Sealed) | None)
}

impl Wanted {
    /// The key of its pool's entry.
    pub fn key(&self) -> PoolKey {
        PoolKey { dev: self.dev, head: self.head }
    }

    /// Whether both name the same mount, as far as the mount table tells.
    pub fn is_same_place(&self, other: &Self) -> bool {
        (self.mount_id, self.dev, &self.path, &self.root)
            == (other.mount_id, other.dev, &other.path, &other.root)
    }

    /// Its path inside the superblock, from the path of an open directory.
    pub fn inside(&self, path: &Path) -> PathBuf {
        let below = path.strip_prefix(&self.path.0).unwrap_or(path);
        if below.as_os_str().is_empty() { self.root.0.clone() } else { self.root.0.join(below) }
    }
}

#[cfg(test)]
mod tests {
    use guard_common::policy::POOL_VISITOR;

    use super::*;

    const POOL: PoolKey = PoolKey::superblock(43);

    const TABLE: &str = "27 1 254:0 / / rw - ext4 /dev/vda rw\n\
                         41 27 0:43 / /r/pool rw,relatime - ceph a rw\n\
                         42 27 0:43 /v /elsewhere ro,relatime - ceph a rw\n\
                         43 27 0:44 / /other rw - tmpfs none rw\n";

    fn pools(mode: Mode) -> BTreeMap<PoolKey, PoolEntry> {
        [(POOL, PoolEntry { mode: mode as u32, generation: 7, ..PoolEntry::default() })].into()
    }

    fn wanted(steps: &Steps) -> Vec<(u32, bool, Option<bool>)> {
        steps.mounts.iter().map(|mount| (mount.mount_id, mount.marked, mount.read_only)).collect()
    }

    #[test]
    fn sealing_and_leaving_restores_exactly() {
        let before = Snapshot::parse(TABLE.as_bytes());
        let none = BTreeSet::new();
        let guarded =
            steps(&pools(Mode::Guarded), &none, &Special::default(), &before, &BTreeSet::new());
        assert_eq!(wanted(&guarded), [(41, true, None), (42, true, None)]);
        let sealed =
            steps(&pools(Mode::Sealed), &none, &Special::default(), &before, &BTreeSet::new());
        assert_eq!(wanted(&sealed), [(41, true, Some(true)), (42, true, Some(true))]);
        let ids: Vec<u32> = sealed.sealed.iter().map(|record| record.mount_id).collect();
        assert_eq!(ids, [41], "what was read-only already is nobody's to make writable");

        let after = Snapshot::parse(TABLE.replace("pool rw", "pool ro").as_bytes());
        // A restart in sealed mode believes the record, not the mount.
        let again = steps(&pools(Mode::Sealed), &none, &Special::default(), &after, &sealed.sealed);
        assert_eq!(again, sealed);
        let left = steps(&pools(Mode::Guarded), &none, &Special::default(), &after, &sealed.sealed);
        assert_eq!(wanted(&left), [(41, true, Some(false)), (42, true, None)]);
        let no_pool = steps(&BTreeMap::new(), &none, &Special::default(), &after, &sealed.sealed);
        assert_eq!(wanted(&no_pool), [(41, false, Some(false))]);
    }

    #[test]
    fn a_record_of_a_mount_that_is_gone_speaks_for_no_other() {
        let sealed = steps(
            &pools(Mode::Sealed),
            &BTreeSet::new(),
            &Special::default(),
            &Snapshot::parse(TABLE.as_bytes()),
            &BTreeSet::new(),
        );
        for other in [
            "41 27 0:99 / /r/pool ro - ceph a \
             rw\n",
            "41 27 0:43 / /r/other ro - ceph a rw\n",
            "",
        ] {
            let steps = steps(
                &BTreeMap::new(),
                &BTreeSet::new(),
                &Special::default(),
                &Snapshot::parse(other.as_bytes()),
                &sealed.sealed,
            );
            assert_eq!(steps, Steps::default(), "{other}");
        }
    }

    #[test]
    fn a_lease_opens_the_mount_and_its_end_seals_it() {
        let snapshot = Snapshot::parse(TABLE.as_bytes());
        let sealed = steps(
            &pools(Mode::Sealed),
            &BTreeSet::new(),
            &Special::default(),
            &snapshot,
            &BTreeSet::new(),
        );
        let leased = steps(
            &pools(Mode::Sealed),
            &[7].into(),
            &Special::default(),
            &snapshot,
            &sealed.sealed,
        );
        assert_eq!(wanted(&leased), [(41, true, Some(false)), (42, true, None)]);
        // An unknown mode is sealed.
        let unknown = [(POOL, PoolEntry { mode: 99, ..PoolEntry::default() })].into();
        let steps =
            steps(&unknown, &BTreeSet::new(), &Special::default(), &snapshot, &BTreeSet::new());
        assert_eq!(steps, sealed);
    }

    #[test]
    fn a_visitors_mount_at_home_is_left_alone() {
        let visitor =
            PoolEntry { mode: Mode::Sealed as u32, flags: POOL_VISITOR, ..PoolEntry::default() };
        let (pools, none) = ([(POOL, visitor)].into(), BTreeSet::new());
        let snapshot = Snapshot::parse(TABLE.as_bytes());
        let steps = steps(
            &pools,
            &none,
            &Special { free: [42].into(), ..Special::default() },
            &snapshot,
            &BTreeSet::new(),
        );
        assert_eq!(wanted(&steps), [(41, true, Some(true))]);
        assert!(!steps.mounts[0].is_pool, "its deletions are not watched: they may be at home");
    }

    #[test]
    fn a_path_inside_the_superblock() {
        let steps = steps(
            &pools(Mode::Guarded),
            &BTreeSet::new(),
            &Special::default(),
            &Snapshot::parse(TABLE.as_bytes()),
            &BTreeSet::new(),
        );
        assert_eq!(steps.mounts[0].inside(Path::new("/r/pool/a/b")), Path::new("/a/b"));
        assert_eq!(steps.mounts[0].inside(Path::new("/r/pool")), Path::new("/"));
        assert_eq!(steps.mounts[1].inside(Path::new("/elsewhere/x")), Path::new("/v/x"));
    }

    #[test]
    fn lines_survive_any_path() {
        let path = PathText(OsString::from_vec(b"/a\n\xff".to_vec()).into());
        let root = PathText("/ü".into());
        let wanted = Wanted {
            mount_id: 1,
            dev: 2,
            head: 3,
            path,
            root,
            marked: true,
            is_pool: true,
            read_only: None,
        };
        let line =
            serde_json::to_string(&Line::Order(Order { serial: 1, mounts: vec![wanted.clone()] }))
                .unwrap();
        assert!(!line.contains('\n') && line.contains("\"/ü\""), "{line}");
        let Line::Order(order) = serde_json::from_str(&line).unwrap() else { panic!("no order") };
        assert_eq!(order.mounts, [wanted]);
    }
}
