//! Byte offsets of the kernel's structure members that the kernel program reads.
//!
//! The agent resolves them from the running kernel's BTF and writes them into the program's
//! instructions before it loads them: each instruction that needs one carries a placeholder, the
//! member's number. So a member costs one load, as in a program that was compiled for this kernel.
//! A member that is missing is an error there, never a guess.

/// Byte offsets, one a member. The field's name is `<struct>_<member>`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    pub path_mnt: u32,
    pub path_dentry: u32,
    pub vfsmount_mnt_root: u32,
    pub vfsmount_mnt_sb: u32,
    pub mount_mnt: u32,
    pub mount_mnt_parent: u32,
    pub mount_mnt_mountpoint: u32,
    pub mount_mnt_ns: u32,
    pub mount_mnt_id: u32,
    /// Node of the list of a superblock's mounts, the oldest first; 0: the kernel has the next one.
    pub mount_mnt_instance: u32,
    /// The same list since 6.18, the newest first; 0: the kernel has the one above.
    pub mount_mnt_next_for_sb: u32,
    pub mnt_namespace_inum: u32,
    pub dentry_d_parent: u32,
    pub dentry_d_inode: u32,
    pub dentry_d_sb: u32,
    pub dentry_d_name_name: u32,
    pub dentry_d_hash_pprev: u32,
    pub super_block_s_dev: u32,
    pub super_block_s_magic: u32,
    pub super_block_s_root: u32,
    pub super_block_s_subtype: u32,
    pub super_block_s_mounts: u32,
    pub inode_i_ino: u32,
    pub inode_i_sb: u32,
    pub inode_i_generation: u32,
    pub file_f_path: u32,
    pub file_f_inode: u32,
    pub task_tgid: u32,
    pub task_flags: u32,
    pub task_mm: u32,
    pub task_cred: u32,
    pub task_real_parent: u32,
    pub task_group_leader: u32,
    pub task_start_boottime: u32,
    /// 0: the kernel has none.
    pub task_loginuid: u32,
    pub task_nsproxy: u32,
    pub task_thread_pid: u32,
    pub task_fs: u32,
    pub pid_numbers: u32,
    pub upid_ns: u32,
    pub pid_namespace_child_reaper: u32,
    pub fs_struct_root: u32,
    pub mm_exe_file: u32,
    pub nsproxy_mnt_ns: u32,
    pub cred_uid: u32,
    pub cred_euid: u32,
    pub iattr_ia_valid: u32,
    /// No member: which argument of `inode_setattr` is the dentry. Of the LSM hook 0, and since 6.9
    /// 1; of the function `security_inode_setattr` 1.
    pub inode_setattr_dentry: u32,
    /// No member: how many arguments `inode_rename` has, and with it where the answer of an earlier
    /// program stands. The LSM hook has 4, the function `security_inode_rename` 5.
    pub inode_rename_arguments: u32,
}

crate::pod!(Offsets);
crate::layout!(Offsets: 196);

impl Offsets {
    /// All of them, in the order of their numbers.
    pub const fn numbered(&self) -> &[u32] {
        // SAFETY: it is made of numbers of this size alone (asserted above), and lives as long as
        // it is borrowed.
        unsafe {
            core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>() / 4)
        }
    }
}

/// In place of the number that an instruction adds to a register or sets one to: this, and the
/// member's number.
pub const IMMEDIATE_PLACEHOLDER: i32 = 0x4F46_5300;

/// In place of the offset of a load: this, and the member's number. No structure of the program's
/// own is so big.
pub const LOAD_PLACEHOLDER: i32 = 0x7E00;
