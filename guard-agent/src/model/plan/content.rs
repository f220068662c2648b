//! The content of the maps, the policy's resolved paths, and operations on the maps.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use guard_common::{
    ActorMask, CgroupKey, Config, ExecutableKey, FilesystemKey, PoolEntry, PoolKey, RootEntry,
    RootKey,
};

/// One change of one map entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapOperation {
    PutConfig(Config),
    /// The word in one place of the map of guarded magics.
    PutMagic {
        slot: u32,
        magic: u64,
    },
    PutNamespace(u32),
    RemoveNamespace(u32),
    PutFilesystem(FilesystemKey, u32),
    RemoveFilesystem(FilesystemKey),
    PutRoot(RootKey, RootEntry),
    RemoveRoot(RootKey),
    PutActorCgroup(CgroupKey, ActorMask),
    RemoveActorCgroup(CgroupKey),
    PutActorExecutable(ExecutableKey, ActorMask),
    RemoveActorExecutable(ExecutableKey),
    /// Only if there is no entry (`BPF_NOEXIST`).
    CreatePool {
        key: PoolKey,
        entry: PoolEntry,
    },
    /// Only if there is an entry (`BPF_EXIST`): the superblock may just have ended.
    UpdatePool {
        key: PoolKey,
        entry: PoolEntry,
    },
    RemovePool {
        key: PoolKey,
    },
}

/// Operations in the order to apply them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub operations: Vec<MapOperation>,
    /// Goes to `Meta::next_generation` before the first operation is applied.
    pub next_generation: u64,
}

/// The content of the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub config: Config,
    /// By `magic_slot`; empty stands for zeros.
    pub magics: Vec<u64>,
    pub pools: BTreeMap<PoolKey, PoolEntry>,
    /// Mount namespaces that are the host's view beside PID 1's.
    pub namespaces: BTreeSet<u32>,
    pub roots: BTreeMap<RootKey, RootEntry>,
    pub filesystems: BTreeMap<FilesystemKey, u32>,
    pub actor_cgroups: BTreeMap<CgroupKey, ActorMask>,
    pub actor_executables: BTreeMap<ExecutableKey, ActorMask>,
    /// Whether there is any lease of a command.
    pub leases: bool,
}

/// The policy's paths, resolved on this host. Made by `roots`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// In the order of the policy's roots; `None` where the directory is absent or cannot be looked
    /// at.
    pub roots: Vec<Option<RootKey>>,
    /// Inodes of the mount namespaces that roots name.
    pub namespaces: BTreeSet<u32>,
    /// `i_generation` of roots and executables, by `s_dev` and inode, where the filesystem tells
    /// it.
    pub generations: BTreeMap<(u32, u64), u32>,
    /// Cgroup ids, by path.
    pub cgroups: BTreeMap<String, u64>,
    /// `s_dev` and inode, by path.
    pub executables: BTreeMap<PathBuf, (u32, u64)>,
    /// Inodes of the roots of CephFS pools, by `s_dev`; only while something is sealed.
    pub pool_roots: BTreeMap<u32, u64>,
}

/// A flag, or none.
pub(super) fn flag(set: bool, flag: u32) -> u32 {
    if set { flag } else { 0 }
}
