//! Every read of kernel memory.
//!
//! Two kinds: [`Trusted`] walks from a hook's argument, which the verifier types and turns into plain
//! loads (the fast path), and [`read`], which copies through a helper and can fail (everything else,
//! and whatever steps backwards, like from a vfsmount to its mount).
//!
//! What a failed read means is not decided here but in `decide`.

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated};
use guard_common::Offsets;

/// Offsets of the running kernel, written by the agent when it loads the program.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    path_mnt: 0,
    path_dentry: 0,
    vfsmount_mnt_root: 0,
    vfsmount_mnt_sb: 0,
    mount_mnt: 0,
    mount_mnt_parent: 0,
    mount_mnt_mountpoint: 0,
    mount_mnt_ns: 0,
    mount_mnt_id: 0,
    mount_mnt_instance: 0,
    mount_mnt_next_for_sb: 0,
    mnt_namespace_inum: 0,
    dentry_d_parent: 0,
    dentry_d_inode: 0,
    dentry_d_sb: 0,
    dentry_d_name_name: 0,
    dentry_d_hash_pprev: 0,
    super_block_s_dev: 0,
    super_block_s_magic: 0,
    super_block_s_root: 0,
    super_block_s_subtype: 0,
    super_block_s_mounts: 0,
    inode_i_ino: 0,
    inode_i_sb: 0,
    inode_i_generation: 0,
    file_f_path: 0,
    file_f_inode: 0,
    task_tgid: 0,
    task_flags: 0,
    task_mm: 0,
    task_cred: 0,
    task_real_parent: 0,
    task_group_leader: 0,
    task_start_boottime: 0,
    task_loginuid: 0,
    task_nsproxy: 0,
    task_thread_pid: 0,
    task_fs: 0,
    pid_numbers: 0,
    upid_ns: 0,
    pid_namespace_child_reaper: 0,
    fs_struct_root: 0,
    mm_exe_file: 0,
    nsproxy_mnt_ns: 0,
    cred_uid: 0,
    cred_euid: 0,
    iattr_ia_valid: 0,
    inode_setattr_dentry: 0,
    inode_rename_arguments: 0,
};

/// Which load of the programs this is (see `POOL_CANARY`).
#[unsafe(no_mangle)]
static PROGRAM_TOKEN: u32 = 0;

/// The tier that the programs are loaded for.
#[unsafe(no_mangle)]
static TIER: u32 = 0;

/// Whether this load stands behind another one of the same tier.
#[unsafe(no_mangle)]
static STANDBY: u32 = 0;

/// Addresses of the kernel's `mount_lock` and `rename_lock`; 0 where they are not told.
#[unsafe(no_mangle)]
static TREE: [u64; 2] = [0; 2];

/// Sequence numbers of the mount tree and of names, in one word; odd if they are not known.
#[inline(always)]
pub fn tree_sequences() -> u64 {
    // SAFETY: as in `program_token`.
    let (mounts, names) =
        unsafe { (ptr::read_volatile(&raw const TREE[0]), ptr::read_volatile(&raw const TREE[1])) };
    if mounts == 0 || names == 0 {
        return 1;
    }
    // A seqlock begins with its number.
    let mounts: u32 = read(mounts, 0).unwrap_or(1);
    let names: u32 = read(names, 0).unwrap_or(1);
    u64::from(mounts) | u64::from(names) << 32
}

/// What was read before it was read before what is read after it, on every processor: an atomic operation that returns
/// a value is a full barrier.
#[inline(always)]
pub fn fence() {
    #[cfg(target_arch = "bpf")]
    {
        let mut word = 0_u64;
        // SAFETY: a word of our own stack.
        unsafe {
            core::arch::asm!(
                "{1} = atomic_fetch_add((u64 *)({0} + 0), {1})",
                in(reg) &raw mut word,
                inout(reg) 0_u64 => _
            );
        }
    }
}

/// Whether another load of the same programs decides the same, and counts what is allowed.
pub fn is_standby() -> bool {
    // SAFETY: as in `program_token`.
    unsafe { ptr::read_volatile(&raw const STANDBY) != 0 }
}

pub fn tier() -> u32 {
    // SAFETY: as in `program_token`.
    unsafe { ptr::read_volatile(&raw const TIER) }
}

pub fn program_token() -> u32 {
    // SAFETY: a static of ours. Volatile, since the agent replaces its content at load time.
    unsafe { ptr::read_volatile(&raw const PROGRAM_TOKEN) }
}

/// The offset of a member. A macro, so that each is a load from a constant address.
macro_rules! offset {
    ($member:ident) => {
        // SAFETY: a static of ours. Volatile, since the agent replaces its content at load time.
        unsafe { core::ptr::read_volatile(&raw const $crate::kernel::OFFSETS.$member) as usize }
    };
}

pub mod lenient;
pub mod task;

/// `ATTR_SIZE` of `iattr.ia_valid`, the same since the beginning.
const ATTR_SIZE: u32 = 1 << 3;

/// Whether the hook `inode_setattr` has the mount's id map as its first argument.
#[inline(always)]
pub fn setattr_has_idmap() -> bool {
    offset!(inode_setattr_dentry) != 0
}

/// Whether `inode_rename` has the flags as its last argument.
#[inline(always)]
pub fn rename_has_flags() -> bool {
    offset!(inode_rename_arguments) == 5
}

/// The kernel's memory could not be read.
#[derive(Clone, Copy, Debug)]
pub struct ReadError;

/// A pointer that the verifier knows the type of. Null reads as zero, as the kernel's probe loads do.
#[derive(Clone, Copy)]
pub struct Trusted(*const c_void);

impl Trusted {
    pub fn new(pointer: *const c_void) -> Self {
        Self(pointer)
    }

    /// The address as a plain number. The verifier follows typed pointers through every copy but one
    /// through a helper, and global functions take numbers only.
    #[inline(always)]
    pub fn address(self) -> u64 {
        let mut slot = MaybeUninit::<*const c_void>::uninit();
        // SAFETY: a slot of our own stack. Volatile, so that the pointer really lies there.
        unsafe { ptr::write_volatile(slot.as_mut_ptr(), self.0) };
        // SAFETY: reads that slot. It cannot fail; 0 would read as an unreadable address everywhere.
        unsafe { bpf_probe_read_kernel(slot.as_ptr().cast::<u64>()) }.unwrap_or(0)
    }

    #[inline(always)]
    fn load<T: Copy + Default>(self, offset: usize) -> T {
        if self.0.is_null() {
            return T::default();
        }
        // SAFETY: the verifier proves that the member lies in the structure; a bad address reads as zero.
        unsafe { ptr::read_volatile(self.0.byte_add(offset).cast::<T>()) }
    }

    #[inline(always)]
    fn follow(self, offset: usize) -> Self {
        if self.0.is_null() {
            return Self(null());
        }
        // SAFETY: as in `load`.
        Self(unsafe { ptr::read_volatile(self.0.byte_add(offset).cast::<*const c_void>()) })
    }

    /// `path->mnt`
    pub fn path_mount(self) -> Self {
        self.follow(offset!(path_mnt))
    }
    /// `path->dentry`
    pub fn path_dentry(self) -> Self {
        self.follow(offset!(path_dentry))
    }
    /// `file->f_path.mnt`
    pub fn file_mount(self) -> Self {
        self.follow(offset!(file_f_path) + offset!(path_mnt))
    }
    /// `file->f_path.dentry`
    pub fn file_dentry(self) -> Self {
        self.follow(offset!(file_f_path) + offset!(path_dentry))
    }
    /// How far an address lies behind another: a plain number.
    #[inline(always)]
    pub fn distance_from(self, other: Self) -> u64 {
        // The verifier takes no null for an address.
        if self.0.is_null() || other.0.is_null() {
            return 0;
        }
        #[cfg(target_arch = "bpf")]
        {
            let mut distance = self.0;
            // SAFETY: changes a register. In assembler, since the compiler must not turn it into something else: the
            // verifier allows no other arithmetic with two addresses.
            unsafe { core::arch::asm!("{0} -= {1}", inout(reg) distance, in(reg) other.0) };
            distance as u64
        }
        #[cfg(not(target_arch = "bpf"))]
        {
            (self.0 as u64).wrapping_sub(other.0 as u64)
        }
    }

    /// Whether both are one address.
    #[inline(always)]
    pub fn is(self, other: Self) -> bool {
        self.0 == other.0
    }

    /// `vfsmount->mnt_root`
    pub fn mount_root(self) -> Self {
        self.follow(offset!(vfsmount_mnt_root))
    }
    /// `super_block->s_root`
    pub fn superblock_root(self) -> Self {
        self.follow(offset!(super_block_s_root))
    }
    /// `vfsmount->mnt_sb`
    pub fn mount_superblock(self) -> Self {
        self.follow(offset!(vfsmount_mnt_sb))
    }
    /// `inode->i_sb`
    pub fn inode_superblock(self) -> Self {
        self.follow(offset!(inode_i_sb))
    }
    /// `super_block->s_magic`
    pub fn magic(self) -> u64 {
        self.load(offset!(super_block_s_magic))
    }
    /// `super_block->s_dev`
    pub fn device(self) -> u32 {
        self.load(offset!(super_block_s_dev))
    }
    /// `dentry->d_sb`
    pub fn dentry_superblock(self) -> Self {
        self.follow(offset!(dentry_d_sb))
    }
    /// `dentry->d_inode->i_ino` of a directory that is mounted.
    pub fn inode_number(self) -> u64 {
        self.follow(offset!(dentry_d_inode)).load(offset!(inode_i_ino))
    }
    /// Whether `iattr->ia_valid` says that the size is to change.
    pub fn sets_size(self) -> bool {
        self.load::<u32>(offset!(iattr_ia_valid)) & ATTR_SIZE != 0
    }
    /// Whether the dentry is in no hash chain. A lookup that found no file leaves it in one.
    pub fn is_unhashed(self) -> bool {
        self.load::<u64>(offset!(dentry_d_hash_pprev)) == 0
    }
    /// Address of `dentry->d_inode`; 0 if the name does not exist.
    ///
    /// By the helper, not by a plain load: the verifier of kernels before 6.16 assumes that a dentry has
    /// an inode, and removes the code for one that has none.
    #[inline(always)]
    pub fn dentry_inode(self) -> Result<u64, ReadError> {
        read(self.address(), offset!(dentry_d_inode))
    }
}

/// A null that is a number to the verifier. In front of a function (tier `fmod-ret`) an argument may be null as far as it
/// knows, and what the compiler would copy there, the argument, would keep its type.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn null() -> *const c_void {
    let zero: *const c_void;
    // SAFETY: sets a register.
    unsafe { core::arch::asm!("{0} = 0", out(reg) zero, options(pure, nomem)) };
    zero
}

/// The host only checks and lints this crate; nothing of it runs there.
#[cfg(not(target_arch = "bpf"))]
fn null() -> *const c_void {
    ptr::null()
}

/// Copies a value out of kernel memory.
#[inline(always)]
fn read<T>(base: u64, offset: usize) -> Result<T, ReadError> {
    let address = base.wrapping_add(offset as u64) as *const T;
    // SAFETY: the helper checks the address and fails on a bad one.
    unsafe { bpf_probe_read_kernel(address) }.map_err(|_| ReadError)
}

/// `struct mount` around a `struct vfsmount`.
#[inline(always)]
pub fn mount_of(vfsmount: u64) -> u64 {
    vfsmount.wrapping_sub(offset!(mount_mnt) as u64)
}
/// Highest error number that the kernel puts in a pointer.
const MAX_ERRNO: u64 = 4095;
/// Number of all anonymous mount namespaces (detached mounts) since 6.18; before, they had none.
const ANONYMOUS_NAMESPACE: u32 = 0xEFFF_FFF7;

/// Inode of the mount namespace that a mount belongs to; 0 for a detached one.
#[inline(always)]
pub fn mount_namespace(mount: u64) -> Result<u32, ReadError> {
    let namespace: u64 = read(mount, offset!(mount_mnt_ns))?;
    if namespace == 0 || namespace >= MAX_ERRNO.wrapping_neg() {
        return Ok(0);
    }
    let number = read(namespace, offset!(mnt_namespace_inum))?;
    Ok(if number == ANONYMOUS_NAMESPACE { 0 } else { number })
}

/// `dentry->d_parent`
#[inline(always)]
pub fn dentry_parent(dentry: u64) -> Result<u64, ReadError> {
    read(dentry, offset!(dentry_d_parent))
}
/// `dentry->d_name.name`: address of the name's bytes.
#[inline(always)]
pub fn dentry_name(dentry: u64) -> Result<u64, ReadError> {
    read(dentry, offset!(dentry_d_name_name))
}

/// `super_block->s_root`
#[inline(always)]
pub fn superblock_root(superblock: u64) -> Result<u64, ReadError> {
    read(superblock, offset!(super_block_s_root))
}
/// `super_block->s_subtype`: address of the text, 0 if there is none.
#[inline(always)]
pub fn superblock_subtype(superblock: u64) -> Result<u64, ReadError> {
    read(superblock, offset!(super_block_s_subtype))
}

/// Copies a NUL-closed text. Returns its length with the NUL.
#[inline(always)]
pub fn read_text(destination: *mut c_void, capacity: u32, source: u64) -> Result<u32, ReadError> {
    // SAFETY: the verifier proves that the destination holds `capacity` bytes.
    let length =
        unsafe { generated::bpf_probe_read_kernel_str(destination, capacity, source as *const c_void) };
    u32::try_from(length).map_err(|_| ReadError)
}

/// Now, on the boot clock.
#[inline(always)]
pub fn boot_ns() -> u64 {
    // SAFETY: always allowed. The boot clock counts suspended time, and nobody can set it.
    unsafe { generated::bpf_ktime_get_boot_ns() }
}
