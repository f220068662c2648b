//! Every read of kernel memory.
//!
//! Two kinds: [`Trusted`] walks from a hook's argument, which the verifier types and turns into
//! plain loads (the fast path), and [`read`], which copies through a helper and can fail
//! (everything else, and every step backwards, like from a vfsmount to its mount).
//!
//! `decide`, not this module, decides the meaning of a failed read.

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated};

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
pub(crate) fn tree_sequences() -> u64 {
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

/// Memory barrier: reads before it precede reads after it, on every processor. An atomic operation
/// that returns a value is a full barrier.
#[inline(always)]
pub(crate) fn fence() {
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

/// Whether another load of the same programs decides the same, and counts allowed deletions.
pub(crate) fn is_standby() -> bool {
    // SAFETY: as in `program_token`.
    unsafe { ptr::read_volatile(&raw const STANDBY) != 0 }
}

pub(crate) fn tier() -> u32 {
    // SAFETY: as in `program_token`.
    unsafe { ptr::read_volatile(&raw const TIER) }
}

pub(crate) fn program_token() -> u32 {
    // SAFETY: a static of ours. Volatile, since the agent replaces its content at load time.
    unsafe { ptr::read_volatile(&raw const PROGRAM_TOKEN) }
}

/// Number of a member (its place in `Offsets`) in an instruction, where the agent puts its offset.
macro_rules! placeholder {
    ($base:ident, $member:ident) => {
        guard_common::offsets::$base
            + (core::mem::offset_of!(guard_common::Offsets, $member) / 4) as i32
    };
}

/// The offset of a member, set to a register.
macro_rules! offset {
    ($member:ident) => {{
        let offset: u64;
        #[cfg(target_arch = "bpf")]
        // SAFETY: sets a register.
        unsafe {
            core::arch::asm!(
                "{0} = {1}",
                out(reg) offset,
                const { placeholder!(IMMEDIATE_PLACEHOLDER, $member) },
                options(pure, nomem)
            );
        }
        #[cfg(not(target_arch = "bpf"))]
        {
            offset = const { placeholder!(IMMEDIATE_PLACEHOLDER, $member) as u64 };
        }
        offset
    }};
}

/// Value of a typed pointer's member: a number, or a pointer that is typed again.
macro_rules! load {
    ($pointer:expr, $width:literal, $member:ident) => {{
        let pointer: *const core::ffi::c_void = $pointer;
        let value: u64;
        #[cfg(target_arch = "bpf")]
        // SAFETY: the verifier proves that the member lies in the structure; a bad address reads as
        // zero.
        unsafe {
            core::arch::asm!(
                concat!("{0} = *(", $width, " *)({1} + {2})"),
                out(reg) value,
                in(reg) pointer,
                const { placeholder!(LOAD_PLACEHOLDER, $member) },
                options(pure, readonly)
            );
        }
        #[cfg(not(target_arch = "bpf"))]
        {
            value = (pointer as u64).wrapping_add(const { placeholder!(LOAD_PLACEHOLDER, $member) as u64 });
        }
        value
    }};
}

pub(crate) mod lenient;
pub(crate) mod task;

/// `ATTR_SIZE` of `iattr.ia_valid`, the same since the beginning.
const ATTR_SIZE: u32 = 1 << 3;

/// Whether the hook `inode_setattr` has the mount's id map as its first argument.
#[inline(always)]
pub(crate) fn setattr_has_idmap() -> bool {
    offset!(inode_setattr_dentry) != 0
}

/// Whether `inode_rename` has the flags as its last argument.
#[inline(always)]
pub(crate) fn rename_has_flags() -> bool {
    offset!(inode_rename_arguments) == 5
}

/// The kernel's memory could not be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadError;

/// A pointer that the verifier knows the type of. Null reads as zero, as the kernel's probe loads
/// do.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Trusted(*const c_void);

/// `member => $fn`: follows a pointer; or loads a number.
macro_rules! members {
    ($($(#[$meta:meta])* $name:ident = $member:ident -> pointer;)+) => { $(
        $(#[$meta])*
        #[inline(always)]
        pub(crate) fn $name(self) -> Self {
            Self(load!(self.0, "u64", $member) as *const c_void)
        }
    )+ };
    ($($(#[$meta:meta])* $name:ident = $member:ident -> $type:ident $width:literal;)+) => { $(
        $(#[$meta])*
        #[inline(always)]
        pub(crate) fn $name(self) -> $type {
            load!(self.0, $width, $member) as $type
        }
    )+ };
}

impl Trusted {
    pub(crate) fn new(pointer: *const c_void) -> Self {
        Self(pointer)
    }

    /// The address as a plain number. The verifier follows typed pointers through every copy but
    /// one through a helper, and global functions take numbers only.
    #[inline(always)]
    pub(crate) fn address(self) -> u64 {
        let mut slot = MaybeUninit::<*const c_void>::uninit();
        // SAFETY: a slot of our own stack. Volatile, so that the pointer really lies there.
        unsafe { ptr::write_volatile(slot.as_mut_ptr(), self.0) };
        // SAFETY: reads that slot. It cannot fail; 0 would read as an unreadable address
        // everywhere.
        unsafe { bpf_probe_read_kernel(slot.as_ptr().cast::<u64>()) }.unwrap_or(0)
    }

    members! {
        /// `path->mnt`
        path_mount = path_mnt -> pointer;
        /// `path->dentry`
        path_dentry = path_dentry -> pointer;
        /// `vfsmount->mnt_root`
        mount_root = vfsmount_mnt_root -> pointer;
        /// `super_block->s_root`
        superblock_root = super_block_s_root -> pointer;
        /// `vfsmount->mnt_sb`
        mount_superblock = vfsmount_mnt_sb -> pointer;
        /// `inode->i_sb`
        inode_superblock = inode_i_sb -> pointer;
        /// `dentry->d_sb`
        dentry_superblock = dentry_d_sb -> pointer;
        /// `dentry->d_inode` of a directory that is mounted.
        mounted_inode = dentry_d_inode -> pointer;
        /// `task_struct->group_leader`
        group_leader = task_group_leader -> pointer;
        /// `task_struct->mm`
        memory = task_mm -> pointer;
        /// `mm_struct->exe_file`
        executable_file = mm_exe_file -> pointer;
        /// `file->f_inode`
        file_inode = file_f_inode -> pointer;
    }

    members! {
        /// `super_block->s_magic`
        magic = super_block_s_magic -> u64 "u64";
        /// `super_block->s_dev`
        device = super_block_s_dev -> u32 "u32";
        /// `inode->i_ino`
        inode_number = inode_i_ino -> u64 "u64";
        /// `inode->i_generation`
        inode_generation = inode_i_generation -> u32 "u32";
        /// `iattr->ia_valid`
        attributes = iattr_ia_valid -> u32 "u32";
        /// `dentry->d_hash.pprev`
        hash_chain = dentry_d_hash_pprev -> u64 "u64";
        /// `task_struct->flags`
        task_flags = task_flags -> u32 "u32";
        /// `task_struct->start_boottime`
        start_boottime = task_start_boottime -> u64 "u64";
    }

    /// `file->f_path`
    #[inline(always)]
    fn file_path(self) -> Self {
        #[cfg_attr(
            not(target_arch = "bpf"),
            expect(unused_mut, reason = "the instruction changes it")
        )]
        let mut path = self.0;
        #[cfg(target_arch = "bpf")]
        // SAFETY: changes a register; the verifier follows it.
        unsafe {
            core::arch::asm!(
                "{0} += {1}",
                inout(reg) path,
                const { placeholder!(IMMEDIATE_PLACEHOLDER, file_f_path) }
            );
        }
        Self(path)
    }
    /// `file->f_path.mnt`
    #[inline(always)]
    pub(crate) fn file_mount(self) -> Self {
        self.file_path().path_mount()
    }
    /// `file->f_path.dentry`
    #[inline(always)]
    pub(crate) fn file_dentry(self) -> Self {
        self.file_path().path_dentry()
    }
    /// Offset of an address from another: a plain number.
    #[inline(always)]
    pub(crate) fn distance_from(self, other: Self) -> u64 {
        // The verifier takes no null for an address.
        if self.0.is_null() || other.0.is_null() {
            return 0;
        }
        #[cfg(target_arch = "bpf")]
        {
            let mut distance = self.0;
            // SAFETY: changes a register. In assembler, since the compiler must not turn it into
            // something else: the verifier allows no other arithmetic with two addresses.
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
    pub(crate) fn is(self, other: Self) -> bool {
        self.0 == other.0
    }

    /// Whether `iattr->ia_valid` says that the size is to change.
    #[inline(always)]
    pub(crate) fn sets_size(self) -> bool {
        self.attributes() & ATTR_SIZE != 0
    }
    /// Whether the dentry is in no hash chain. A lookup that found no file leaves it in one.
    #[inline(always)]
    pub(crate) fn is_unhashed(self) -> bool {
        self.hash_chain() == 0
    }
    /// Address of `dentry->d_inode`; 0 if the name does not exist.
    ///
    /// By the helper, not by a plain load: the verifier of kernels before 6.16 assumes that a
    /// dentry has an inode, and removes the code for one that has none.
    #[inline(always)]
    pub(crate) fn dentry_inode(self) -> Result<u64, ReadError> {
        read(self.address(), offset!(dentry_d_inode))
    }
}

/// Copies a value out of kernel memory.
#[inline(always)]
fn read<T>(base: u64, offset: u64) -> Result<T, ReadError> {
    let address = base.wrapping_add(offset) as *const T;
    // SAFETY: the helper checks the address and fails on a bad one.
    unsafe { bpf_probe_read_kernel(address) }.map_err(|_| ReadError)
}

/// `struct mount` around a `struct vfsmount`.
#[inline(always)]
pub(crate) fn mount_of(vfsmount: u64) -> u64 {
    vfsmount.wrapping_sub(offset!(mount_mnt))
}
/// Highest error number that the kernel puts in a pointer.
const MAX_ERRNO: u64 = 4095;
/// Number of all anonymous mount namespaces (detached mounts) since 6.18; before, they had none.
const ANONYMOUS_NAMESPACE: u32 = 0xEFFF_FFF7;

/// Inode of the mount namespace that a mount belongs to; 0 for a detached one.
#[inline(always)]
pub(crate) fn mount_namespace(mount: u64) -> Result<u32, ReadError> {
    let namespace: u64 = read(mount, offset!(mount_mnt_ns))?;
    if namespace == 0 || namespace >= MAX_ERRNO.wrapping_neg() {
        return Ok(0);
    }
    let number = read(namespace, offset!(mnt_namespace_inum))?;
    Ok(if number == ANONYMOUS_NAMESPACE { 0 } else { number })
}

/// `dentry->d_parent`
#[inline(always)]
pub(crate) fn dentry_parent(dentry: u64) -> Result<u64, ReadError> {
    read(dentry, offset!(dentry_d_parent))
}
/// `dentry->d_name.name`: address of the name's bytes.
#[inline(always)]
pub(crate) fn dentry_name(dentry: u64) -> Result<u64, ReadError> {
    read(dentry, offset!(dentry_d_name_name))
}

/// `super_block->s_root`
#[inline(always)]
pub(crate) fn superblock_root(superblock: u64) -> Result<u64, ReadError> {
    read(superblock, offset!(super_block_s_root))
}
/// `super_block->s_subtype`: address of the text, 0 if there is none.
#[inline(always)]
pub(crate) fn superblock_subtype(superblock: u64) -> Result<u64, ReadError> {
    read(superblock, offset!(super_block_s_subtype))
}

/// Copies a NUL-closed text. Returns its length with the NUL.
#[inline(always)]
pub(crate) fn read_text(
    destination: *mut c_void,
    capacity: u32,
    source: u64,
) -> Result<u32, ReadError> {
    // SAFETY: the verifier proves that the destination holds `capacity` bytes.
    let length = unsafe {
        generated::bpf_probe_read_kernel_str(destination, capacity, source as *const c_void)
    };
    u32::try_from(length).map_err(|_| ReadError)
}

/// Now, on the boot clock.
#[inline(always)]
pub(crate) fn boot_ns() -> u64 {
    // SAFETY: always allowed. The boot clock counts suspended time, and nobody can set it.
    unsafe { generated::bpf_ktime_get_boot_ns() }
}
