//! Place of a mount: walks up through names and mounts.
//!
//! Code that several paths reach is a global function (`extern "C"`, numbers only): the verifier
//! checks each of those once and by itself, instead of once for every path.

use core::mem::MaybeUninit;

use guard_common::policy::{
    FUSE_SUPER_MAGIC, ROOT_GENERATION, ROOT_OBSERVED, ROOT_SEALED, SUBTYPE_WORDS, device_bit,
};
use guard_common::{FilesystemKey, KindEntry, RootEntry, RootKey};

use crate::cache::{self, Question, Subject};
use crate::kernel::lenient::{GO_ON, Lenient, STOP, Siblings, repeat};
use crate::kernel::task::Task;
use crate::kernel::{self, ReadError, Trusted};
use crate::maps::{FILESYSTEMS, NAMESPACES, ROOTS, WALKS, config};
use crate::pools::{Known, is_believed, whole};

/// Steps of the walk from a mount to a guarded root: names and mounts together.
pub(crate) const WALK_STEPS: u32 = 256;
/// Mounts of a superblock that are looked at for the oldest one.
pub(crate) const SIBLINGS: u32 = 1024;
/// In place of the host's root directory, for a walk that only looks for guarded roots.
const NOWHERE: u64 = 0;

/// End of a walk from a mount. Numbers up to [`WALK_HOST`] are answers; those above say why there
/// is none.
pub(crate) const WALK_OUTSIDE: u32 = 0;
pub(crate) const WALK_DENY: u32 = 1;
/// A root below which a new pool is sealed.
pub(crate) const WALK_SEALED: u32 = 2;
pub(crate) const WALK_OBSERVE: u32 = 3;
pub(crate) const WALK_HOST: u32 = 4;
pub(crate) const WALK_BOUND: u32 = 8;
pub(crate) const WALK_READ_ERROR: u32 = 9;

/// Place at which a superblock without an entry is seen, and to which it belongs.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Place {
    /// Policy does not name its kind.
    Free = 0,
    /// Neither this mount nor the superblock's oldest one is below a root that guards the kind.
    Outside = 1,
    /// This mount is below such a root.
    Below = 2,
    /// The same, of a root that is only observed.
    BelowObserved = 3,
    /// This mount is not, and the oldest one is: an alias of a pool.
    Alias = 4,
    /// The same, of a root whose new pools are sealed.
    AliasSealed = 5,
    /// The same, of a root that is only observed.
    AliasObserved = 6,
    /// So deep that it is not known.
    Deep = 7,
    Unreadable = 8,
}

impl Place {
    const fn from_u64(number: u64) -> Self {
        match number {
            0 => Self::Free,
            1 => Self::Outside,
            2 => Self::Below,
            3 => Self::BelowObserved,
            4 => Self::Alias,
            5 => Self::AliasSealed,
            6 => Self::AliasObserved,
            7 => Self::Deep,
            _ => Self::Unreadable,
        }
    }
}

/// Whether a mount lies at or below a guarded root: walks from its root through names and mounts up
/// to the top of its namespace. Any root that guards one of `filesystems` counts.
///
/// A walk that comes through the directory `host_root`, other than from a mount right on it, ends
/// there.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn guarded_root(mount: u64, filesystems: u64, host_root: u64) -> u32 {
    let reads = Lenient::new();
    let mut walk =
        Walk { reads, mount, root: 0, dentry: 0, filesystems, host_root, dev: 0, end: WALK_BOUND };
    let mut before = config!(generation);
    loop {
        walk.root = walk.reads.mount_root(mount);
        walk.dentry = walk.root;
        walk.dev = walk.reads.mount_device(mount);
        repeat(WALK_STEPS, &mut walk, up);
        if walk.end != WALK_OUTSIDE || is_believed(&mut before) {
            return walk.end;
        }
        (walk.mount, walk.end) = (mount, WALK_BOUND);
    }
}

/// A walk on its way up.
#[repr(C)]
struct Walk {
    reads: Lenient,
    mount: u64,
    /// Root directory of the mount.
    root: u64,
    /// Present position of the walk.
    dentry: u64,
    filesystems: u64,
    host_root: u64,
    /// Device of the mount's superblock.
    dev: u32,
    end: u32,
}

/// One step: to the next name, or from a mount's root to where it is mounted.
#[inline(never)]
unsafe extern "C" fn up(_: u32, walk: *mut Walk) -> i64 {
    // SAFETY: `repeat` gives it.
    let walk = unsafe { &mut *walk };
    let devices = config!(root_devices);
    let may_hold_root = devices == 0 || devices & device_bit(walk.dev) != 0;
    if may_hold_root {
        let key = RootKey { ino: walk.reads.dentry_ino(walk.dentry), dev: walk.dev, reserved: 0 };
        if ROOTS.get_ptr(key).is_some() {
            let found = root_at(key.ino, walk.dev, walk.dentry, walk.filesystems);
            if found != WALK_OUTSIDE {
                walk.end = found;
                return STOP;
            }
        }
    }
    // No root lies on such a superblock: its names are passed over.
    if walk.dentry == walk.root || !may_hold_root {
        let parent = walk.reads.mount_parent(walk.mount);
        if parent == walk.mount {
            walk.end = WALK_OUTSIDE;
            return STOP;
        }
        walk.dentry = walk.reads.mount_mountpoint(walk.mount);
        walk.mount = parent;
        walk.root = walk.reads.mount_root(parent);
        walk.dev = walk.reads.mount_device(parent);
        // A mount on the root directory itself hides the whole host: it is a container's root. LXC
        // makes one where it cannot call pivot_root(2).
        if walk.root == walk.host_root && walk.dentry != walk.root {
            walk.end = WALK_HOST;
            return STOP;
        }
    } else {
        walk.dentry = walk.reads.dentry_parent(walk.dentry);
    }
    if walk.reads.failed() {
        walk.end = WALK_READ_ERROR;
        return STOP;
    }
    GO_ON
}

/// Answer of the root at a directory for these kinds; `WALK_OUTSIDE` if it is none, or guards none.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn root_at(ino: u64, dev: u32, dentry: u64, filesystems: u64) -> u32 {
    let key = RootKey { ino, dev, reserved: 0 };
    let mut slot = MaybeUninit::<RootEntry>::uninit();
    let entry = match whole(&key, &mut slot, || ROOTS.get_ptr(key)) {
        Known::Entry(entry) => entry,
        Known::Nothing => return WALK_OUTSIDE,
        // A root that changes all the time: fail closed.
        Known::Torn => return WALK_DENY,
    };
    let mut reads = Lenient::new();
    if entry.filesystems & filesystems == 0
        || entry.flags & ROOT_GENERATION != 0 && entry.generation != reads.dentry_generation(dentry)
    {
        return WALK_OUTSIDE;
    }
    if entry.flags & ROOT_OBSERVED != 0 {
        WALK_OBSERVE
    } else if entry.flags & ROOT_SEALED != 0 {
        WALK_SEALED
    } else {
        WALK_DENY
    }
}

/// The oldest mount of a superblock that is in some namespace, and shows something of what lies
/// below `root` or above it: where that belongs. 0 if there is none, [`NO_MOUNT`] if that cannot be
/// read.
///
/// Mounts of one NFS server share a superblock although they show trees that have nothing in
/// common: neither tells where the other belongs. The kernel lists a superblock's mounts from the
/// oldest on, and since 6.18 from the newest.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn oldest_mount(superblock: u64, root: u64) -> u64 {
    let mut reads = Lenient::new();
    let list = Siblings::of(superblock);
    let next = list.first(&mut reads);
    let mut search = Search { reads, list, next, root, found: 0 };
    repeat(SIBLINGS, &mut search, older);
    if search.reads.failed() { NO_MOUNT } else { search.found }
}

/// No address of a mount.
const NO_MOUNT: u64 = 1;

/// A search among a superblock's mounts.
#[repr(C)]
pub(crate) struct Search {
    pub reads: Lenient,
    pub list: Siblings,
    pub next: u64,
    pub root: u64,
    /// A mount; or the id of one.
    pub found: u64,
}

/// One step: a mount of the list.
#[inline(never)]
unsafe extern "C" fn older(_: u32, search: *mut Search) -> i64 {
    // SAFETY: `repeat` gives it.
    let search = unsafe { &mut *search };
    if search.list.is_end(search.next) || search.reads.failed() {
        return STOP;
    }
    let mount = search.list.mount(search.next);
    if search.reads.is_attached(mount) && overlap(search.reads.mount_root(mount), search.root) != 0
    {
        search.found = mount;
        if search.list.is_oldest_first() {
            return STOP;
        }
    }
    search.next = search.list.next(mount, &mut search.reads);
    GO_ON
}

/// 1 if one of two directories is the other, or lies below it; also if that cannot be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn overlap(one: u64, other: u64) -> u32 {
    if one == other {
        return 1;
    }
    let mut climb = Meet { reads: Lenient::new(), dentry: one, goal: other };
    repeat(WALK_STEPS, &mut climb, to_goal);
    if climb.dentry != climb.goal {
        (climb.dentry, climb.goal) = (other, one);
        repeat(WALK_STEPS, &mut climb, to_goal);
    }
    u32::from(climb.dentry == climb.goal || climb.reads.failed())
}

/// A way up from one directory that may come by another.
#[repr(C)]
struct Meet {
    reads: Lenient,
    dentry: u64,
    goal: u64,
}

/// One step: a name.
#[inline(never)]
unsafe extern "C" fn to_goal(_: u32, climb: *mut Meet) -> i64 {
    // SAFETY: `repeat` gives it.
    let climb = unsafe { &mut *climb };
    let parent = climb.reads.dentry_parent(climb.dentry);
    if parent == climb.dentry || climb.reads.failed() {
        return STOP;
    }
    climb.dentry = parent;
    if parent == climb.goal { STOP } else { GO_ON }
}

/// Key of a mount. The verifier makes a number of the distance between two addresses at no cost;
/// the device identifies the superblock, whose address is in that distance.
#[inline(always)]
pub(crate) fn mount_subject(superblock: Trusted, mount: Trusted, question: Question) -> Subject {
    Subject { first: mount.distance_from(superblock), second: superblock.device(), question }
}

/// Place of a superblock that is seen through a mount. With `only_here`, its oldest mount is not
/// looked for.
#[inline(always)]
pub(crate) fn place(superblock: Trusted, mount: Trusted, only_here: bool) -> Place {
    let subject = mount_subject(
        superblock,
        mount,
        if only_here { Question::PlaceOfMount } else { Question::Place },
    );
    let before = cache::tree();
    if let Some(answer) = cache::find(&WALKS, subject, before) {
        return Place::from_u64(answer);
    }
    let alone = u32::from(only_here);
    let place =
        look(superblock.address(), kernel::mount_of(mount.address()), superblock.magic(), alone);
    let place = Place::from_u64(u64::from(place));
    if !matches!(place, Place::Deep | Place::Unreadable) {
        cache::keep(&WALKS, subject, before, cache::tree, place as u64);
    }
    place
}

/// A [`Place`], found by walks.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn look(superblock: u64, mount: u64, magic: u64, only_here: u32) -> u32 {
    let kind = kind(superblock, magic);
    if kind == 0 {
        return Place::Free as u32;
    }
    if kind == KIND_UNREADABLE {
        return Place::Unreadable as u32;
    }
    match guarded_root(mount, kind, NOWHERE) {
        WALK_OUTSIDE => {}
        WALK_DENY | WALK_SEALED => return Place::Below as u32,
        WALK_OBSERVE => return Place::BelowObserved as u32,
        WALK_BOUND => return Place::Deep as u32,
        _ => return Place::Unreadable as u32,
    }
    if only_here != 0 {
        return Place::Outside as u32;
    }
    let place = match oldest_mount(superblock, Lenient::new().mount_root(mount)) {
        0 => Place::Outside,
        oldest if oldest == mount => Place::Outside,
        NO_MOUNT => Place::Unreadable,
        oldest => match guarded_root(oldest, kind, NOWHERE) {
            WALK_OUTSIDE => Place::Outside,
            WALK_DENY => Place::Alias,
            WALK_SEALED => Place::AliasSealed,
            WALK_OBSERVE => Place::AliasObserved,
            WALK_BOUND => Place::Deep,
            _ => Place::Unreadable,
        },
    };
    place as u32
}

/// The bit of a superblock's kind of filesystem; 0 if policy does not name that kind,
/// [`KIND_UNREADABLE`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn kind(superblock: u64, magic: u64) -> u64 {
    let mut key = FilesystemKey { magic, subtype: [0; SUBTYPE_WORDS] };
    if magic == FUSE_SUPER_MAGIC {
        let Ok(subtype) = kernel::superblock_subtype(superblock) else { return KIND_UNREADABLE };
        let size = size_of_val(&key.subtype) as u32;
        if subtype != 0
            && kernel::read_text(key.subtype.as_mut_ptr().cast(), size, subtype).is_err()
        {
            return KIND_UNREADABLE;
        }
    }
    let mut slot = MaybeUninit::<KindEntry>::uninit();
    match whole(&key, &mut slot, || FILESYSTEMS.get_ptr(key)) {
        Known::Entry(entry) => 1 << (entry.bit & 63),
        Known::Nothing => 0,
        // One that changes all the time: any root's kind, which is the stronger.
        Known::Torn => u64::MAX,
    }
}

/// No single kind's bit, and not all of them.
const KIND_UNREADABLE: u64 = 3;

/// Whether a mount is in a namespace that has a root directory of its own, and not at or below a
/// guarded root there.
///
/// A copy of the host's mounts (`unshare`, a unit's `PrivateTmp=` or `ProtectSystem=`) is the
/// host's view: its mounts hang below the root directory that PID 1 has. So is every mount below a
/// guarded root, and a storage daemon's namespace.
#[inline(always)]
pub(crate) fn is_elsewhere(superblock: Trusted, mount: Trusted) -> Result<bool, ReadError> {
    let subject = mount_subject(superblock, mount, Question::View);
    let before = cache::tree();
    if let Some(answer) = cache::find(&WALKS, subject, before) {
        return Ok(answer != 0);
    }
    let elsewhere = match view(kernel::mount_of(mount.address())) {
        WALK_OUTSIDE => true,
        WALK_READ_ERROR => return Err(ReadError),
        _ => false,
    };
    cache::keep(&WALKS, subject, before, cache::tree, u64::from(elsewhere));
    Ok(elsewhere)
}

/// `WALK_OUTSIDE` for a mount of a guest.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn view(mount: u64) -> u32 {
    let Ok(namespace) = kernel::mount_namespace(mount) else { return WALK_READ_ERROR };
    let host = config!(host_mnt_ns);
    if namespace == 0 || namespace == host || NAMESPACES.get_ptr(namespace).is_some() {
        return WALK_HOST;
    }
    match Task::current().host_root() {
        Ok(root) => guarded_root(mount, u64::MAX, root),
        Err(ReadError) => WALK_READ_ERROR,
    }
}

/// 1 if a name is a sealed pool's root or lies below one, or if that cannot be told.
///
/// Only for a superblock that shows the whole filesystem: its names lead up to the filesystem's
/// root, past every pool.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn is_in_sealed_pool(dentry: u64) -> u32 {
    let mut climb = Climb { reads: Lenient::new(), dentry, found: 1 };
    repeat(WALK_STEPS, &mut climb, to_sealed_pool);
    climb.found
}

/// A way up through names alone.
#[repr(C)]
struct Climb {
    reads: Lenient,
    dentry: u64,
    found: u32,
}

/// One step: a name.
#[inline(never)]
unsafe extern "C" fn to_sealed_pool(_: u32, climb: *mut Climb) -> i64 {
    // SAFETY: `repeat` gives it.
    let climb = unsafe { &mut *climb };
    if ROOTS.get_ptr(RootKey::alias(climb.reads.dentry_ino(climb.dentry))).is_some() {
        return STOP;
    }
    let parent = climb.reads.dentry_parent(climb.dentry);
    if climb.reads.failed() {
        return STOP;
    }
    if parent == climb.dentry {
        climb.found = 0;
        return STOP;
    }
    climb.dentry = parent;
    GO_ON
}
