//! The bypass catalogue: every way that removes or destroys a name or its data on a pool, what
//! becomes of it, why, and the tests that show it. `docs/BYPASSES.md` has the tables that
//! `guard-tests bypasses` prints.

use std::fmt::Write as _;

/// Outcome of a deletion in this way by a process that is neither actor nor guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Denied.
    Blocked,
    /// Passes, and is meant to: no deletion, or somebody who may.
    AllowedByDesign,
    /// Passes, and is not meant to: stated in docs/LIMITS.md, or here.
    Limit,
}

use Verdict::{AllowedByDesign, Blocked, Limit};

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Blocked => "blocked",
            AllowedByDesign => "allowed",
            Limit => "**limit**",
        }
    }
}

/// Evidence for a row.
#[derive(Clone, Copy, Debug)]
pub enum Shown {
    /// By these tests, named as in the suites.
    By(&'static [&'static str]),
    /// A limit without a test: nothing here could hold against it.
    Stated,
    /// By reading the kernel alone: why there is no test, and what it rests on.
    NotTested(&'static str),
}

use Shown::{By, NotTested, Stated};

/// One way.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub way: &'static str,
    /// Its path in the kernel to the function that deletes.
    pub kernel: &'static str,
    /// In guarded mode.
    pub guarded: Verdict,
    pub sealed: Verdict,
    pub why: &'static str,
    pub shown: Shown,
}

/// Ways of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub title: &'static str,
    pub rows: &'static [Row],
}

const fn row(
    way: &'static str,
    kernel: &'static str,
    (guarded, sealed): (Verdict, Verdict),
    why: &'static str,
    shown: Shown,
) -> Row {
    Row { way, kernel, guarded, sealed, why, shown }
}

const BLOCKED: (Verdict, Verdict) = (Blocked, Blocked);
const ALLOWED: (Verdict, Verdict) = (AllowedByDesign, AllowedByDesign);
const LIMIT: (Verdict, Verdict) = (Limit, Limit);
/// A way that only sealed mode stops.
const UNLESS_SEALED: (Verdict, Verdict) = (Limit, Blocked);
/// A way that entitled processes may use, until the pool is sealed.
const MEANT_UNLESS_SEALED: (Verdict, Verdict) = (AllowedByDesign, Blocked);

/// All ways.
pub const CATALOGUE: &[Group] = &[
    Group {
        title: "Names",
        rows: &[
            row(
                "`unlink`, `unlinkat`: `rm`, `find -delete`, `rsync --delete`, Python, Go",
                "`do_unlinkat` → `vfs_unlink`",
                BLOCKED,
                "`path_unlink` decides",
                By(&[
                    "modes_guarded_denies_deletion_and_allows_all_else",
                    "modes_sealed_denies_everyone_and_truncation",
                    "guarded_rm_rf_of_the_root",
                    "guarded_find_delete",
                    "guarded_rsync_delete",
                    "guarded_python_rmtree",
                    "guarded_go_remove_all",
                    "sealed_rm_rf_of_the_root",
                ]),
            ),
            row(
                "`rmdir`, `unlinkat(AT_REMOVEDIR)`",
                "`do_rmdir` → `vfs_rmdir`",
                BLOCKED,
                "`path_rmdir` decides",
                By(&["modes_guarded_denies_deletion_and_allows_all_else", "guarded_go_remove_all"]),
            ),
            row(
                "`rmdir` in `.snap`: a snapshot of CephFS",
                "`do_rmdir` → `vfs_rmdir` → `ceph_unlink`",
                BLOCKED,
                "the superblock decides, not the device number that `stat` shows there",
                By(&["guarded_snapshot_removal"]),
            ),
            row(
                "`rename*` over a name that exists, `RENAME_WHITEOUT` too",
                "`do_renameat2` → `vfs_rename`",
                BLOCKED,
                "`path_rename`: what was there is deleted",
                By(&["bypass_rename_with_every_flag", "guarded_rename_over", "sealed_renames"]),
            ),
            row(
                "`renameat2(RENAME_EXCHANGE)`",
                "`do_renameat2` → `vfs_rename`",
                BLOCKED,
                "each of the two names loses what it named",
                By(&["bypass_rename_with_every_flag", "guarded_rename_exchange", "sealed_renames"]),
            ),
            row(
                "`rename*` to a new name, also of a directory, or to another name of the same \
                 file; `RENAME_NOREPLACE`",
                "`do_renameat2` → `vfs_rename`",
                ALLOWED,
                "nothing is replaced; the data is there under its new name",
                By(&[
                    "bypass_rename_with_every_flag",
                    "modes_sealed_denies_everyone_and_truncation",
                ]),
            ),
            row(
                "`link`, `symlink`, `mkdir`, `mknod`, `bind` of a socket, `O_TMPFILE`",
                "`vfs_link`, `vfs_create`, …",
                ALLOWED,
                "they fail where a name exists: none of them replaces",
                By(&[
                    "modes_guarded_denies_deletion_and_allows_all_else",
                    "allowed_creating_and_writing_in_the_pool",
                ]),
            ),
            row(
                "io_uring: `UNLINKAT`, `RENAMEAT`",
                "`io_unlinkat` → `do_unlinkat`, `do_rmdir`; `io_renameat` → `do_renameat2`",
                BLOCKED,
                "the same hooks; a worker of the ring has its owner's executable and cgroup",
                By(&[
                    "guarded_io_uring_unlinkat",
                    "sealed_io_uring_unlinkat",
                    "bypass_io_uring_renames_and_truncates",
                ]),
            ),
        ],
    },
    Group {
        title: "Truncation",
        rows: &[
            row(
                "`open(O_TRUNC)`, `creat`, a shell's `>`",
                "`handle_truncate` → `do_truncate`",
                MEANT_UNLESS_SEALED,
                "no deletion, unless the root says `truncate = \"guard\"`; then blocked in guarded \
                 mode too",
                By(&[
                    "modes_guarded_with_truncate_guard_denies_truncation",
                    "sealed_open_with_truncation",
                    "modes_guarded_denies_deletion_and_allows_all_else",
                ]),
            ),
            row(
                "`truncate`, `ftruncate`, to less or to more",
                "`vfs_truncate`, `do_ftruncate` → `do_truncate`",
                MEANT_UNLESS_SEALED,
                "as above",
                By(&[
                    "modes_guarded_with_truncate_guard_denies_truncation",
                    "sealed_truncation",
                    "bypass_writing_over_a_file_is_no_deletion",
                ]),
            ),
            row(
                "io_uring: `OPENAT`, `OPENAT2` with `O_TRUNC`, `FTRUNCATE`",
                "`io_openat2` → `do_filp_open`; `io_ftruncate` → `do_ftruncate`",
                MEANT_UNLESS_SEALED,
                "as above",
                By(&["bypass_io_uring_renames_and_truncates"]),
            ),
            row(
                "a core dump into a file that exists",
                "`do_coredump` → `do_unlinkat`, then `filp_open(O_EXCL)`",
                BLOCKED,
                "it is unlinked first, which `path_unlink` denies, and then not opened. (A new \
                 core file is emptied past the truncation hooks: `inode_setattr` denies that in a \
                 sealed pool, and it stays empty)",
                By(&["bypass_core_dump_over_a_file"]),
            ),
            row(
                "`open(O_TRUNC)` that the server carries out while opening (NFS, some FUSE)",
                "`atomic_open`, before `handle_truncate`",
                LIMIT,
                "the kernel asks no hook before; CephFS does ask",
                Stated,
            ),
            row(
                "truncation of a pool that the agent has not classified yet",
                "as above",
                LIMIT,
                "a pool's usual mode allows it, and its first moment must not differ",
                Stated,
            ),
        ],
    },
    Group {
        title: "Content and attributes",
        rows: &[
            row(
                "`write`, `pwrite`, `splice`, `sendfile`, AIO, io_uring",
                "`vfs_write`, `vfs_iter_write`",
                LIMIT,
                "writing is no deletion; what is written over is gone all the same",
                By(&[
                    "bypass_writing_over_a_file_is_no_deletion",
                    "bypass_writing_quotas_and_layouts_on_cephfs",
                ]),
            ),
            row(
                "writing through `mmap`",
                "write-back of pages",
                LIMIT,
                "as above; the kernel asks nobody for a page",
                By(&["bypass_writing_over_a_file_is_no_deletion"]),
            ),
            row(
                "`copy_file_range`, `FICLONE`, `FIDEDUPERANGE` over a file",
                "`vfs_copy_file_range`, `vfs_clone_file_range`",
                LIMIT,
                "as above",
                By(&["bypass_writing_over_a_file_is_no_deletion"]),
            ),
            row(
                "`fallocate`: punch, collapse, insert, zero; `madvise(MADV_REMOVE)`",
                "`vfs_fallocate`",
                LIMIT,
                "as above; CephFS and tmpfs only punch holes and refuse the rest",
                By(&[
                    "bypass_writing_over_a_file_is_no_deletion",
                    "bypass_writing_quotas_and_layouts_on_cephfs",
                ]),
            ),
            row(
                "a discard on a loop device over a file of a pool; `swapon`, `acct` on one",
                "`lo_fallocate` → `vfs_fallocate`; `swap_writepage`; `acct_process`",
                LIMIT,
                "as above; root's",
                Stated,
            ),
            row(
                "`setxattr`: quotas and layouts of CephFS",
                "`vfs_setxattr` → `ceph_setxattr`",
                LIMIT,
                "a quota forbids new data and removes none; CephFS changes no layout of a file \
                 with content",
                By(&["bypass_writing_quotas_and_layouts_on_cephfs"]),
            ),
            row(
                "`removexattr`, `chmod`, `chown`, ACLs",
                "`vfs_removexattr`, `notify_change`",
                LIMIT,
                "no deletion: the data is there, with other owners and attributes",
                Stated,
            ),
        ],
    },
    Group {
        title: "What stands on a pool",
        rows: &[
            row(
                "an overlay with its upper layer on a pool: deletion and truncation",
                "`ovl_do_unlink`, `ovl_do_rename`, … → `vfs_*`; `ovl_setattr` → `notify_change`",
                UNLESS_SEALED,
                "the `path_*` hooks see the overlay's mount; the `inode_*` hooks a user's process \
                 and no mount, and it could be a guest or an actor",
                By(&["bypass_overlay_with_its_upper_layer_on_a_pool"]),
            ),
            row(
                "eCryptfs over a pool: deletion",
                "`ecryptfs_do_unlink`, `ecryptfs_rename`, … → `vfs_*`",
                UNLESS_SEALED,
                "as an overlay: the same hooks, by the same process",
                By(&["bypass_ecryptfs_over_a_pool"]),
            ),
            row(
                "eCryptfs over a pool: truncation",
                "`truncate_upper` → `ecryptfs_write`, then `notify_change`",
                LIMIT,
                "it writes zeros and the new size into the pool's file before it cuts it. Sealed \
                 mode denies the cut alone: the file keeps its length, and not its content",
                By(&["bypass_ecryptfs_over_a_pool"]),
            ),
            row(
                "nfsd exports a pool: `REMOVE`, `RENAME`, NFS 4.2",
                "`nfsd_unlink`, `nfsd_rename` → `vfs_*`",
                BLOCKED,
                "`inode_*`: a kernel thread. With `exported = true` allowed in guarded mode",
                By(&["bypass_nfsd_exports_a_pool"]),
            ),
            row(
                "a pool on NFS: `rename` over a name that the client has not looked up",
                "`security_path_rename` with a target that has no inode: the client leaves the \
                 lookup to the server",
                BLOCKED,
                "a name in no hash chain counts as one that exists. So a rename straight to a new \
                 name is denied too, unless the program has asked whether it exists, as `mv` does",
                By(&["bypass_nfs_rename_over_a_name_that_was_not_looked_up"]),
            ),
            row(
                "a pool on NFS: another mount, or a bind, of an export that shares its superblock \
                 with others",
                "`struct super_block` of the server's filesystem, `mnt_root` of the export",
                BLOCKED,
                "each export is a part of the superblock: a mount belongs to the one whose root is \
                 the nearest above its own",
                By(&[
                    "identity_each_export_of_a_server_is_its_own",
                    "identity_exports_that_came_without_an_agent",
                ]),
            ),
            row(
                "nfsd exports a pool: `SETATTR` of the size, `OPEN` with truncation",
                "`nfsd_setattr` → `notify_change`, past the truncation hooks",
                MEANT_UNLESS_SEALED,
                "`inode_setattr`; in guarded mode no deletion, unless the root says `truncate = \
                 \"guard\"`",
                By(&["bypass_nfsd_exports_a_pool"]),
            ),
            row(
                "ksmbd exports a pool",
                "`ksmbd_vfs_remove_file`, `ksmbd_vfs_rename` → `vfs_*`; `ksmbd_vfs_truncate` → \
                 `vfs_truncate`",
                BLOCKED,
                "as nfsd: a kernel thread; truncation passes the same hooks as a user's",
                NotTested(
                    "its server needs a daemon of its own (ksmbd-tools) and a client of SMB in the \
                     VM. Rests on `fs/smb/server` of 6.1 and 6.12: every request is run by a \
                     kernel worker (`handle_ksmbd_work`) and calls those functions, which ask the \
                     `inode_*` hooks that `bypass_nfsd_exports_a_pool` shows to deny a kernel \
                     thread",
                ),
            ),
            row(
                "Samba, NFS-Ganesha, a 9p server of QEMU: processes of the host",
                "as `unlink`",
                BLOCKED,
                "processes as any other; actors where policy says so",
                By(&["guarded_rm_rf_of_the_root", "actors_delete_and_nobody_else_does"]),
            ),
        ],
    },
    Group {
        title: "Other paths to the same superblock",
        rows: &[
            row(
                "a bind mount of the pool, or of a part of it, in the host's namespace",
                "another `struct mount`",
                BLOCKED,
                "the superblock decides, wherever it is mounted",
                By(&["guarded_bind_alias", "views_of_guests_pass_and_the_hosts_aliases_do_not"]),
            ),
            row(
                "the same, of a pool that was mounted and bound while no agent ran",
                "as above, without an entry",
                BLOCKED,
                "a superblock without an entry belongs to its oldest mount",
                By(&["identity_other_mounts_of_a_pool_that_came_without_an_agent"]),
            ),
            row(
                "a filesystem of the host's own, of which a directory is bound below a root: its \
                 mounts elsewhere",
                "the oldest mount is outside every root",
                ALLOWED,
                "a visitor is protected through its mounts below a root, and its host's own \
                 elsewhere",
                By(&["identity_a_visitor_is_free_at_home"]),
            ),
            row(
                "a pod's or container's cgroup that policy names (`guests`), on the host or below \
                 the root in its view",
                "the mount is the host's view",
                BLOCKED,
                "guests delete in their own view, and nowhere else",
                By(&["identity_guests_have_whole_pools_in_their_own_views"]),
            ),
            row(
                "a pool that a daemon mounts in a namespace of its own (policy: `namespaces`), by \
                 a stranger there",
                "the walk meets the root's directory there too",
                BLOCKED,
                "that namespace is the host's view, and its mount table is read",
                By(&["identity_a_pool_in_a_daemons_own_namespace_is_known"]),
            ),
            row(
                "a file that has got the inode number of an actor's executable",
                "`mm->exe_file`",
                BLOCKED,
                "`i_generation` tells them apart, where the filesystem tells it (ext4, XFS, Btrfs, \
                 F2FS)",
                By(&["identity_an_executable_with_another_ones_inode_is_no_actor"]),
            ),
            row(
                "a container's volume (its guest view), virtiofsd's",
                "a mount of a part, in a namespace of its own",
                MEANT_UNLESS_SEALED,
                "the guest's own data",
                By(&[
                    "views_of_guests_pass_and_the_hosts_aliases_do_not",
                    "allowed_in_a_container",
                    "sealed_container",
                ]),
            ),
            row(
                "a container made for it: `unshare --mount`, a bind mount of a part of the pool, \
                 `pivot_root` out of the host's root",
                "as a guest view",
                UNLESS_SEALED,
                "nothing tells it from a container's volume; root's, or a user's own files",
                By(&["bypass_unshare_then_remount_move_or_pivot_root", "sealed_container"]),
            ),
            row(
                "a guest view used from outside: `nsenter`, `/proc/PID/root`, `/proc/PID/cwd`",
                "a mount of the guest's namespace",
                UNLESS_SEALED,
                "the mount tells a guest view, not the process; it reaches only what the guest \
                 reaches",
                By(&["bypass_setns_into_the_hosts_namespace"]),
            ),
            row(
                "a private copy of the host's mounts (`unshare`, a unit's `PrivateTmp=` or \
                 `ProtectSystem=`), with a user namespace too; a part of the pool bound in it, or \
                 before",
                "the mounts' copies",
                BLOCKED,
                "its mounts hang below the root directory that PID 1 has: the host's view",
                By(&[
                    "guarded_rm_in_a_private_copy_of_the_mounts",
                    "bypass_unshare_then_remount_move_or_pivot_root",
                    "views_of_guests_pass_and_the_hosts_aliases_do_not",
                ]),
            ),
            row(
                "in such a copy: remount, `mount --move` out of the root, `pivot_root` into the \
                 pool",
                "`do_remount`, `do_move_mount`, `pivot_root`",
                BLOCKED,
                "a mount of the whole superblock is never a guest view",
                By(&["bypass_unshare_then_remount_move_or_pivot_root"]),
            ),
            row(
                "`setns` from a container into the host's namespace",
                "`mntns_install`",
                BLOCKED,
                "the mount decides, and that one is the host's",
                By(&["bypass_setns_into_the_hosts_namespace"]),
            ),
            row(
                "`chroot` into the pool or the guarded root",
                "`set_fs_root`",
                BLOCKED,
                "no path is compared",
                By(&["bypass_chroot_into_a_pool", "guarded_rm_in_a_chroot"]),
            ),
            row(
                "`open_by_handle_at`, then `unlinkat`, `ftruncate`",
                "`do_handle_open`",
                BLOCKED,
                "the descriptor has the mount that it was opened by",
                By(&["bypass_open_by_handle"]),
            ),
            row(
                "`open_by_handle_at` by a guest with CAP_DAC_READ_SEARCH, beside its own volume",
                "`do_handle_open`",
                UNLESS_SEALED,
                "the mount of its view reaches all of the superblock by handle; a privileged \
                 container's root is root",
                By(&["bypass_open_by_handle"]),
            ),
            row(
                "detached mounts: `open_tree(OPEN_TREE_CLONE)`, then `move_mount`",
                "a mount in no namespace, or the host's",
                BLOCKED,
                "a detached mount is no guest view",
                By(&[
                    "bypass_detached_and_idmapped_mounts",
                    "views_of_guests_pass_and_the_hosts_aliases_do_not",
                ]),
            ),
            row(
                "mounts with mapped owners: `mount_setattr(MOUNT_ATTR_IDMAP)`",
                "`do_idmap_mount`",
                BLOCKED,
                "owners decide nothing (6.1 maps none on tmpfs and CephFS)",
                By(&["bypass_detached_and_idmapped_mounts"]),
            ),
            row(
                "lazy unmount with a working directory or an open directory in the pool",
                "`umount2(MNT_DETACH)`: a mount in no namespace",
                BLOCKED,
                "the entry lives until the superblock dies",
                By(&[
                    "bypass_lazy_unmount_with_a_working_directory",
                    "guarded_lazy_unmount_with_an_open_directory",
                ]),
            ),
            row(
                "the same before the agent has seen the pool",
                "as above, without an entry",
                LIMIT,
                "without an entry the place decides, and it has none any more. The agent sees a \
                 mount within milliseconds: this needs one that is stopped",
                By(&["bypass_lazy_unmount_before_the_agent_has_seen_the_pool"]),
            ),
            row(
                "a pool that is used while the agent is stopped, killed or upgraded",
                "as `unlink`",
                BLOCKED,
                "programs and maps are pinned; without an entry the place decides",
                By(&[
                    "gap_none_with_no_agent_at_all",
                    "gap_none_with_the_agent_stopped_by_a_signal",
                    "restart_kill_and_upgrade_under_load_pass_not_one_deletion",
                ]),
            ),
        ],
    },
    Group {
        title: "The same data by another superblock, or by none",
        rows: &[
            row(
                "another mount of the same CephFS below a guarded root",
                "another superblock, whatever the options",
                BLOCKED,
                "a pool of its own from its first moment",
                By(&["bypass_another_mount_of_the_same_cephfs", "gap_none_with_no_agent_at_all"]),
            ),
            row(
                "one outside every guarded root, attached or not (`fsmount`)",
                "another superblock",
                LIMIT,
                "nobody's, in guarded mode. While a pool is sealed its actors delete on none of \
                 them (`alias`); everybody else does",
                By(&[
                    "bypass_another_mount_of_the_same_cephfs",
                    "alias_of_a_sealed_pool_is_closed_to_its_actors_only",
                    "alias_by_incus_temporary_mount",
                ]),
            ),
            row(
                "ceph-fuse beside the kernel client, below a guarded root",
                "`fuse` with the subtype `ceph-fuse`",
                LIMIT,
                "the preset `incus` guards `ceph`; blocked once the root's `filesystems` name \
                 `fuse.ceph-fuse`",
                By(&["bypass_ceph_fuse_beside_the_kernel_client"]),
            ),
            row(
                "no mount at all: libcephfs, `cephfs-shell`, `rados`, `ceph fs`; another host",
                "none",
                LIMIT,
                "nothing passes this kernel's filesystems. Who has the cluster's keys has the data",
                Stated,
            ),
            row(
                "a mount deeper than 256 steps below the root, without an entry; a root that did \
                 not exist yet",
                "`guarded_root`",
                LIMIT,
                "see docs/LIMITS.md; counted as `error_walk_bound`",
                Stated,
            ),
        ],
    },
    Group {
        title: "Being taken for an actor",
        rows: &[
            row(
                "an actor itself: `incus delete`, `incus storage delete`",
                "as `unlink`",
                MEANT_UNLESS_SEALED,
                "policy names it; while a pool is sealed nobody deletes",
                By(&[
                    "actors_delete_and_nobody_else_does",
                    "allowed_for_the_actors_process_tree",
                    "sealed_actor",
                ]),
            ),
            row(
                "a copy of the actor's executable, on disk or in a memfd",
                "`mm->exe_file`",
                BLOCKED,
                "device and inode decide, not content or name",
                By(&[
                    "bypass_executable_of_an_actor_replaced_or_copied",
                    "actors_delete_and_nobody_else_does",
                ]),
            ),
            row(
                "an executable that is replaced after its process has started",
                "`mm->exe_file`",
                BLOCKED,
                "the process has the old file, which is no actor's any more; what is started from \
                 the new one is an actor",
                By(&["bypass_executable_of_an_actor_replaced_or_copied"]),
            ),
            row(
                "a hard link to the actor's executable, a bind mount of it",
                "`mm->exe_file`",
                MEANT_UNLESS_SEALED,
                "it is the same file",
                By(&["bypass_executable_of_an_actor_replaced_or_copied"]),
            ),
            row(
                "a process moved into an actor's cgroup, or started there (`CLONE_INTO_CGROUP`)",
                "`cgroup_attach_task`",
                UNLESS_SEALED,
                "who may write `cgroup.procs` there is root, or the actor; out of it again it is \
                 nobody",
                By(&["bypass_process_moved_into_an_actors_cgroup"]),
            ),
            row(
                "an actor under `ptrace`, its memory written to, `LD_PRELOAD` into it",
                "`ptrace_request`, `mem_write`",
                UNLESS_SEALED,
                "the actor does it; who may do that is the actor's user, or root, or, where the \
                 executable alone makes an actor, who starts it himself",
                By(&["bypass_actor_under_ptrace"]),
            ),
            row(
                "another's executable taken for one's own: `prctl(PR_SET_MM_EXE_FILE)`, \
                 `PR_SET_MM_MAP`",
                "`replace_mm_exe_file`",
                UNLESS_SEALED,
                "a process is an actor by executable if it may execute the file, and is root or \
                 has a user namespace of its own. What it may delete is still for the files' \
                 permissions to say. An actor that names a cgroup too is safe from it",
                By(&["bypass_executable_set_by_prctl"]),
            ),
            row(
                "an actor's io_uring in other hands, with a thread that polls it \
                 (`IORING_SETUP_SQPOLL`)",
                "`io_sq_thread` → `io_unlinkat`",
                UNLESS_SEALED,
                "the thread is the actor's. It takes ptrace's permission, or a child, to get at a \
                 ring: sockets pass none on; and paths are read from the actor's memory. In a ring \
                 that is not polled, who submits acts, and is denied",
                By(&["bypass_polled_ring_of_an_actor"]),
            ),
            row(
                "a descriptor that an actor has passed on (`SCM_RIGHTS`): a directory, a file",
                "`unlinkat`, `ftruncate` on it",
                BLOCKED,
                "who uses it decides, not who has opened it",
                By(&["bypass_descriptor_passed_by_an_actor"]),
            ),
            row(
                "a command with a lease, a released pool",
                "as `unlink`",
                ALLOWED,
                "an operator's decision with a reason and an end, and audited",
                By(&[
                    "exec_lets_one_tree_through_and_ends_with_it",
                    "modes_release_and_seal_are_the_operators_and_audited",
                ]),
            ),
        ],
    },
    Group {
        title: "Weaker tiers",
        rows: &[
            row(
                "tier `fmod-ret`, kernel preemption: a deletion while two other tasks stand in the \
                 middle of the program, one in each load",
                "`__bpf_prog_enter_recur`: the programs are skipped",
                LIMIT,
                "one task alone: the standby decides. Counted by the kernel (`recursion_misses`), \
                 told by the posture (`decisions-skipped`); `bpf-lsm` is not skipped since Linux \
                 6.2; before, the same is counted and told",
                By(&["tier_fmod_ret_standby_decides_where_the_first_is_left_out"]),
            ),
            row(
                "tier `fanotify`: single files, mounts of other namespaces, a responder that has \
                 just ended …",
                "no hook: only opening and listing of directories is asked about",
                LIMIT,
                "`guardctl status` lists each gap. What the tests show stopped: recursive \
                 deletions, and in sealed mode every change through the host's mounts",
                By(&[
                    "fanotify_guarded_stops_recursive_deletion_and_says_what_it_does_not",
                    "fanotify_sealed_outlives_the_agent_and_is_restored_exactly",
                ]),
            ),
        ],
    },
    Group {
        title: "Root against the barrier",
        rows: &[row(
            "`guard-agent unload`, removing pins, another BPF program, a kernel module, kexec, raw \
             memory",
            "none",
            LIMIT,
            "the barrier is against mistakes, not against root",
            Stated,
        )],
    },
];

/// Callers of the kernel's deleting and truncating functions that nobody gets to on a pool, and
/// why.
pub const NOT_REACHABLE: &[(&str, &str)] = &[
    ("`mq_unlink` (ipc/mqueue.c) → `vfs_unlink`", "only names of its own filesystem, mqueue"),
    (
        "`unix_bind_bsd` (net/unix) → `vfs_unlink`",
        "only the name that the same call has just made, when binding fails after that",
    ),
    (
        "`handle_remove` (drivers/base/devtmpfs.c) → `vfs_unlink`, `vfs_rmdir`",
        "only devtmpfs, by its own kernel thread",
    ),
    (
        "`init_unlink`, `init_rmdir` (fs/init.c), `clean_path` (init/initramfs.c)",
        "before the first process: nothing is mounted that policy could mean",
    ),
    (
        "`nfsd4_clear_clid_dir`, `purge_old` (fs/nfsd/nfs4recover.c) → `vfs_rmdir`",
        "only the server's directory of clients; were that on a pool, a kernel thread would ask, \
         and is denied",
    ),
    (
        "`cachefiles_bury_object`, `cachefiles_adjust_size` (fs/cachefiles) → `vfs_unlink`, \
         `vfs_rename`, `notify_change`",
        "only its cache, which must lie on a filesystem with O_TMPFILE: CephFS, NFS and CIFS have \
         none",
    ),
    (
        "`ovl_cleanup`, `ovl_workdir_cleanup` (fs/overlayfs) → `vfs_unlink`, `vfs_rmdir`",
        "the overlay's own work directory: as the row on overlays",
    ),
    (
        "`simple_unlink`, `simple_rmdir`, `kernfs_remove`: debugfs, tracefs, securityfs, configfs, \
         bpffs, cgroup, sysfs, rpc_pipefs, binfmt_misc, efivarfs, autofs, devpts",
        "each only on itself, and policy cannot name any of them",
    ),
    (
        "`BTRFS_IOC_SNAP_DESTROY`, bcachefs' and OCFS2's own ioctls, XFS' and ext4's exchange of \
         extents",
        "not on CephFS, NFS and CIFS. (OCFS2 and GFS2 can be named in a policy; their ioctls were \
         not examined.)",
    ),
    (
        "`nfs_sillyrename`, CephFS's asynchronous unlink, orphan lists",
        "what comes after `vfs_unlink`, for a name whose deletion was allowed",
    ),
    (
        "revoked capabilities, evicted sessions (CephFS)",
        "what the server does: see the row on other hosts",
    ),
    (
        "`do_open_execat`, `uselib`, `bprm`, `memfd_create`",
        "open files, and never truncate: O_TRUNC is no flag of theirs",
    ),
    ("CephFS's ioctls (layout, lazy I/O, location)", "none of them removes or cuts"),
];

/// Both tables, as Markdown.
pub fn tables() -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(text, "{}\n\n", summary());
    for group in CATALOGUE {
        let _ = write!(text, "### {}\n\n", group.title);
        text.push_str(
            "| Way | In the kernel | Guarded | Sealed | Why | Shown by \
             |\n|---|---|---|---|---|---|\n",
        );
        for row in group.rows {
            let shown = match row.shown {
                By(tests) => {
                    tests.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
                }
                Stated => "stated".to_owned(),
                NotTested(why) => format!("**not tested**: {why}"),
            };
            let (guarded, sealed) = (row.guarded.word(), row.sealed.word());
            let Row { way, kernel, why, .. } = row;
            let _ = writeln!(text, "| {way} | {kernel} | {guarded} | {sealed} | {why} | {shown} |");
        }
        text.push('\n');
    }
    text.push_str("### What nobody gets to on a pool\n\n| In the kernel | Why |\n|---|---|\n");
    for (caller, why) in NOT_REACHABLE {
        let _ = writeln!(text, "| {caller} | {why} |");
    }
    text
}

fn rows() -> impl Iterator<Item = &'static Row> {
    CATALOGUE.iter().flat_map(|group| group.rows)
}

fn summary() -> String {
    let count = |is: &dyn Fn(&Row) -> bool| rows().filter(|row| is(row)).count();
    let verdicts = |of: fn(&Row) -> Verdict| {
        format!(
            "{} blocked, {} allowed by design, {} limits",
            count(&|row| of(row) == Blocked),
            count(&|row| of(row) == AllowedByDesign),
            count(&|row| of(row) == Limit)
        )
    };
    format!(
        "{} ways. Guarded: {}. Sealed: {}. {} have tests; {} limits only stated, {} not tested.",
        count(&|_| true),
        verdicts(|row| row.guarded),
        verdicts(|row| row.sealed),
        count(&|row| matches!(row.shown, By(_))),
        count(&|row| matches!(row.shown, Stated)),
        count(&|row| matches!(row.shown, NotTested(_)))
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::harness::registry::Suite;
    use crate::suites;

    #[test]
    fn the_documentation_shows_the_catalogue_as_it_is() {
        let text = include_str!("../../docs/BYPASSES.md");
        let (_, rest) = text
            .split_once(
                "<!-- bypasses \
                 -->\n",
            )
            .expect("docs/BYPASSES.md has a place for it");
        let (shown, _) = rest.split_once("<!-- /bypasses -->").expect("the place ends");
        assert!(
            shown == tables(),
            "docs/BYPASSES.md is stale: put there what `cargo run --package guard-tests -- \
             bypasses` prints"
        );
    }

    #[test]
    fn every_test_that_is_named_exists_and_every_test_of_a_bypass_is_named() {
        let all: BTreeSet<&str> = [Suite::Standin, Suite::Cephfs, Suite::Incus]
            .into_iter()
            .flat_map(|suite| suites::of(suite).map(|test| test.name))
            .collect();
        let named: BTreeSet<&str> = rows()
            .filter_map(|row| if let By(tests) = row.shown { Some(tests) } else { None })
            .flatten()
            .copied()
            .collect();
        let missing: Vec<_> = named.difference(&all).collect();
        assert!(missing.is_empty(), "the catalogue names tests that no suite has: {missing:?}");
        let of_bypasses = all.iter().copied().filter(|name| name.starts_with("bypass_"));
        let unnamed: Vec<_> = of_bypasses.filter(|name| !named.contains(name)).collect();
        assert!(unnamed.is_empty(), "no row of the catalogue names {unnamed:?}");
    }

    #[test]
    fn what_is_only_stated_is_a_limit_and_all_else_names_a_test_or_says_that_it_has_none() {
        for row in rows() {
            match row.shown {
                By(tests) => assert!(!tests.is_empty(), "{}: names no test", row.way),
                Stated => assert!(
                    row.guarded == Limit && row.sealed == Limit,
                    "{}: what is blocked or allowed needs a test, or `NotTested`",
                    row.way
                ),
                NotTested(why) => assert!(!why.is_empty(), "{}: why is there no test?", row.way),
            }
        }
    }

    #[test]
    fn every_row_is_whole_and_fits_into_a_table() {
        let mut ways = BTreeSet::new();
        for row in rows() {
            assert!(ways.insert(row.way), "{}: twice in the catalogue", row.way);
            let untested = if let NotTested(why) = row.shown { why } else { "-" };
            for cell in [row.way, row.kernel, row.why, untested] {
                assert!(!cell.is_empty() && !cell.contains(['|', '\n']), "{}: {cell:?}", row.way);
            }
        }
        for (caller, why) in NOT_REACHABLE {
            assert!(!caller.contains('|') && !why.is_empty() && !why.contains('|'), "{caller}");
        }
    }
}
