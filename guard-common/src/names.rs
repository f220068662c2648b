//! Names of programs and maps, written once.

/// One program of the kernel object and the LSM hook that it is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramName {
    /// Name of the program in the object, and of its pin.
    pub program: &'static str,
    /// Name of the LSM hook, without `bpf_lsm_`.
    pub hook: &'static str,
    /// Whether a kernel without this hook can be guarded all the same. `file_truncate` came with
    /// 6.2.
    pub optional: bool,
}

const fn required(program: &'static str, hook: &'static str) -> ProgramName {
    ProgramName { program, hook, optional: false }
}

/// All programs. The deciders come first: they are attached first.
pub const PROGRAMS: &[ProgramName] = &[
    required("guard_path_unlink", "path_unlink"),
    required("guard_path_rmdir", "path_rmdir"),
    required("guard_path_rename", "path_rename"),
    required("guard_path_truncate", "path_truncate"),
    ProgramName { program: "guard_file_truncate", hook: "file_truncate", optional: true },
    required("guard_inode_unlink", "inode_unlink"),
    required("guard_inode_rmdir", "inode_rmdir"),
    required("guard_inode_rename", "inode_rename"),
    required("guard_inode_setattr", "inode_setattr"),
    required("guard_sb_delete", "sb_delete"),
];

/// Names of the maps; each is also the name of its pin. Kernel map names end after 15 characters.
pub mod map {
    /// `Array[1]` of [`Meta`](crate::Meta).
    pub const META: &str = "META";
    /// `Array[1]` of [`Config`](crate::Config).
    pub const CONFIG: &str = "CONFIG";
    /// `Array[1]` of [`Magics`](crate::policy::Magics).
    pub const MAGICS: &str = "MAGICS";
    /// `HashMap` from [`PoolKey`](crate::PoolKey) to [`PoolEntry`](crate::PoolEntry).
    pub const POOLS: &str = "POOLS";
    /// `HashMap` from [`RootKey`](crate::RootKey) to [`RootEntry`](crate::RootEntry).
    pub const ROOTS: &str = "ROOTS";
    /// `HashMap` from [`FilesystemKey`](crate::FilesystemKey) to [`KindEntry`](crate::KindEntry).
    pub const FILESYSTEMS: &str = "FILESYSTEMS";
    /// `HashMap` from [`CgroupKey`](crate::CgroupKey) to [`ActorMask`](crate::ActorMask).
    pub const ACTOR_CGROUPS: &str = "ACTOR_CGROUPS";
    /// `HashMap` from [`ExecutableKey`](crate::ExecutableKey) to [`ActorMask`](crate::ActorMask).
    pub const ACTOR_EXES: &str = "ACTOR_EXES";
    /// `HashMap` from [`LeaseKey`](crate::LeaseKey) to [`LeaseEntry`](crate::LeaseEntry).
    pub const LEASES: &str = "LEASES";
    /// `HashMap` from a pool's generation to [`PoolCounters`](crate::PoolCounters).
    pub const POOL_COUNTERS: &str = "POOL_COUNTERS";
    /// `HashMap` from [`IncidentKey`](crate::IncidentKey) to
    /// [`IncidentValue`](crate::IncidentValue).
    pub const INCIDENTS: &str = "INCIDENTS";
    /// `PerCpuArray` of `u64`, indexed by [`Counter`](crate::Counter).
    pub const COUNTERS: &str = "COUNTERS";
    /// `RingBuf` of [`Record`](crate::Record).
    pub const RECORDS: &str = "RECORDS";
    /// aya-log's own ring buffer: the kernel program's diagnostics.
    pub const AYA_LOGS: &str = "AYA_LOGS";

    /// `Array[1]` of bytes: the layout's description as JSON, padded with NULs (see
    /// [`description`](crate::description)).
    pub const DESCRIPTION: &str = "DESCRIPTION";
    /// `HashMap` from the token of maps that these have replaced to the value of each counter
    /// there.
    pub const CARRIED: &str = "CARRIED";
    /// `HashMap` from [`CarriedKey`](crate::CarriedKey) to [`PoolCounters`](crate::PoolCounters).
    pub const CARRIED_POOLS: &str = "CARRIED_POOLS";

    /// `HashMap` from the inode of a mount namespace to 1: storage daemons' namespaces, whose
    /// mounts are the host's view.
    pub const NAMESPACES: &str = "NAMESPACES";

    /// Name of a map in the object. [`CONFIG`] and [`MAGICS`] are sections of it: programs read
    /// those without a lookup.
    pub fn in_object(name: &str) -> &str {
        match name {
            CONFIG => CONFIG_SECTION,
            MAGICS => MAGICS_SECTION,
            other => other,
        }
    }

    /// The section of [`CONFIG`].
    pub const CONFIG_SECTION: &str = ".data.CONFIG";
    /// The section of [`MAGICS`].
    pub const MAGICS_SECTION: &str = ".data.MAGICS";

    /// Every map that is pinned.
    pub const ALL: &[&str] = &[
        META,
        CONFIG,
        MAGICS,
        POOLS,
        NAMESPACES,
        ROOTS,
        FILESYSTEMS,
        ACTOR_CGROUPS,
        ACTOR_EXES,
        LEASES,
        POOL_COUNTERS,
        INCIDENTS,
        COUNTERS,
        RECORDS,
        AYA_LOGS,
        DESCRIPTION,
        CARRIED,
        CARRIED_POOLS,
    ];
}

/// Maximum number of entries of each bounded map.
pub mod capacity {
    /// Pools: mounted superblocks of shared filesystems.
    pub const POOLS: u32 = 16_384;
    /// Places for the magics of guarded filesystems.
    pub const MAGICS: u32 = 64;
    /// Mount namespaces of storage daemons.
    pub const NAMESPACES: u32 = 64;
    /// Answers that each processor keeps, of walks and of cgroups (maps of the programs alone,
    /// which are not pinned).
    pub const CACHE: u32 = 256;
    /// Guarded roots.
    pub const ROOTS: u32 = 64;
    /// Kinds of shared filesystems; each has a bit in a `u64`.
    pub const FILESYSTEMS: u32 = 64;
    /// Actors by cgroup, and by executable.
    pub const ACTORS: u32 = 16_384;
    /// Leases of command trees.
    pub const LEASES: u32 = 4_096;
    /// Incidents: processes that were denied and have not been closed by the agent.
    pub const INCIDENTS: u32 = 16_384;
    /// Bytes of the layout's description.
    pub const DESCRIPTION_BYTES: usize = 16 * 1024;
    /// Replaced maps whose counters are carried.
    pub const CARRIED: u32 = 64;
    /// Bytes of the ring buffer of records (a power of two, whole pages).
    pub const RECORDS_BYTES: u32 = 512 * 1024;
}

/// Read-only globals of the kernel object, set when it is loaded.
pub mod global {
    /// `u32`: which load of the programs this is; a canary names the load that has to answer it.
    pub const PROGRAM_TOKEN: &str = "PROGRAM_TOKEN";
    /// `u32`: the [`Tier`](crate::Tier) that the programs are loaded for.
    pub const TIER: &str = "TIER";
    /// Two `u64`: addresses of the kernel's `mount_lock` and `rename_lock`; 0 where they are not
    /// told.
    pub const TREE: &str = "TREE";
    /// `u32`: not 0 for the second of two loads of the tier `fmod-ret` (the agent's `bpf/pins.rs`).
    pub const STANDBY: &str = "STANDBY";
}
