//! The decision: structure first, map second.
//!
//! Each place where a choice is made between failing closed and failing open says so there.

use guard_common::policy::{
    CEPH_INO_ROOT, CEPH_SUPER_MAGIC, CONFIG_ALIASES, CONFIG_ALIASES_BY_INODE, FUSE_SUPER_MAGIC,
    NFS_SUPER_MAGIC, POOL_CANARY, POOL_CANARY_BACKSTOP, POOL_EXPORTED, POOL_GUARD_TRUNCATE, POOL_NO_ALIAS,
    magic_bit,
};
use guard_common::{Counter, FilesystemKey, Hook, Mode, Operation, PoolEntry, Reason, Verdict};

use crate::identity::{
    WALK_BOUND, WALK_DENY, WALK_OBSERVE, WALK_OUTSIDE, guarded_root, has_lease, is_actor, is_alias_actor,
    is_guest_view, is_in_sealed_pool,
};
use crate::kernel::{self, ReadError, Task, Trusted, boot_ns};
use crate::maps::{CONFIG, FILESYSTEMS, POOLS};
use crate::report::{self, Diagnosis, diagnose};

const EPERM: i32 = 1;
const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 1 << 1;
/// In place of the host's root directory, for a walk that only looks for guarded roots.
const NOWHERE: u64 = 0;

/// What is being done to what, and what became of it. Plain numbers: it is handed to `report::audit`,
/// a global function.
#[repr(C)]
pub struct Access {
    pub superblock: u64,
    /// `struct mount`; 0 if the hook does not know it.
    pub mount: u64,
    /// The dentry whose name goes.
    pub target: u64,
    pub magic: u64,
    /// The pool's generation, id and mode; 0 if it has no entry.
    pub generation: u64,
    pub pool_id: u64,
    pub mode: u32,
    pub dev: u32,
    pub hook: Hook,
    pub operation: Operation,
    /// [`Verdict`] and [`Reason`], once they are known.
    pub verdict: u32,
    pub reason: u32,
}

impl Access {
    /// `vfsmount` is none if the hook does not know it.
    #[inline(always)]
    pub fn new(
        hook: Hook,
        operation: Operation,
        superblock: Trusted,
        vfsmount: Option<Trusted>,
        target: Trusted,
    ) -> Self {
        Self {
            superblock: superblock.address(),
            mount: vfsmount.map_or(0, |vfsmount| kernel::mount_of(vfsmount.address())),
            target: target.address(),
            magic: superblock.magic(),
            generation: 0,
            pool_id: 0,
            mode: 0,
            dev: superblock.device(),
            hook,
            operation,
            verdict: 0,
            reason: 0,
        }
    }

    #[inline(always)]
    fn set_pool(&mut self, entry: &PoolEntry) {
        self.generation = entry.generation;
        self.pool_id = entry.pool_id;
        self.mode = entry.mode;
    }
}

/// An answer and why.
#[derive(Clone, Copy)]
pub struct Outcome {
    pub verdict: Verdict,
    pub reason: Reason,
}

const fn denied(reason: Reason) -> Outcome {
    Outcome { verdict: Verdict::Denied, reason }
}
const fn allowed(reason: Reason) -> Outcome {
    Outcome { verdict: Verdict::Allowed, reason }
}

impl Outcome {
    /// The counter of this outcome.
    pub fn counter(self) -> Counter {
        match (self.verdict, self.reason) {
            (Verdict::WouldDeny, _) => Counter::WouldDeny,
            (Verdict::Allowed, Reason::Released) => Counter::AllowedReleased,
            (Verdict::Allowed, Reason::Lease) => Counter::AllowedLease,
            (Verdict::Allowed, Reason::GuestView) => Counter::AllowedGuestView,
            (Verdict::Allowed, _) => Counter::AllowedActor,
            (Verdict::Denied, Reason::Guarded) => Counter::DeniedGuarded,
            (Verdict::Denied, Reason::Unclassified) => Counter::DeniedUnclassified,
            (Verdict::Denied, Reason::ReleaseExpired) => Counter::DeniedExpired,
            (Verdict::Denied, Reason::KernelThread) => Counter::DeniedKernelThread,
            (Verdict::Denied, Reason::ReadError) => Counter::DeniedReadError,
            (Verdict::Denied, Reason::Alias) => Counter::DeniedAlias,
            (Verdict::Denied, Reason::Held) => Counter::DeniedHeld,
            (Verdict::Denied, _) => Counter::DeniedSealed,
        }
    }
}

/// The fast path: false for every superblock that policy cannot mean.
#[inline(always)]
pub fn may_hold_pool(superblock: Trusted) -> bool {
    match CONFIG.get(0) {
        Some(config) => config.magic_bloom & magic_bit(superblock.magic()) != 0,
        None => false,
    }
}

/// What a rename does to its target; `None` if the target stays, or did not exist.
///
/// Fail closed: a target whose inode cannot be read counts as one that exists. So does a name on NFS
/// that was not looked up: the client does not ask the server about a rename's target
/// (`LOOKUP_RENAME_TARGET`), and leaves the dentry without an inode and in no hash chain. A name that
/// the server has said does not exist, as after `stat`, is in one.
#[inline(always)]
pub fn rename(source: Trusted, target: Trusted, superblock: Trusted, flags: u32) -> Option<Operation> {
    let inode = target.dentry_inode();
    let exists = !matches!(inode, Ok(0));
    // Two names of one file: the kernel leaves both as they are.
    if let (Ok(one), true) = (inode, exists)
        && matches!(source.dentry_inode(), Ok(other) if other == one)
    {
        return None;
    }
    if flags & RENAME_EXCHANGE != 0 {
        return Some(Operation::RenameExchange);
    }
    let not_looked_up =
        || flags & RENAME_NOREPLACE == 0 && target.is_unhashed() && superblock.magic() == NFS_SUPER_MAGIC;
    (exists || not_looked_up()).then_some(Operation::RenameReplace)
}

/// The decision of the hooks that carry the mount.
#[inline(always)]
pub fn with_mount(access: &mut Access) -> i32 {
    // SAFETY: entries are replaced whole and never freed while a program runs (RCU).
    let entry = unsafe { POOLS.get(access.dev) };
    // The magic is compared so that an entry never speaks for another kind of superblock.
    let known = entry.filter(|entry| entry.magic == access.magic);
    let outcome = match known {
        Some(entry) if entry.flags & POOL_NO_ALIAS == 0 => {
            if entry.flags & POOL_CANARY != 0 {
                return canary(entry, entry.flags & POOL_CANARY_BACKSTOP == 0);
            }
            access.set_pool(entry);
            by_mode(access, entry)
        }
        _ => unclassified(access, known.is_none() && seals_aliases()),
    };
    if let Some(outcome) = outcome {
        report::outcome(access, outcome);
    }
    answer(outcome)
}

/// The decision of the hooks that carry only the inode: what never passes a `path_*` hook.
///
/// It must not contradict a `path_*` hook that has just allowed the same deletion. So it allows
/// whatever that hook could have allowed to a user's thread, and refuses what no one may do. Aliases of
/// sealed pools are left to the `path_*` hooks: only the mount tells them from what lies below a root.
#[inline(always)]
pub fn backstop(access: &mut Access) -> i32 {
    // SAFETY: as in `with_mount`.
    let entry = match unsafe { POOLS.get(access.dev) } {
        Some(entry) if entry.magic == access.magic => entry,
        // Without a mount there is no structure to tell a pool by: fail open, the `path_*` hook decided.
        _ => return 0,
    };
    if entry.flags & POOL_CANARY != 0 {
        return canary(entry, entry.flags & POOL_CANARY_BACKSTOP != 0);
    }
    if entry.flags & POOL_NO_ALIAS != 0 {
        return 0;
    }
    // Fail open if it cannot be read: sealed mode, where it matters, denies user's threads as well.
    let kernel_thread = Task::current().is_kernel_thread().unwrap_or(false);
    let exported = entry.flags & POOL_EXPORTED != 0;
    let is_no_deletion =
        matches!(access.operation, Operation::Truncate) && entry.flags & POOL_GUARD_TRUNCATE == 0;
    let outcome = match Mode::from_u32(entry.mode) {
        // An export's clients are guests to a held pool too: policy names them.
        Some(Mode::Observed | Mode::Guarded | Mode::Held) if !kernel_thread || exported || is_no_deletion => {
            return 0;
        }
        Some(Mode::Observed) => Outcome { verdict: Verdict::WouldDeny, reason: Reason::KernelThread },
        Some(Mode::Guarded | Mode::Held) => denied(Reason::KernelThread),
        Some(Mode::Released) if is_released(entry) => {
            if !kernel_thread {
                return 0;
            }
            allowed(Reason::Released)
        }
        mode => {
            if has_lease(access.dev, entry.generation) {
                return 0;
            }
            denied(if let Some(Mode::Released) = mode { Reason::ReleaseExpired } else { Reason::Sealed })
        }
    };
    access.set_pool(entry);
    report::outcome(access, outcome);
    answer(Some(outcome))
}

/// Removes the entry of a superblock that ends.
#[inline(always)]
pub fn superblock_ends(superblock: Trusted) {
    if !may_hold_pool(superblock) {
        return;
    }
    let dev = superblock.device();
    report::count(Counter::SuperblocksEnded);
    // SAFETY: as in `with_mount`.
    let Some(entry) = (unsafe { POOLS.get(dev) }) else { return };
    let is_pool = entry.flags & (POOL_CANARY | POOL_NO_ALIAS) == 0;
    if POOLS.remove(dev).is_ok() && is_pool {
        report::count(Counter::PoolsEnded);
        diagnose(Diagnosis::SuperblockEnded, dev);
    }
}

#[inline(always)]
fn answer(outcome: Option<Outcome>) -> i32 {
    match outcome {
        Some(Outcome { verdict: Verdict::Denied, .. }) => constant::<{ -EPERM }>(),
        _ => constant::<0>(),
    }
}

/// A constant that the compiler takes for unknown. Else it returns some register that must hold the
/// same number by then, and the verifier, which has to see an error number or 0, cannot follow.
#[inline(always)]
fn constant<const VALUE: i32>() -> i32 {
    #[cfg(target_arch = "bpf")]
    {
        let value: i64;
        // SAFETY: sets a register.
        unsafe { core::arch::asm!("{0} = {1}", out(reg) value, const VALUE) };
        value as i32
    }
    #[cfg(not(target_arch = "bpf"))]
    VALUE
}

/// The agent's own superblock: only the load that it names answers, and only the kind of hooks it means. Of
/// the two hooks that see one deletion, neither may answer for the other.
#[inline(always)]
fn canary(entry: &PoolEntry, is_meant: bool) -> i32 {
    if is_meant && entry.canary_token == kernel::program_token() { -EPERM } else { 0 }
}

/// A superblock that has an entry. `None`: allowed, and nobody needs to know.
#[inline(always)]
fn by_mode(access: &Access, entry: &PoolEntry) -> Option<Outcome> {
    // A number that is no mode is treated as sealed: fail closed for known pools.
    let mode = Mode::from_u32(entry.mode).unwrap_or(Mode::Sealed);
    if matches!(mode, Mode::Released) && is_released(entry) {
        return Some(allowed(Reason::Released));
    }
    if has_lease(access.dev, entry.generation) {
        return Some(allowed(Reason::Lease));
    }
    if matches!(mode, Mode::Sealed) {
        return Some(denied(Reason::Sealed));
    }
    if matches!(mode, Mode::Released) {
        return Some(denied(Reason::ReleaseExpired));
    }
    // Guarded, held and observed: the same question, with another consequence.
    if matches!(access.operation, Operation::Truncate) && entry.flags & POOL_GUARD_TRUNCATE == 0 {
        return None;
    }
    let reason = match is_guest_view(access) {
        Ok(true) => return Some(allowed(Reason::GuestView)),
        Ok(false) if matches!(mode, Mode::Held) => Reason::Held,
        Ok(false) => match is_actor(entry.actor_set) {
            Ok(true) => return Some(allowed(Reason::Actor)),
            Ok(false) => Reason::Guarded,
            Err(ReadError) => Reason::ReadError,
        },
        Err(ReadError) => Reason::ReadError,
    };
    if matches!(reason, Reason::ReadError) {
        // A known pool and no way to tell who asks: fail closed.
        report::count(Counter::ErrorReadClosed);
        diagnose(Diagnosis::UnreadableClosed, access.dev);
    }
    let verdict = if matches!(mode, Mode::Observed) { Verdict::WouldDeny } else { Verdict::Denied };
    Some(Outcome { verdict, reason })
}

/// A superblock that has no entry: denied if it is of a guarded kind and lies below a guarded root.
///
/// Truncation below a root is left alone: a pool's usual mode allows it, and its first moment must not differ.
/// With `aliases`, a superblock outside all roots is denied to the actors of sealed pools, truncation too.
#[inline(always)]
fn unclassified(access: &Access, aliases: bool) -> Option<Outcome> {
    let truncates = matches!(access.operation, Operation::Truncate);
    if truncates && !aliases {
        return None;
    }
    let filesystem = match filesystem_bit(access) {
        Ok(0) => return None,
        Ok(bit) => bit,
        Err(ReadError) => return fail_open(access),
    };
    match guarded_root(access.mount, filesystem, NOWHERE) {
        WALK_OUTSIDE if aliases => alias(access),
        WALK_OUTSIDE => None,
        _ if truncates => None,
        WALK_DENY => Some(denied(Reason::Unclassified)),
        WALK_OBSERVE => Some(Outcome { verdict: Verdict::WouldDeny, reason: Reason::Unclassified }),
        WALK_BOUND => {
            // So deep that nothing is known: fail open, and say so.
            if !kernel::is_standby() {
                report::count(Counter::ErrorWalkBound);
                diagnose(Diagnosis::WalkBound, access.dev);
            }
            None
        }
        _ => fail_open(access),
    }
}

#[inline(always)]
fn seals_aliases() -> bool {
    CONFIG.get(0).is_some_and(|config| config.flags & CONFIG_ALIASES != 0)
}

/// Outside all roots, while a pool is sealed: its data may be reached here, under another superblock.
#[inline(always)]
fn alias(access: &Access) -> Option<Outcome> {
    match is_alias_actor() {
        Ok(true) if shows_the_whole(access) && is_in_sealed_pool(access.target) == 0 => None,
        Ok(true) => Some(denied(Reason::Alias)),
        Ok(false) => None,
        Err(ReadError) => fail_open(access),
    }
}

/// Whether this is the mount of a whole Ceph filesystem, and names tell what in it is a sealed pool's. Fail closed, to
/// the actors of sealed pools: what cannot be read counts as a part.
#[inline(always)]
fn shows_the_whole(access: &Access) -> bool {
    access.magic == CEPH_SUPER_MAGIC
        && CONFIG.get(0).is_some_and(|config| config.flags & CONFIG_ALIASES_BY_INODE != 0)
        && kernel::superblock_root_ino(access.superblock).is_ok_and(|ino| ino == CEPH_INO_ROOT)
}

/// Nothing is known to be guarded here, and the kernel's memory could not be read: fail open.
#[inline(always)]
fn fail_open(access: &Access) -> Option<Outcome> {
    if !kernel::is_standby() {
        report::count(Counter::ErrorReadOpen);
        diagnose(Diagnosis::UnreadableOpen, access.dev);
    }
    None
}

#[inline(always)]
fn is_released(entry: &PoolEntry) -> bool {
    boot_ns() < entry.expires_boot_ns
}

/// The bit of the superblock's kind of filesystem; 0 if policy does not name that kind.
#[inline(always)]
fn filesystem_bit(access: &Access) -> Result<u64, ReadError> {
    let mut key = FilesystemKey { magic: access.magic, subtype: [0; guard_common::policy::SUBTYPE_WORDS] };
    if access.magic == FUSE_SUPER_MAGIC {
        let subtype = kernel::superblock_subtype(access.superblock)?;
        if subtype != 0 {
            kernel::read_text(key.subtype.as_mut_ptr().cast(), size_of_val(&key.subtype) as u32, subtype)?;
        }
    }
    // SAFETY: as in `with_mount`.
    Ok(unsafe { FILESYSTEMS.get(key) }.map_or(0, |bit| 1 << (*bit & 63)))
}
