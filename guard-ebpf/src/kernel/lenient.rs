//! Reads that walk: they go on after a failure, and tell at the end.

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::helpers::generated;

use super::{ANONYMOUS_NAMESPACE, MAX_ERRNO};

/// Takes a step up to `bound` times, until one returns [`STOP`].
///
/// By the kernel's helper, not by a loop: the verifier looks at one step then, instead of at each,
/// which took it most of the time of a start. Only steps that are functions of this file's program,
/// and no global ones, are taken.
#[inline(always)]
pub(crate) fn repeat<C>(
    bound: u32,
    context: &mut C,
    step: unsafe extern "C" fn(u32, *mut C) -> i64,
) {
    // SAFETY: the context lives on the caller's stack until the helper returns, and only the steps
    // use it.
    unsafe { generated::bpf_loop(bound, step as *mut c_void, (&raw mut *context).cast(), 0) };
}

/// Answers of a step.
pub(crate) const GO_ON: i64 = 0;
pub(crate) const STOP: i64 = 1;

/// Reads that go on after a failure: an unreadable value is zero, and the failure is remembered.
/// There is no branch on each read, since every branch doubles the verifier's work, and one slot
/// for all, since the stack is short.
pub(crate) struct Lenient {
    /// Written before it is read. Clearing it with `failures` would take a call.
    slot: MaybeUninit<u64>,
    failures: i64,
}

impl Lenient {
    pub(crate) fn new() -> Self {
        Self { slot: MaybeUninit::uninit(), failures: 0 }
    }

    /// Whether something could not be read.
    pub(crate) fn failed(&self) -> bool {
        self.failures != 0
    }

    #[inline(always)]
    pub(super) fn read<T: Copy>(&mut self, base: u64, offset: u64) -> T {
        let slot = self.slot.as_mut_ptr().cast::<T>();
        let source = base.wrapping_add(offset) as *const c_void;
        // SAFETY: the slot holds eight bytes, and only integers of at most eight are read. The
        // helper checks the source, and fills the destination with zeros if it is bad.
        unsafe {
            self.failures |=
                generated::bpf_probe_read_kernel(slot.cast(), size_of::<T>() as u32, source);
            ptr::read_volatile(slot)
        }
    }

    /// `mount->mnt_parent`
    #[inline(always)]
    pub(crate) fn mount_parent(&mut self, mount: u64) -> u64 {
        self.read(mount, offset!(mount_mnt_parent))
    }
    /// `mount->mnt_mountpoint`
    #[inline(always)]
    pub(crate) fn mount_mountpoint(&mut self, mount: u64) -> u64 {
        self.read(mount, offset!(mount_mnt_mountpoint))
    }
    /// `mount->mnt.mnt_root`
    #[inline(always)]
    pub(crate) fn mount_root(&mut self, mount: u64) -> u64 {
        self.read(mount, offset!(mount_mnt) + offset!(vfsmount_mnt_root))
    }
    /// `mount->mnt.mnt_sb->s_dev`
    #[inline(always)]
    pub(crate) fn mount_device(&mut self, mount: u64) -> u32 {
        let superblock = self.read(mount, offset!(mount_mnt) + offset!(vfsmount_mnt_sb));
        self.read(superblock, offset!(super_block_s_dev))
    }
    /// `dentry->d_inode->i_ino`
    #[inline(always)]
    pub(crate) fn dentry_ino(&mut self, dentry: u64) -> u64 {
        let inode = self.read(dentry, offset!(dentry_d_inode));
        self.read(inode, offset!(inode_i_ino))
    }
    /// `dentry->d_inode->i_generation`
    #[inline(always)]
    pub(crate) fn dentry_generation(&mut self, dentry: u64) -> u32 {
        let inode = self.read(dentry, offset!(dentry_d_inode));
        self.read(inode, offset!(inode_i_generation))
    }
    /// Whether a mount is in a namespace.
    #[inline(always)]
    pub(crate) fn is_attached(&mut self, mount: u64) -> bool {
        let namespace: u64 = self.read(mount, offset!(mount_mnt_ns));
        namespace != 0 && namespace < MAX_ERRNO.wrapping_neg() && {
            let number: u32 = self.read(namespace, offset!(mnt_namespace_inum));
            number != ANONYMOUS_NAMESPACE
        }
    }
    /// `dentry->d_parent`
    #[inline(always)]
    pub(crate) fn dentry_parent(&mut self, dentry: u64) -> u64 {
        self.read(dentry, offset!(dentry_d_parent))
    }
    /// `mount->mnt_id`
    #[inline(always)]
    pub(crate) fn mount_id(&mut self, mount: u64) -> u32 {
        self.read(mount, offset!(mount_mnt_id))
    }
}

/// The list of a superblock's mounts.
///
/// Until 6.17 a ring of nodes (`mnt_instance`) that begins and ends in the superblock, the oldest
/// mount first; since 6.18 a chain of mounts, the newest first.
pub(crate) struct Siblings {
    /// Anchor of the list.
    anchor: u64,
}

impl Siblings {
    #[inline(always)]
    pub(crate) fn of(superblock: u64) -> Self {
        Self { anchor: superblock.wrapping_add(offset!(super_block_s_mounts)) }
    }

    #[inline(always)]
    pub(crate) fn is_oldest_first(&self) -> bool {
        offset!(mount_mnt_next_for_sb) == 0
    }

    /// The first node, or mount.
    #[inline(always)]
    pub(crate) fn first(&self, reads: &mut Lenient) -> u64 {
        reads.read(self.anchor, 0)
    }

    #[inline(always)]
    pub(crate) fn is_end(&self, node: u64) -> bool {
        node == 0 || node == self.anchor
    }

    /// The mount of a node.
    #[inline(always)]
    pub(crate) fn mount(&self, node: u64) -> u64 {
        node.wrapping_sub(offset!(mount_mnt_instance))
    }

    /// The node, or mount, behind a mount's.
    #[inline(always)]
    pub(crate) fn next(&self, mount: u64, reads: &mut Lenient) -> u64 {
        reads.read(mount, offset!(mount_mnt_instance) + offset!(mount_mnt_next_for_sb))
    }
}
