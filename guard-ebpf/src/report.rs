//! Telemetry: counters, incidents, records. It never changes a verdict: records that do not fit are
//! counted.

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated};
use aya_ebpf::programs::LsmContext;
use aya_log_ebpf::{info, warn};
use guard_common::record::{RECORD_KERNEL_THREAD, RECORD_MOUNT_KNOWN};
use guard_common::{Counter, IncidentKey, IncidentValue, PoolEntry, Record, Verdict};

use crate::decide::{Deletion, Outcome};
use crate::kernel::lenient::Lenient;
use crate::kernel::task::Task;
use crate::kernel::{self, boot_ns};
use crate::maps::{COUNTERS, INCIDENTS, POOL_COUNTERS, RECORDS, config};
use crate::path;

const BPF_NOEXIST: u64 = 1;
const COMM_BYTES: u32 = 16;

/// Adds one. Atomic although the counter is this CPU's own: a program can be preempted by another.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        add_one(value);
    }
}

/// Adds one to a counter in a map's value. (Rust's atomics need compare-and-swap, which the BPF
/// target does not declare.)
#[inline(always)]
#[cfg(target_arch = "bpf")]
fn add_one(value: *mut u64) {
    // SAFETY: points into a map's value, which lives as long as the program runs.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) value, in(reg) 1_u64);
    }
}

/// Adds one and returns the sum.
#[inline(always)]
#[cfg(target_arch = "bpf")]
fn next_number(value: *mut u64) -> u64 {
    let mut before = 1_u64;
    // SAFETY: as in `add_one`.
    unsafe {
        core::arch::asm!("{1} = atomic_fetch_add((u64 *)({0} + 0), \
                          {1})", in(reg) value, inout(reg) before);
    }
    before + 1
}

/// The host only checks and lints this crate; nothing of it runs there.
#[cfg(not(target_arch = "bpf"))]
fn add_one(value: *mut u64) {
    next_number(value);
}

/// As above.
#[cfg(not(target_arch = "bpf"))]
fn next_number(value: *mut u64) -> u64 {
    unreachable!("the kernel program runs in the kernel only ({value:?})")
}

/// Diagnosis of the kernel program for the agent's log.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Diagnosis {
    SuperblockEnded = 1,
    UnreadableClosed = 2,
    UnreadableOpen = 3,
    WalkBound = 4,
}

/// Writes one line to the agent's log.
#[inline(always)]
pub(crate) fn diagnose(what: Diagnosis, dev: u32) {
    write_log(what as u32, dev);
}

/// A global function (see `identity`): the verifier looks into the formatting once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn write_log(what: u32, dev: u32) -> u32 {
    // The log does not look at the context.
    let context = LsmContext::new(ptr::null_mut());
    if what == Diagnosis::SuperblockEnded as u32 {
        info!(&context, "superblock {:x} ended: its pool entry is removed", dev);
    } else if what == Diagnosis::UnreadableClosed as u32 {
        warn!(&context, "kernel memory unreadable on pool {:x}: denied", dev);
    } else if what == Diagnosis::UnreadableOpen as u32 {
        warn!(&context, "kernel memory unreadable on {:x}, which is no known pool: allowed", dev);
    } else {
        warn!(&context, "mount of {:x} lies too deep to tell whether it is guarded: allowed", dev);
    }
    0
}

/// A decision that is recorded. Plain numbers: it is handed to [`record`], a global function.
#[repr(C)]
pub(crate) struct Decision {
    superblock: u64,
    /// `struct mount`; 0 if the hook does not know it.
    mount: u64,
    /// The dentry whose name goes.
    target: u64,
    /// Its number within its incident.
    number: u64,
    dev: u32,
    hook: u32,
    operation: u32,
    /// [`Verdict`] and [`Reason`](guard_common::Reason).
    verdict: u32,
    reason: u32,
    unused: u32,
}

/// Counts an outcome on a pool (zeros if it is none that has an entry), and records it if it is of
/// the audited kind. A denial is the first load's alone, and an allowed deletion is allowed by
/// both: there the standby says nothing.
#[inline(always)]
pub(crate) fn outcome(deletion: &Deletion, pool: &PoolEntry, outcome: Outcome) {
    if !matches!(outcome.verdict, Verdict::Denied) && kernel::is_standby() {
        return;
    }
    let counter = outcome.counter();
    count(counter);
    if pool.generation != 0
        && let Some(counters) = POOL_COUNTERS.get_ptr_mut(pool.generation)
    {
        // SAFETY: as in `add_one`.
        add_one(unsafe {
            match outcome.verdict {
                Verdict::Denied => &raw mut (*counters).denied,
                Verdict::WouldDeny => &raw mut (*counters).would_deny,
                Verdict::Allowed => &raw mut (*counters).allowed,
            }
        });
    }
    if counter.is_audited()
        && let number = incident_number(pool, deletion.superblock.device(), outcome)
        && number != 0
    {
        record(
            &Decision {
                superblock: deletion.superblock.address(),
                mount: deletion.mount.map_or(0, |mount| kernel::mount_of(mount.address())),
                target: deletion.target.address(),
                number,
                dev: deletion.superblock.device(),
                hook: deletion.hook as u32,
                operation: deletion.operation as u32,
                verdict: outcome.verdict as u32,
                reason: outcome.reason as u32,
                unused: 0,
            },
            &raw const *pool,
        );
    }
}

/// Adds a decision to its incident; returns its number there if it gets a record of its own, else
/// 0.
#[inline(always)]
fn incident_number(pool: &PoolEntry, dev: u32, outcome: Outcome) -> u64 {
    let key = IncidentKey {
        generation: pool.generation,
        start_boot_ns: Task::current().process_start(),
        tgid: (bpf_get_current_pid_tgid() >> 32) as u32,
        dev,
        reason: outcome.reason as u32,
        verdict: outcome.verdict as u32,
    };
    note(&raw const key, pool.pool_id)
}

/// A global function: see `identity`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn note(key: *const IncidentKey, pool_id: u64) -> u64 {
    if key.is_null() {
        return 0;
    }
    // A copy on this function's own stack: before 6.2 a map takes no key from elsewhere.
    // SAFETY: not null, and the verifier has checked its size.
    let key = unsafe { ptr::read_volatile(key) };
    let Some(incident) = incident(&key, pool_id) else {
        count(Counter::ErrorIncidentsFull);
        count(Counter::RecordsLost);
        return 0;
    };
    // SAFETY: points into a map's value, which lives as long as the program runs.
    let number = unsafe {
        ptr::write_volatile(&raw mut (*incident).last_boot_ns, boot_ns());
        next_number(&raw mut (*incident).count)
    };
    if number > u64::from(config!(full_records)) {
        count(Counter::RecordsAggregated);
        return 0;
    }
    number
}

/// Sends a record of a decision, one of its incident's first.
///
/// A global function: see `identity`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn record(decision: *const Decision, pool: *const PoolEntry) -> u32 {
    if decision.is_null() || pool.is_null() {
        return 0;
    }
    // SAFETY: not null, and the verifier has checked their sizes.
    let (decision, pool) = unsafe { (&*decision, &*pool) };
    let key = IncidentKey {
        generation: pool.generation,
        start_boot_ns: Task::current().process_start(),
        tgid: (bpf_get_current_pid_tgid() >> 32) as u32,
        dev: decision.dev,
        reason: decision.reason,
        verdict: decision.verdict,
    };
    // The agent may have closed it since.
    let incident = INCIDENTS.get_ptr_mut(key);
    let Some(mut record) = RECORDS.reserve::<Record>(0) else {
        if let Some(incident) = incident {
            // SAFETY: as in `note`.
            add_one(unsafe { &raw mut (*incident).lost });
        }
        count(Counter::ErrorRingFull);
        count(Counter::RecordsLost);
        return 0;
    };
    let mut reads = Lenient::new();
    fill(record.as_mut_ptr(), decision, pool, &key, boot_ns(), decision.number, &mut reads);
    record.submit(0);
    if let Some(incident) = incident {
        // SAFETY: as in `note`.
        add_one(unsafe { &raw mut (*incident).emitted });
    }
    count(Counter::RecordsEmitted);
    if reads.failed() {
        count(Counter::ErrorReadRecord);
    }
    0
}

/// The incident's counters, made if this is its first decision.
#[inline(always)]
fn incident(key: &IncidentKey, pool_id: u64) -> Option<*mut IncidentValue> {
    if let Some(value) = INCIDENTS.get_ptr_mut(key) {
        return Some(value);
    }
    open_incident(key, pool_id);
    INCIDENTS.get_ptr_mut(key)
}

/// A global function (see `identity`): its stack is not added to that of a known incident's way.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn open_incident(key: *const IncidentKey, pool_id: u64) -> u32 {
    if key.is_null() {
        return 0;
    }
    let mut reads = Lenient::new();
    let mut slot = MaybeUninit::<IncidentValue>::uninit();
    let value = slot.as_mut_ptr();
    // SAFETY: a place of our own stack, all of whose fields are written. One by one: the compiler
    // clears a whole value by a call, which takes more stack than there is on 6.1.
    let value = unsafe {
        macro_rules! set {
            ($($field:ident = $set_to:expr;)+) => { $( ptr::write_volatile(&raw mut (*value).$field, $set_to); )+ };
        }
        set! {
            count = 0;
            emitted = 0;
            lost = 0;
            first_boot_ns = boot_ns();
            last_boot_ns = 0;
            pool_id = pool_id;
            uid = reads.users(Task::current()).0;
            login_uid = reads.login_uid(Task::current());
        }
        write_comm((&raw mut (*value).comm).cast());
        slot.assume_init_ref()
    };
    // A copy on this function's own stack: before 6.2 a map takes no key from elsewhere.
    // SAFETY: not null, and the verifier has checked its size.
    let key = unsafe { ptr::read_volatile(key) };
    // Another thread of the process may have been quicker: then its entry is taken.
    let _ = INCIDENTS.insert(key, value, BPF_NOEXIST);
    0
}

/// Writes the thread's name: sixteen bytes.
#[inline(always)]
fn write_comm(destination: *mut c_void) {
    // SAFETY: the verifier proves that the destination holds the bytes.
    unsafe { generated::bpf_get_current_comm(destination, COMM_BYTES) };
}

/// Writes the record. Unreadable fields are zero, and the record is sent all the same.
#[inline(always)]
fn fill(
    record: *mut Record,
    decision: &Decision,
    pool: &PoolEntry,
    key: &IncidentKey,
    now: u64,
    number: u64,
    reads: &mut Lenient,
) {
    let task = Task::current();
    // SAFETY: the ring buffer has reserved a whole record at this address, for this program alone.
    unsafe {
        macro_rules! set {
            ($field:ident = $value:expr) => {
                ptr::write_volatile(&raw mut (*record).$field, $value)
            };
        }
        set!(boot_ns = now);
        set!(start_boot_ns = key.start_boot_ns);
        set!(generation = pool.generation);
        set!(pool_id = pool.pool_id);
        set!(cgroup_id = generated::bpf_get_current_cgroup_id());
        let parent = reads.dentry_parent(decision.target);
        set!(parent_ino = reads.dentry_ino(parent));
        set!(target_ino = reads.dentry_ino(decision.target));
        set!(incident_count = number);
        set!(hook = decision.hook);
        set!(operation = decision.operation);
        set!(verdict = decision.verdict);
        set!(reason = decision.reason);
        set!(mode = pool.mode);
        set!(pid = bpf_get_current_pid_tgid() as u32);
        set!(tgid = key.tgid);
        set!(ppid = reads.parent_process(task));
        let (uid, euid) = reads.users(task);
        set!(uid = uid);
        set!(euid = euid);
        set!(login_uid = reads.login_uid(task));
        set!(mnt_ns = reads.mount_namespace(task));
        let mut flags = if task.is_kernel_thread() { RECORD_KERNEL_THREAD } else { 0 };
        let (mut mount_ns, mut mount_id) = (0, 0);
        if decision.mount != 0 {
            flags |= RECORD_MOUNT_KNOWN;
            mount_ns = kernel::mount_namespace(decision.mount).unwrap_or(0);
            mount_id = reads.mount_id(decision.mount);
        }
        set!(mount_ns = mount_ns);
        set!(mount_id = mount_id);
        set!(dev = decision.dev);
        set!(tier = kernel::tier());
        write_comm((&raw mut (*record).comm).cast());
        flags |= path::write_path(record, decision.superblock, decision.target);
        set!(flags = flags);
    }
}
