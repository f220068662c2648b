//! The decision: structure first, map second.
//!
//! Each place where a choice is made between failing closed and failing open says so there.

use core::mem::MaybeUninit;

use guard_common::policy::{
    CEPH_INO_ROOT, CEPH_SUPER_MAGIC, CONFIG_ALIASES, CONFIG_ALIASES_BY_INODE, CONFIG_STRICT,
    NFS_SUPER_MAGIC, POOL_CANARY, POOL_CANARY_BACKSTOP, POOL_EXPORTED, POOL_GUARD_TRUNCATE,
    POOL_NO_ALIAS, POOL_NONE, POOL_OUTSIDE, POOL_PARTS, POOL_VISITOR, RAMFS_MAGIC, SEVERAL_MAGICS,
};
use guard_common::{Counter, Hook, Mode, Operation, PoolEntry, PoolKey, Reason, Verdict};

use crate::identity::{cgroups, has_lease, is_alias_actor, is_executable_actor};
use crate::kernel::task::Task;
use crate::kernel::{self, ReadError, Trusted, boot_ns};
use crate::maps::{POOLS, config, guarded_magic};
use crate::parts::{NO_PART, UNREADABLE_PART, part};
use crate::pools::{self, Found};
use crate::report::{self, Diagnosis, diagnose};
use crate::walk::{Place, is_elsewhere, is_in_sealed_pool, place};

const EPERM: i32 = 1;
const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 1 << 1;

/// An attempted deletion and its target.
#[derive(Clone, Copy)]
pub(crate) struct Deletion {
    pub hook: Hook,
    pub operation: Operation,
    pub superblock: Trusted,
    /// None if the hook does not know it.
    pub mount: Option<Trusted>,
    /// The dentry whose name goes.
    pub target: Trusted,
}

/// An answer and why.
#[derive(Clone, Copy)]
pub(crate) struct Outcome {
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
    pub(crate) fn counter(self) -> Counter {
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
pub(crate) fn may_hold_pool(superblock: Trusted) -> bool {
    let magic = superblock.magic();
    let guarded = guarded_magic(magic);
    guarded == magic || guarded == SEVERAL_MAGICS
}

/// Whether a hook that carries only the inode need not look any further: nothing is sealed or
/// released, and this is no kernel thread. The canary's kind is always looked at.
#[inline(always)]
pub(crate) fn is_idle(superblock: Trusted) -> bool {
    let strict = config!(flags) & CONFIG_STRICT != 0;
    !strict && superblock.magic() != RAMFS_MAGIC && !Task::current().is_kernel_thread()
}

/// Operation of a rename on its target; `None` if the target stays, or did not exist.
///
/// Fail closed: a target whose inode cannot be read counts as one that exists. So does a name on
/// NFS that was not looked up: the client does not ask the server about a rename's target
/// (`LOOKUP_RENAME_TARGET`), and leaves the dentry without an inode and in no hash chain. A name
/// that the server has said does not exist, as after `stat`, is in one.
#[inline(always)]
pub(crate) fn rename(
    source: Trusted,
    target: Trusted,
    superblock: Trusted,
    flags: u32,
) -> Option<Operation> {
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
    let not_looked_up = || {
        flags & RENAME_NOREPLACE == 0
            && target.is_unhashed()
            && superblock.magic() == NFS_SUPER_MAGIC
    };
    (exists || not_looked_up()).then_some(Operation::RenameReplace)
}

/// The decision of the hooks that carry the mount.
#[inline(always)]
pub(crate) fn with_mount(deletion: Deletion, mount: Trusted) -> i32 {
    let superblock = deletion.superblock;
    let (dev, magic) = (superblock.device(), superblock.magic());
    let mut slot = MaybeUninit::uninit();
    let entry = pools::clear(&mut slot);
    let mut found = pools::entry_of(PoolKey::superblock(dev), magic, entry);
    let mut belongs = Belongs::Unknown;
    if found == Found::Entry && entry.flags & POOL_SPECIAL != 0 {
        if entry.flags & POOL_CANARY != 0 {
            return canary(entry, entry.flags & POOL_CANARY_BACKSTOP == 0);
        }
        (belongs, found) = special(superblock, mount, magic, entry);
    }
    let outcome = match found {
        Found::Entry if belongs == Belongs::Visiting && is_at_home(superblock, mount) => None,
        Found::Entry => by_mode(deletion, mount, entry),
        Found::Nothing => {
            pools::forget(entry);
            unclassified(deletion, mount, belongs)
        }
        Found::Torn => {
            pools::forget(entry);
            Some(torn(dev))
        }
    };
    told(deletion, entry, outcome)
}

/// Counts and records an outcome, and answers the kernel.
#[inline(always)]
fn told(deletion: Deletion, entry: &PoolEntry, outcome: Option<Outcome>) -> i32 {
    if let Some(outcome) = outcome {
        report::outcome(&deletion, entry, outcome);
    }
    answer(outcome)
}

/// Entries that speak for no pool, or not through every mount.
const POOL_SPECIAL: u32 = POOL_NONE | POOL_VISITOR;

/// Known place of a superblock, or of the part that is seen through a mount, beside its entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Belongs {
    Unknown,
    /// To no root, certainly, and it shows nothing of a sealed pool.
    Apart,
    /// To no root.
    Elsewhere,
    /// To another place, and its entry is for the part below a root.
    Visiting,
}

/// Meaning of a special entry. If each part of the superblock has its own, that of the mount's part
/// takes its place.
#[inline(always)]
fn special(
    superblock: Trusted,
    mount: Trusted,
    magic: u64,
    entry: &mut PoolEntry,
) -> (Belongs, Found) {
    if entry.flags & POOL_PARTS != 0 {
        let dev = superblock.device();
        let head = match part(superblock, mount) {
            // A part that the agent has not told of: below a root it is denied, like a pool that
            // has just come.
            NO_PART => return (Belongs::Elsewhere, Found::Nothing),
            // Some part is a known pool: fail closed.
            UNREADABLE_PART => return (Belongs::Elsewhere, Found::Torn),
            head => head,
        };
        match pools::entry_of(PoolKey { dev, head }, magic, entry) {
            Found::Entry => {}
            found => return (Belongs::Elsewhere, found),
        }
    }
    if entry.flags & POOL_VISITOR != 0 {
        (Belongs::Visiting, Found::Entry)
    } else if entry.flags & POOL_NO_ALIAS != 0 {
        (Belongs::Apart, Found::Nothing)
    } else if entry.flags & POOL_OUTSIDE != 0 {
        (Belongs::Elsewhere, Found::Nothing)
    } else {
        (Belongs::Unknown, Found::Entry)
    }
}

/// Whether a mount of a visitor lies below no root: there it is free. If that cannot be told, it is
/// not free: fail closed, as for every known pool.
#[inline(always)]
fn is_at_home(superblock: Trusted, mount: Trusted) -> bool {
    matches!(place(superblock, mount, true), Place::Free | Place::Outside)
}

/// Whether a mount shows all of its superblock: a guest is given a part.
#[inline(always)]
fn shows_all(superblock: Trusted, mount: Trusted) -> bool {
    mount.mount_root().is(superblock.superblock_root())
}

/// The decision of the hooks that carry only the inode, for deletions that never pass a `path_*`
/// hook.
///
/// It must not contradict a `path_*` hook that has just allowed the same deletion. So it allows
/// every deletion that such a hook could have allowed to a user's thread, and refuses the others.
/// Aliases of sealed pools, visitors and parts of superblocks are left to the `path_*` hooks: only
/// the mount tells them from what lies below a root.
#[inline(always)]
pub(crate) fn backstop(deletion: Deletion) -> i32 {
    let superblock = deletion.superblock;
    let (dev, magic) = (superblock.device(), superblock.magic());
    let mut slot = MaybeUninit::uninit();
    let entry = pools::clear(&mut slot);
    let found = pools::entry_of(PoolKey::superblock(dev), magic, entry);
    if found == Found::Entry && entry.flags & POOL_SPECIAL != 0 {
        if entry.flags & POOL_CANARY != 0 {
            return canary(entry, entry.flags & POOL_CANARY_BACKSTOP != 0);
        }
        return 0;
    }
    let outcome = match found {
        // Without a mount there is no structure to tell a pool by: fail open, the `path_*` hook
        // decided.
        Found::Nothing => return 0,
        Found::Entry => behind(deletion, entry),
        // Whether it is sealed is not known: as if it were.
        Found::Torn => {
            pools::forget(entry);
            Some(torn(dev))
        }
    };
    told(deletion, entry, outcome)
}

/// The backstop's answer on a pool. `None`: allowed, and nobody needs to know.
#[inline(always)]
fn behind(deletion: Deletion, entry: &PoolEntry) -> Option<Outcome> {
    let kernel_thread = Task::current().is_kernel_thread();
    let exported = entry.flags & POOL_EXPORTED != 0;
    let is_no_deletion =
        matches!(deletion.operation, Operation::Truncate) && entry.flags & POOL_GUARD_TRUNCATE == 0;
    match Mode::from_u32(entry.mode) {
        // An export's clients are guests to a held pool too: policy names them.
        Some(Mode::Observed | Mode::Guarded | Mode::Held)
            if !kernel_thread || exported || is_no_deletion =>
        {
            None
        }
        Some(Mode::Observed) => {
            Some(Outcome { verdict: Verdict::WouldDeny, reason: Reason::KernelThread })
        }
        Some(Mode::Guarded | Mode::Held) => Some(denied(Reason::KernelThread)),
        Some(Mode::Released) if is_released(entry) => {
            kernel_thread.then_some(allowed(Reason::Released))
        }
        mode => {
            if has_lease(deletion.superblock.device(), entry.generation) {
                return None;
            }
            Some(denied(if let Some(Mode::Released) = mode {
                Reason::ReleaseExpired
            } else {
                Reason::Sealed
            }))
        }
    }
}

/// Removes the entry of a superblock that ends.
#[inline(always)]
pub(crate) fn superblock_ends(superblock: Trusted) {
    if !may_hold_pool(superblock) {
        return;
    }
    let dev = superblock.device();
    report::count(Counter::SuperblocksEnded);
    let mut slot = MaybeUninit::uninit();
    let entry = pools::clear(&mut slot);
    let key = PoolKey::superblock(dev);
    let found = pools::entry_of(key, superblock.magic(), entry);
    // One of another magic is there as well, and must go. Parts are looked for no more after this:
    // the agent removes them.
    let is_pool = found == Found::Torn || entry.flags & POOL_NONE == 0;
    if POOLS.get_ptr(key).is_none() {
        return;
    }
    if POOLS.remove(key).is_ok() && is_pool {
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

/// The agent's own superblock: only the load that it names answers, and only the kind of hooks it
/// means. Of the two hooks that see one deletion, neither may answer for the other.
#[inline(always)]
fn canary(entry: &PoolEntry, is_meant: bool) -> i32 {
    if is_meant && entry.canary_token == kernel::program_token() { -EPERM } else { 0 }
}

/// A pool, by its entry. `None`: allowed, and nobody needs to know.
#[inline(always)]
fn by_mode(deletion: Deletion, mount: Trusted, entry: &PoolEntry) -> Option<Outcome> {
    // A number that is no mode is treated as sealed: fail closed for known pools.
    let mode = Mode::from_u32(entry.mode).unwrap_or(Mode::Sealed);
    if matches!(mode, Mode::Released) && is_released(entry) {
        return Some(allowed(Reason::Released));
    }
    if has_lease(deletion.superblock.device(), entry.generation) {
        return Some(allowed(Reason::Lease));
    }
    if matches!(mode, Mode::Sealed) {
        return Some(denied(Reason::Sealed));
    }
    if matches!(mode, Mode::Released) {
        return Some(denied(Reason::ReleaseExpired));
    }
    // Guarded, held and observed: the same question, with another consequence.
    if matches!(deletion.operation, Operation::Truncate) && entry.flags & POOL_GUARD_TRUNCATE == 0 {
        return None;
    }
    // From the cheapest question to the dearest.
    let cgroups = cgroups(entry.actor_set);
    let held = matches!(mode, Mode::Held);
    if cgroups.is_actor() && !held {
        return Some(allowed(Reason::Actor));
    }
    let reason = match is_elsewhere(deletion.superblock, mount) {
        Ok(true) if cgroups.is_guest() || !shows_all(deletion.superblock, mount) => {
            return Some(allowed(Reason::GuestView));
        }
        Ok(_) if held => Reason::Held,
        Ok(_) if is_executable_actor(entry.actor_set, cgroups) => {
            return Some(allowed(Reason::Actor));
        }
        Ok(_) => Reason::Guarded,
        Err(ReadError) => unreadable(deletion.superblock.device()).reason,
    };
    let verdict = if matches!(mode, Mode::Observed) { Verdict::WouldDeny } else { Verdict::Denied };
    Some(Outcome { verdict, reason })
}

/// A known pool and an unidentifiable process: fail closed.
#[inline(always)]
fn unreadable(dev: u32) -> Outcome {
    report::count(Counter::ErrorReadClosed);
    diagnose(Diagnosis::UnreadableClosed, dev);
    denied(Reason::ReadError)
}

/// A known pool whose entry changes faster than it can be read: fail closed, as for the strongest
/// that it may say.
#[inline(always)]
fn torn(dev: u32) -> Outcome {
    unreadable(dev)
}

/// A superblock that has no entry: denied if it is of a guarded kind and lies below a guarded root;
/// or if its oldest mount does, since this is another mount of a pool then.
///
/// Truncation is left alone: a pool's usual mode allows it, and its first moment must not differ.
/// While a pool is sealed, a superblock outside all roots is denied to the actors of sealed pools,
/// truncation too.
#[inline(always)]
fn unclassified(deletion: Deletion, mount: Trusted, belongs: Belongs) -> Option<Outcome> {
    let superblock = deletion.superblock;
    let truncates = matches!(deletion.operation, Operation::Truncate);
    let aliases = belongs != Belongs::Apart && seals_aliases();
    if truncates && !aliases {
        return None;
    }
    let place = place(superblock, mount, belongs != Belongs::Unknown);
    let would_deny = Outcome { verdict: Verdict::WouldDeny, reason: Reason::Unclassified };
    match place {
        Place::Free => None,
        Place::Outside if aliases => alias(deletion),
        Place::Outside => None,
        Place::Deep => {
            // So deep that nothing is known: fail open, and say so.
            if !kernel::is_standby() {
                report::count(Counter::ErrorWalkBound);
                diagnose(Diagnosis::WalkBound, superblock.device());
            }
            None
        }
        Place::Unreadable => fail_open(superblock),
        _ if truncates => None,
        Place::Below | Place::AliasSealed => Some(denied(Reason::Unclassified)),
        Place::BelowObserved | Place::AliasObserved => Some(would_deny),
        // Of a pool whose mode will let guests go on, parts are theirs already.
        Place::Alias => match is_elsewhere(superblock, mount) {
            Ok(true) if !shows_all(superblock, mount) => Some(allowed(Reason::GuestView)),
            Ok(_) => Some(denied(Reason::Unclassified)),
            Err(ReadError) => fail_open(superblock),
        },
    }
}

#[inline(always)]
fn seals_aliases() -> bool {
    config!(flags) & CONFIG_ALIASES != 0
}

/// Outside all roots, while a pool is sealed: its data may be reached here, under another
/// superblock.
#[inline(always)]
fn alias(deletion: Deletion) -> Option<Outcome> {
    if !is_alias_actor()
        || shows_the_whole(deletion.superblock) && is_in_sealed_pool(deletion.target.address()) == 0
    {
        return None;
    }
    Some(denied(Reason::Alias))
}

/// Whether this is the mount of a whole Ceph filesystem, and names tell which files in it are a
/// sealed pool's. Fail closed, to the actors of sealed pools: an unreadable mount counts as a part.
#[inline(always)]
fn shows_the_whole(superblock: Trusted) -> bool {
    superblock.magic() == CEPH_SUPER_MAGIC
        && config!(flags) & CONFIG_ALIASES_BY_INODE != 0
        && superblock.superblock_root().mounted_inode().inode_number() == CEPH_INO_ROOT
}

/// Nothing is known to be guarded here, and the kernel's memory could not be read: fail open.
#[inline(always)]
fn fail_open(superblock: Trusted) -> Option<Outcome> {
    if !kernel::is_standby() {
        report::count(Counter::ErrorReadOpen);
        diagnose(Diagnosis::UnreadableOpen, superblock.device());
    }
    None
}

#[inline(always)]
fn is_released(entry: &PoolEntry) -> bool {
    boot_ns() < entry.expires_boot_ns
}
