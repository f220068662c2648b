//! The record of one decision, as it comes through the ring buffer, and the incident that counts
//! them.

crate::wire_enum! {
    /// The LSM hook that decided.
    Hook {
        PathUnlink = 1 => "path_unlink",
        PathRmdir = 2 => "path_rmdir",
        PathRename = 3 => "path_rename",
        PathTruncate = 4 => "path_truncate",
        FileTruncate = 5 => "file_truncate",
        InodeUnlink = 6 => "inode_unlink",
        InodeRmdir = 7 => "inode_rmdir",
        InodeRename = 8 => "inode_rename",
        InodeSetattr = 9 => "inode_setattr",
        /// No hook of LSM: fanotify asks when a directory is opened.
        FanotifyOpen = 10 => "fanotify_open",
        /// As above, when an open directory is listed.
        FanotifyList = 11 => "fanotify_list",
        /// As above, after the fact: fanotify tells of a deletion that nobody was asked about.
        FanotifyDelete = 12 => "fanotify_delete",
    }
}

crate::wire_enum! {
    /// The attempted operation.
    Operation {
        Unlink = 1 => "unlink",
        Rmdir = 2 => "rmdir",
        /// A rename that replaces an existing target.
        RenameReplace = 3 => "rename-replace",
        /// `RENAME_EXCHANGE`.
        RenameExchange = 4 => "rename-exchange",
        Truncate = 5 => "truncate",
        /// A directory is opened or listed, as every recursive deletion begins.
        List = 6 => "list",
    }
}

crate::wire_enum! {
    /// The kernel program's answer.
    Verdict {
        Denied = 1 => "denied",
        /// Allowed, since the pool is only observed, or since it had happened before anybody was
        /// asked (`FanotifyDelete`).
        WouldDeny = 2 => "would-deny",
        Allowed = 3 => "allowed",
    }
}

crate::wire_enum! {
    /// Why it answered so.
    Reason {
        /// The pool is sealed: everyone is denied.
        Sealed = 1 => "sealed",
        /// The pool is guarded, and this is neither a guest view nor an actor.
        Guarded = 2 => "guarded",
        /// A guarded filesystem below a guarded root that has no entry yet.
        Unclassified = 3 => "unclassified",
        /// The pool's release has ended.
        ReleaseExpired = 4 => "release-expired",
        /// A kernel thread in a guarded pool that is not exported.
        KernelThread = 5 => "kernel-thread",
        /// The kernel's memory could not be read on a guarded pool.
        ReadError = 6 => "read-error",
        /// The pool is observed.
        Observed = 7 => "observed",
        /// The pool is released.
        Released = 8 => "released",
        /// The process belongs to a command tree with a lease.
        Lease = 9 => "lease",
        /// A bind mount of a part of the pool in another mount namespace.
        GuestView = 10 => "guest-view",
        /// A cgroup or executable that policy lets delete.
        Actor = 11 => "actor",
        /// An actor of a sealed pool, on another superblock of a guarded kind that may show the
        /// same data.
        Alias = 12 => "alias",
        /// The pool is held, and this is no guest view.
        Held = 13 => "held",
    }
}

crate::wire_enum! {
    /// The enforcement mechanism. The smaller number is the stronger tier.
    Tier {
        /// BPF programs on the LSM hooks.
        BpfLsm = 1 => "bpf-lsm",
        /// The same programs in front of the kernel's `security_*` functions.
        FmodRet = 2 => "fmod-ret",
        /// Permission events that the agent answers, and read-only mounts.
        Fanotify = 3 => "fanotify",
    }
}

/// Bytes of the path's storage. A component is copied whole or not at all: the last one may start
/// anywhere below [`PATH_BYTES`] and needs `NAME_MAX + 1` bytes behind that.
pub const PATH_STORAGE: usize = PATH_BYTES + 256;
/// Bytes after which no further component is started.
pub const PATH_BYTES: usize = 512;
/// Components after which the path is cut.
pub const PATH_COMPONENTS: usize = 32;

/// The path does not reach the root of the superblock: it was cut, or a read failed.
pub const RECORD_PATH_TRUNCATED: u32 = 1 << 0;
/// The process is a kernel thread.
pub const RECORD_KERNEL_THREAD: u32 = 1 << 1;
/// `mount_id` and `mount_ns` are known (the `path_*` and `file_*` hooks know them).
pub const RECORD_MOUNT_KNOWN: u32 = 1 << 2;

/// One decision. Sent whole: the ring buffer takes records of one size.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// When, on the boot clock in nanoseconds. The agent adds the wall clock.
    #[cfg(not(feature = "other-layout"))]
    pub boot_ns: u64,
    /// When the process (its group leader) started, on the boot clock in nanoseconds.
    pub start_boot_ns: u64,
    /// The pool's generation; 0 if it has no entry.
    pub generation: u64,
    /// The pool's id; 0 if it has no entry.
    pub pool_id: u64,
    pub cgroup_id: u64,
    /// Inode of the directory that holds the name.
    pub parent_ino: u64,
    /// Inode behind the name.
    pub target_ino: u64,
    /// Number of this decision within its incident, from 1.
    pub incident_count: u64,
    /// As above, in another place.
    #[cfg(feature = "other-layout")]
    pub boot_ns: u64,
    /// [`Hook`].
    pub hook: u32,
    /// [`Operation`].
    pub operation: u32,
    /// [`Verdict`].
    pub verdict: u32,
    /// [`Reason`].
    pub reason: u32,
    /// [`Mode`](crate::Mode) of the pool; 0 if it has no entry.
    pub mode: u32,
    /// Thread.
    pub pid: u32,
    /// Process.
    pub tgid: u32,
    /// Process of the parent.
    pub ppid: u32,
    pub uid: u32,
    pub euid: u32,
    /// `u32::MAX`: not set.
    pub login_uid: u32,
    /// Inode of the process's mount namespace.
    pub mnt_ns: u32,
    /// Inode of the mount namespace that the mount belongs to; 0: detached.
    pub mount_ns: u32,
    pub mount_id: u32,
    /// `s_dev` in the kernel's encoding.
    pub dev: u32,
    /// `RECORD_*` flags.
    pub flags: u32,
    /// Bytes used of `path`.
    pub path_len: u32,
    /// [`Tier`]; 0: from a program of before there were tiers, which was on an LSM hook.
    pub tier: u32,
    /// Name of the thread, NUL-padded.
    pub comm: [u8; 16],
    /// Names from the target up to the superblock's root (which is left out), each closed by a NUL.
    pub path: [u8; PATH_STORAGE],
}

/// One process's decisions of one kind on one pool.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IncidentKey {
    /// The pool's generation; 0 if it has no entry.
    pub generation: u64,
    /// When the process started: pids are reused.
    pub start_boot_ns: u64,
    pub tgid: u32,
    pub dev: u32,
    /// [`Reason`].
    pub reason: u32,
    /// [`Verdict`].
    pub verdict: u32,
}

/// The exact counts of an incident.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IncidentValue {
    /// All decisions of the incident.
    #[cfg(not(feature = "other-layout"))]
    pub count: u64,
    /// Those that were sent as full records.
    pub emitted: u64,
    /// Those that should have been sent and were not, since the ring buffer was full.
    pub lost: u64,
    /// As above, in another place.
    #[cfg(feature = "other-layout")]
    pub count: u64,
    pub first_boot_ns: u64,
    pub last_boot_ns: u64,
    /// The pool's id; 0 if it has no entry.
    pub pool_id: u64,
    pub uid: u32,
    /// `u32::MAX`: not set.
    pub login_uid: u32,
    /// Name of the thread that began it, NUL-padded; in words, as in `FilesystemKey`.
    pub comm: [u64; 2],
}

impl IncidentValue {
    /// The bytes of `comm`.
    pub fn comm_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.comm[0].to_ne_bytes());
        bytes[8..].copy_from_slice(&self.comm[1].to_ne_bytes());
        bytes
    }
}

crate::pod!(IncidentKey, IncidentValue, Record);
crate::layout!(Record: 920, IncidentKey: 32, IncidentValue: 72);
