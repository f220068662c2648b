//! The policy that the agent supplies through maps.

use crate::names::capacity;

crate::wire_enum! {
    /// The kernel's treatment of deletions on a pool.
    Mode {
        /// Everyone is denied, the storage daemon included.
        Sealed = 1 => "sealed",
        /// Guest views and actors are allowed, everyone else is denied.
        Guarded = 2 => "guarded",
        /// Everything is allowed; would-be denials are recorded.
        Observed = 3 => "observed",
        /// Everything is allowed and recorded until the release ends; then as sealed.
        Released = 4 => "released",
        /// Guest views go on as in a guarded pool; everyone else is denied, the storage daemon
        /// included.
        Held = 5 => "held",
    }
}

/// Identifies the pinned maps. `Array[1]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// [`LAYOUT_VERSION`](crate::LAYOUT_VERSION) of the maps.
    pub layout_version: u32,
    pub reserved: u32,
    /// The next generation to be given to a pool. Only ever grows, so that no two superblocks share
    /// one.
    pub next_generation: u64,
}

/// Settings that every decision needs first. `Array[1]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Inode of the mount namespace of PID 1 (`/proc/1/ns/mnt`).
    pub host_mnt_ns: u32,
    /// Number of full records an incident gets before its denials are only counted.
    pub full_records: u32,
    /// `CONFIG_*` flags.
    pub flags: u32,
    /// Bit `device_bit(d)` is set for the device of each guarded root. A clear bit proves that no
    /// root lies on a superblock, so that a walk need not look at its names. 0: not known, every
    /// name is looked at.
    pub root_devices: u32,
    /// Odd while the agent changes other maps, and another number after each change: the kernel
    /// program's kept answers hold for one even number.
    pub generation: u32,
    pub reserved: u32,
}

/// Some pool is sealed: the actors in the set [`ALIAS_ACTORS`] delete on no superblock of a guarded
/// kind outside the roots either, unless its entry says [`POOL_NO_ALIAS`].
pub const CONFIG_ALIASES: u32 = 1 << 0;

/// With [`CONFIG_ALIASES`]: every sealed pool is CephFS, and its root's inode is in `ROOTS`
/// ([`RootKey::alias`]). Where a whole Ceph filesystem is mounted, names tell then whether
/// something is a sealed pool's.
pub const CONFIG_ALIASES_BY_INODE: u32 = 1 << 1;

/// Some pool is sealed or released. Without it, the `inode_*` hooks have nothing to say to a user's
/// thread.
pub const CONFIG_STRICT: u32 = 1 << 2;

/// A command may have a lease. Without it, nobody has one.
pub const CONFIG_LEASES: u32 = 1 << 3;

/// The set of all actors of sealed pools. No root has this set.
pub const ALIAS_ACTORS: u32 = u32::MAX;

/// The magics of guarded filesystems, each at its [`magic_slot`].
pub type Magics = [u64; capacity::MAGICS as usize];

/// The place in the map `MAGICS` that stands for a superblock's magic: the way out for all
/// filesystems that cannot hold a pool. There stands the guarded magic of that place, 0 for none,
/// or [`SEVERAL_MAGICS`].
#[inline(always)]
pub const fn magic_slot(magic: u64) -> u32 {
    // Fibonacci hashing: the upper six bits of the product are well mixed.
    (magic.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58) as u32
}

/// Several guarded magics share the place.
pub const SEVERAL_MAGICS: u64 = u64::MAX;

/// The bit of `Config::root_devices` that stands for a superblock's device.
#[inline(always)]
pub const fn device_bit(dev: u32) -> u32 {
    // As `magic_slot`, with the upper five bits.
    1 << (dev.wrapping_mul(0x9E37_79B9) >> 27)
}

/// Magic of every FUSE superblock; its kind is told by the subtype.
pub const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;
/// Magic of CephFS through the kernel client.
pub const CEPH_SUPER_MAGIC: u64 = 0x00c3_6400;
/// Inode of the root of every Ceph filesystem.
pub const CEPH_INO_ROOT: u64 = 1;
/// Magic of NFS, in all versions.
pub const NFS_SUPER_MAGIC: u64 = 0x6969;
/// Magic of ramfs, on which the canary lives.
pub const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// Key of `POOLS`: a superblock, or a part of one that serves several purposes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolKey {
    /// `s_dev` in the kernel's encoding (see [`kernel_dev`]).
    pub dev: u32,
    /// 0 for the superblock; else a part of it, by the id of the mount that stands for it
    /// (`mnt_id`): everything below that mount's root. Parts are looked for only where the
    /// superblock's own entry says [`POOL_PARTS`].
    pub head: u32,
}

impl PoolKey {
    /// A whole superblock.
    #[inline(always)]
    pub const fn superblock(dev: u32) -> Self {
        Self { dev, head: 0 }
    }

    /// Whether it is a part.
    pub const fn is_part(&self) -> bool {
        self.head != 0
    }
}

/// Entry of `POOLS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolEntry {
    /// Only there to be in the way: see the feature `other-layout`.
    #[cfg(feature = "other-layout")]
    pub other: u64,
    /// Unique to this superblock among all that ever had an entry.
    pub generation: u64,
    /// Names the shared filesystem and path behind the pool; the same after a remount.
    pub pool_id: u64,
    /// End of a release, on the boot clock in nanoseconds. Only read in mode `released`.
    pub expires_boot_ns: u64,
    /// The superblock's magic. An entry never speaks for a superblock of another magic.
    pub magic: u64,
    /// See [`Checked`](crate::Checked).
    pub check: u64,
    /// [`Mode`].
    pub mode: u32,
    /// Which set of actors applies: one set for each guarded root.
    pub actor_set: u32,
    /// `POOL_*` flags.
    pub flags: u32,
    /// With [`POOL_CANARY`]: the only load of the programs that decides about this superblock.
    pub canary_token: u32,
}

/// The pool is exported (nfsd, ksmbd): kernel threads may delete in it in guarded mode.
pub const POOL_EXPORTED: u32 = 1 << 0;
/// Truncation is decided like a deletion in guarded mode too (it always is in sealed mode).
pub const POOL_GUARD_TRUNCATE: u32 = 1 << 1;
/// The agent's own private superblock, on which it proves that the hooks answer. Never recorded.
pub const POOL_CANARY: u32 = 1 << 2;
/// With [`POOL_CANARY`]: only the `inode_*` hooks answer; without this flag, only the `path_*` and
/// `file_*` hooks.
pub const POOL_CANARY_BACKSTOP: u32 = 1 << 3;
/// Not a pool: a superblock outside all roots that certainly does not show the data of a sealed
/// pool. It is decided about as if it had no entry, but for [`CONFIG_ALIASES`].
pub const POOL_NO_ALIAS: u32 = 1 << 4;

/// The superblock belongs to a place outside the roots: it is protected through the mounts that lie
/// below a root, and free elsewhere.
pub const POOL_VISITOR: u32 = 1 << 6;

/// Not a pool, but a superblock of which each part has an entry of its own ([`PoolKey::head`]). NFS
/// clients share one between all mounts of a server's filesystem: two pools, and a home directory.
pub const POOL_PARTS: u32 = 1 << 7;

/// Not a pool, but a part of a superblock that belongs to a place outside the roots: free there.
pub const POOL_OUTSIDE: u32 = 1 << 8;

/// Flags of entries that are no pool's.
pub const POOL_NONE: u32 = POOL_CANARY | POOL_NO_ALIAS | POOL_PARTS | POOL_OUTSIDE;

/// An operator has sealed the pool. Nothing is decided by it: an agent that has lost its state file
/// finds the seal here.
pub const POOL_OPERATOR: u32 = 1 << 5;

/// A guarded root's directory; or the root directory of a sealed pool, seen by any superblock.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootKey {
    pub ino: u64,
    /// `s_dev` of the directory's superblock; 0 for a sealed pool's.
    pub dev: u32,
    /// 0, or 1 for a sealed pool's.
    pub reserved: u32,
}

impl RootKey {
    /// The key of a sealed pool's root.
    #[inline(always)]
    pub const fn alias(ino: u64) -> Self {
        Self { ino, dev: 0, reserved: 1 }
    }

    /// Whether it is that of a sealed pool's root.
    pub const fn is_alias(&self) -> bool {
        self.reserved == 1
    }
}

/// Entry of `ROOTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RootEntry {
    /// Bits of the filesystems (values of `FILESYSTEMS`) that are guarded below this root.
    pub filesystems: u64,
    /// `ROOT_*` flags.
    pub flags: u32,
    pub reserved: u32,
    /// `i_generation` of the directory, with [`ROOT_GENERATION`].
    pub generation: u32,
    pub unused: u32,
    /// See [`Checked`](crate::Checked).
    pub check: u64,
}

/// The root's default mode is `observed`: without an entry yet, deletions are allowed and recorded
/// as would-deny.
pub const ROOT_OBSERVED: u32 = 1 << 0;

/// A pool that comes is sealed: without an entry yet it is denied to guests too.
pub const ROOT_SEALED: u32 = 1 << 1;

/// The directory is known by its `i_generation` too: another one that has got its number is none.
pub const ROOT_GENERATION: u32 = 1 << 2;

/// Words of a filesystem's subtype.
pub const SUBTYPE_WORDS: usize = 3;
/// Bytes of a filesystem's subtype, with the closing NUL.
pub const SUBTYPE_BYTES: usize = SUBTYPE_WORDS * 8;

/// A kind of shared filesystem.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilesystemKey {
    pub magic: u64,
    /// The part after `fuse.` for FUSE, padded with NULs; all NUL for everything else. In words,
    /// which the kernel program clears without a loop; see [`FilesystemKey::new`].
    pub subtype: [u64; SUBTYPE_WORDS],
}

impl FilesystemKey {
    /// `None` if the subtype does not fit, with its closing NUL.
    pub fn new(magic: u64, subtype: &[u8]) -> Option<Self> {
        let mut bytes = [0; SUBTYPE_BYTES];
        if subtype.len() >= SUBTYPE_BYTES {
            return None;
        }
        bytes[..subtype.len()].copy_from_slice(subtype);
        let mut key = Self { magic, subtype: [0; SUBTYPE_WORDS] };
        for (word, eight) in key.subtype.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*eight);
        }
        Some(key)
    }
}

/// Entry of `FILESYSTEMS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindEntry {
    /// The kind's bit in [`RootEntry::filesystems`].
    pub bit: u32,
    pub reserved: u32,
    /// See [`Checked`](crate::Checked).
    pub check: u64,
}

/// A cgroup that may delete, in the pools of one set.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupKey {
    /// Inode of the cgroup's directory (v2); any process below it matches.
    pub cgroup_id: u64,
    pub actor_set: u32,
    pub reserved: u32,
}

/// An executable that may delete, in the pools of one set.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecutableKey {
    pub ino: u64,
    /// `s_dev` of the executable's superblock.
    pub dev: u32,
    pub actor_set: u32,
}

/// Identity that a matching cgroup or executable gives its process.
///
/// An actor is `alone != 0` of either, or one bit set in `combined` of both.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ActorMask {
    /// Not zero: this identity alone makes an actor.
    pub alone: u64,
    /// One bit, below [`COMBINED_ACTORS`], for each actor of the set that needs its cgroup and its
    /// executable together.
    pub combined: u64,
    /// Of an executable: its `i_generation`, with [`ACTOR_GENERATION`].
    pub generation: u32,
    /// `ACTOR_*` flags.
    pub flags: u32,
    /// See [`Checked`](crate::Checked).
    pub check: u64,
}

/// The executable is known by its `i_generation` too: another file that has got its number is no
/// actor.
pub const ACTOR_GENERATION: u32 = 1 << 0;

/// Only for a cgroup: its processes are guests. They delete in their own views, also where such a
/// view is the whole superblock, and nowhere else.
pub const ACTOR_GUEST: u32 = 1 << 1;

/// Actors of one set that need cgroup and executable together. Two less than a `u64` has bits: the
/// kernel program says "an actor alone" by setting them all, and "a guest" by the one below the
/// last.
pub const COMBINED_ACTORS: u32 = u64::BITS - 2;

/// A command tree with a lease on one pool.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseKey {
    /// The cgroup made for the command; any process below it matches.
    pub cgroup_id: u64,
    /// `s_dev` of the pool.
    pub dev: u32,
    pub reserved: u32,
}

/// Entry of `LEASES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseEntry {
    /// The pool's generation: a lease dies with its superblock.
    pub generation: u64,
    /// As in [`PoolEntry`].
    #[cfg(feature = "other-layout")]
    pub other: u64,
    /// End of the lease, on the boot clock in nanoseconds.
    pub expires_boot_ns: u64,
    /// See [`Checked`](crate::Checked).
    pub check: u64,
}

/// Entry of `POOL_COUNTERS`, counted since the pool got its entry. Values of the key are
/// generations.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounters {
    /// As in [`PoolEntry`].
    #[cfg(feature = "other-layout")]
    pub other: u64,
    pub denied: u64,
    pub allowed: u64,
    pub would_deny: u64,
}

impl LeaseEntry {
    /// A lease on the pool with this generation.
    pub fn new(generation: u64, expires_boot_ns: u64) -> Self {
        Self { generation, expires_boot_ns, ..Self::default() }
    }
}

impl PoolCounters {
    /// Adds the counts from elsewhere.
    pub fn add(&mut self, more: &Self) {
        self.denied += more.denied;
        self.allowed += more.allowed;
        self.would_deny += more.would_deny;
    }
}

/// Key of `CARRIED_POOLS`: a pool's counters in maps that these have replaced.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CarriedKey {
    /// Token of those maps.
    pub source: u64,
    /// The pool's generation.
    pub generation: u64,
}

/// A device number as the kernel keeps it in `s_dev`, from the `major:minor` of `mountinfo`.
pub const fn kernel_dev(major: u32, minor: u32) -> u32 {
    (major << 20) | (minor & 0xf_ffff)
}

crate::pod!(
    ActorMask,
    CarriedKey,
    CgroupKey,
    Config,
    ExecutableKey,
    FilesystemKey,
    KindEntry,
    LeaseEntry,
    LeaseKey,
    Meta,
    PoolCounters,
    PoolEntry,
    PoolKey,
    RootEntry,
    RootKey,
);
crate::layout!(
    Meta: 16, Config: 24, PoolKey: 8, RootKey: 16, RootEntry: 32, FilesystemKey: 32, KindEntry: 16, CgroupKey: 16,
    ExecutableKey: 16, ActorMask: 32, LeaseKey: 16, CarriedKey: 16,
);
#[cfg(not(feature = "other-layout"))]
crate::layout!(PoolEntry: 56, LeaseEntry: 24, PoolCounters: 24);
#[cfg(feature = "other-layout")]
crate::layout!(PoolEntry: 64, LeaseEntry: 32, PoolCounters: 32);

#[cfg(test)]
mod tests {
    use super::*;

    /// ext4, XFS, Btrfs, tmpfs, overlayfs, F2FS, ZFS, proc, cgroup2: what a host deletes on all
    /// day.
    const LOCAL: [u64; 9] = [
        0xEF53,
        0x5846_5342,
        0x9123_683E,
        0x0102_1994,
        0x794c_7630,
        0xF2F5_2010,
        0x2FC1_2FC1,
        0x9fa0,
        0x6367_7270,
    ];

    #[test]
    fn the_default_policy_does_not_slow_down_local_filesystems() {
        for guarded in [CEPH_SUPER_MAGIC, RAMFS_MAGIC, FUSE_SUPER_MAGIC, NFS_SUPER_MAGIC] {
            let shares = |other: &u64| magic_slot(*other) == magic_slot(guarded);
            let others = [CEPH_SUPER_MAGIC, RAMFS_MAGIC, FUSE_SUPER_MAGIC, NFS_SUPER_MAGIC];
            assert_eq!(
                others.iter().filter(|other| shares(other)).count(),
                1,
                "{guarded:#x} shares its place"
            );
        }
        assert_eq!(
            magic_slot(LOCAL[3]),
            magic_slot(FUSE_SUPER_MAGIC),
            "why places hold whole magics"
        );
    }

    #[test]
    fn a_subtype_keeps_its_closing_nul() {
        assert!(FilesystemKey::new(FUSE_SUPER_MAGIC, &[b'x'; SUBTYPE_BYTES]).is_none());
        let key = FilesystemKey::new(FUSE_SUPER_MAGIC, b"ceph-fuse").unwrap();
        assert_eq!(key.subtype[0].to_ne_bytes(), *b"ceph-fus");
        assert_eq!(key.subtype[1].to_ne_bytes(), *b"e\0\0\0\0\0\0\0");
    }

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_does() {
        assert_eq!(kernel_dev(0, 43), 43);
        assert_eq!(kernel_dev(253, 1), 253 << 20 | 1);
    }
}
