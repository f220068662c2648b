//! The LSM hooks, as thin as they can be: take the arguments, pass on an earlier refusal, ask
//! `decide`.
//!
//! The work for every deletion on the host is in the hook itself, and all else in functions that it
//! calls (`decided`): a program that keeps nothing over a call saves no registers, and has no
//! stack.
//!
//! The agent attaches the same programs in front of the kernel's `security_*` functions where the
//! LSM hooks are not called (tier `fmod-ret`). Those take the same arguments, with the exceptions
//! that `Offsets` names.

use core::ffi::c_void;

use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use guard_common::{Hook, Operation};

use crate::decide::{self, Deletion};
use crate::kernel::{self, Trusted};

const EPERM: i32 = 1;
const MAX_ERRNO: i32 = 4095;

/// Evaluates to the answer of an earlier BPF program on the same hook if that was a refusal.
/// Bounded as the verifier demands: an LSM hook answers 0 or a negative error number.
macro_rules! honour_previous {
    ($context:expr, $index:literal) => {
        honour!($context.arg::<i32>($index))
    };
}

/// The same with the answer itself.
macro_rules! honour {
    ($previous:expr) => {
        let previous: i32 = $previous;
        if previous != 0 {
            return if (-MAX_ERRNO..0).contains(&previous) { previous } else { -EPERM };
        }
    };
}

#[inline(always)]
fn pointer(context: &LsmContext, index: usize) -> Trusted {
    Trusted::new(context.arg::<*const c_void>(index))
}

/// Argument of a hook by its place, for one whose arguments stand elsewhere on another kernel. The
/// verifier takes no computed place, and the compiler makes one of two loads in two branches; those
/// written in assembler it leaves alone.
macro_rules! argument {
    ($context:expr, $bytes:literal) => {{
        let value: u64;
        #[cfg(target_arch = "bpf")]
        // SAFETY: loads a word of the context, which the verifier checks.
        unsafe {
            use aya_ebpf::EbpfContext as _;
            core::arch::asm!(
                concat!("{0} = *(u64 *)({1} + ", $bytes, ")"),
                out(reg) value,
                in(reg) $context.as_ptr()
            );
        }
        #[cfg(not(target_arch = "bpf"))]
        {
            value = $context.arg::<u64>($bytes / 8);
        }
        value
    }};
}

/// A hook that carries the mount: `path_*` and `file_truncate`.
#[inline(always)]
fn on_mount(hook: Hook, operation: Operation, mount: Trusted, target: Trusted) -> i32 {
    let superblock = mount.mount_superblock();
    if !decide::may_hold_pool(superblock) {
        return 0;
    }
    decided(hook, operation, superblock, mount, target)
}

#[inline(never)]
fn decided(
    hook: Hook,
    operation: Operation,
    superblock: Trusted,
    mount: Trusted,
    target: Trusted,
) -> i32 {
    decide::with_mount(Deletion { hook, operation, superblock, mount: Some(mount), target }, mount)
}

/// A hook that carries only the inode: `inode_*`.
#[inline(always)]
fn on_inode(hook: Hook, operation: Operation, directory: Trusted, target: Trusted) -> i32 {
    behind(hook, operation, directory.inode_superblock(), target)
}

#[inline(always)]
fn behind(hook: Hook, operation: Operation, superblock: Trusted, target: Trusted) -> i32 {
    if !decide::may_hold_pool(superblock) {
        return 0;
    }
    decided_behind(hook, operation, superblock, target)
}

#[inline(never)]
fn decided_behind(hook: Hook, operation: Operation, superblock: Trusted, target: Trusted) -> i32 {
    if decide::is_idle(superblock) {
        return 0;
    }
    // A name that was not looked up comes only from a system call, and `path_rename` has decided.
    if matches!(hook, Hook::InodeRename) && matches!(target.dentry_inode(), Ok(0)) {
        return 0;
    }
    decide::backstop(Deletion { hook, operation, superblock, mount: None, target })
}

#[lsm(hook = "path_unlink")]
pub(crate) fn guard_path_unlink(context: LsmContext) -> i32 {
    honour_previous!(context, 2);
    on_mount(
        Hook::PathUnlink,
        Operation::Unlink,
        pointer(&context, 0).path_mount(),
        pointer(&context, 1),
    )
}

#[lsm(hook = "path_rmdir")]
pub(crate) fn guard_path_rmdir(context: LsmContext) -> i32 {
    honour_previous!(context, 2);
    on_mount(
        Hook::PathRmdir,
        Operation::Rmdir,
        pointer(&context, 0).path_mount(),
        pointer(&context, 1),
    )
}

#[lsm(hook = "path_rename")]
pub(crate) fn guard_path_rename(context: LsmContext) -> i32 {
    honour_previous!(context, 5);
    let (source, target) = (pointer(&context, 1), pointer(&context, 3));
    let mount = pointer(&context, 2).path_mount();
    let superblock = mount.mount_superblock();
    if !decide::may_hold_pool(superblock) {
        return 0;
    }
    renamed(source, target, superblock, mount, context.arg(4))
}

/// As [`decided`], which it does not call: the two would have more stack than Linux 6.1 gives.
#[inline(never)]
fn renamed(
    source: Trusted,
    target: Trusted,
    superblock: Trusted,
    mount: Trusted,
    flags: u32,
) -> i32 {
    match decide::rename(source, target, superblock, flags) {
        Some(operation) => {
            let hook = Hook::PathRename;
            decide::with_mount(
                Deletion { hook, operation, superblock, mount: Some(mount), target },
                mount,
            )
        }
        None => 0,
    }
}

#[lsm(hook = "path_truncate")]
pub(crate) fn guard_path_truncate(context: LsmContext) -> i32 {
    honour_previous!(context, 1);
    let path = pointer(&context, 0);
    on_mount(Hook::PathTruncate, Operation::Truncate, path.path_mount(), path.path_dentry())
}

#[lsm(hook = "file_truncate")]
pub(crate) fn guard_file_truncate(context: LsmContext) -> i32 {
    honour_previous!(context, 1);
    let file = pointer(&context, 0);
    on_mount(Hook::FileTruncate, Operation::Truncate, file.file_mount(), file.file_dentry())
}

#[lsm(hook = "inode_unlink")]
pub(crate) fn guard_inode_unlink(context: LsmContext) -> i32 {
    honour_previous!(context, 2);
    on_inode(Hook::InodeUnlink, Operation::Unlink, pointer(&context, 0), pointer(&context, 1))
}

#[lsm(hook = "inode_rmdir")]
pub(crate) fn guard_inode_rmdir(context: LsmContext) -> i32 {
    honour_previous!(context, 2);
    on_inode(Hook::InodeRmdir, Operation::Rmdir, pointer(&context, 0), pointer(&context, 1))
}

/// For an exchange the kernel calls this hook once for each direction (and `security_inode_rename`
/// once for both): both targets exist then.
#[lsm(hook = "inode_rename")]
pub(crate) fn guard_inode_rename(context: LsmContext) -> i32 {
    let previous =
        if kernel::rename_has_flags() { argument!(context, 40) } else { argument!(context, 32) };
    honour!(previous as i32);
    let (directory, target) = (pointer(&context, 2), pointer(&context, 3));
    on_inode(Hook::InodeRename, Operation::RenameReplace, directory, target)
}

/// Every truncation comes by here: those that no `path_*` hook sees are nfsd's, a filesystem's
/// stacked on the pool, and a core dump's, of the file that it has just made.
#[lsm(hook = "inode_setattr")]
pub(crate) fn guard_inode_setattr(context: LsmContext) -> i32 {
    let (dentry, attributes, previous) = if kernel::setattr_has_idmap() {
        (argument!(context, 8), argument!(context, 16), argument!(context, 24))
    } else {
        (argument!(context, 0), argument!(context, 8), argument!(context, 16))
    };
    honour!(previous as i32);
    if !Trusted::new(attributes as *const c_void).sets_size() {
        return 0;
    }
    let target = Trusted::new(dentry as *const c_void);
    behind(Hook::InodeSetattr, Operation::Truncate, target.dentry_superblock(), target)
}

/// The last user of a superblock is gone: its entry must not outlive it, since `s_dev` is reused.
#[lsm(hook = "sb_delete")]
pub(crate) fn guard_sb_delete(context: LsmContext) -> i32 {
    decide::superblock_ends(pointer(&context, 0));
    0
}
