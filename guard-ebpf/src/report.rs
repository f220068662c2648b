//! Telemetry: counters, incidents, records. It never changes a verdict: what does not fit is counted.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated};
use aya_ebpf::programs::LsmContext;
use aya_log_ebpf::{info, warn};
use guard_common::record::{RECORD_KERNEL_THREAD, RECORD_MOUNT_KNOWN};
use guard_common::{Counter, IncidentKey, IncidentValue, Record, Verdict};

use crate::decide::{Access, Outcome};
use crate::kernel::{self, Lenient, Task, boot_ns};
use crate::maps::{CONFIG, COUNTERS, INCIDENTS, POOL_COUNTERS, RECORDS};
use crate::path;

const BPF_NOEXIST: u64 = 1;
const COMM_BYTES: u32 = 16;

/// Adds one. Atomic although the counter is this CPU's own: a program can be preempted by another.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        add_one(value);
    }
}

/// Adds one to a counter in a map's value. (Rust's atomics need compare-and-swap, which the BPF target
/// does not declare.)
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
        core::arch::asm!("{1} = atomic_fetch_add((u64 *)({0} + 0), {1})", in(reg) value, inout(reg) before);
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

/// What the kernel program tells the agent's log.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Diagnosis {
    SuperblockEnded = 1,
    UnreadableClosed = 2,
    UnreadableOpen = 3,
    WalkBound = 4,
}

/// Writes one line to the agent's log.
#[inline(always)]
pub fn diagnose(what: Diagnosis, dev: u32) {
    write_log(what as u32, dev);
}

/// A global function (see `identity`): the verifier looks into the formatting once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn write_log(what: u32, dev: u32) -> u32 {
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

/// Counts an outcome, and records it if it is of the audited kind. What is denied is denied by the first load alone, and
/// what is allowed is allowed by both: there the standby says nothing.
#[inline(always)]
pub fn outcome(access: &mut Access, outcome: Outcome) {
    if !matches!(outcome.verdict, Verdict::Denied) && kernel::is_standby() {
        return;
    }
    let counter = outcome.counter();
    count(counter);
    if let Some(counters) = POOL_COUNTERS.get_ptr_mut(access.generation) {
        // SAFETY: as in `add_one`.
        add_one(unsafe {
            match outcome.verdict {
                Verdict::Denied => &raw mut (*counters).denied,
                Verdict::WouldDeny => &raw mut (*counters).would_deny,
                Verdict::Allowed => &raw mut (*counters).allowed,
            }
        });
    }
    if counter.is_audited() {
        access.verdict = outcome.verdict as u32;
        access.reason = outcome.reason as u32;
        audit(access);
    }
}

/// Adds a decision to its incident, and sends a record of it if it is one of the incident's first.
///
/// A global function: see `identity`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn audit(access: *const Access) -> u32 {
    if access.is_null() {
        return 0;
    }
    // SAFETY: not null, and the verifier has checked its size.
    let access = unsafe { &*access };
    let mut reads = Lenient::new();
    let key = IncidentKey {
        generation: access.generation,
        start_boot_ns: reads.process_start(Task::current()),
        tgid: (bpf_get_current_pid_tgid() >> 32) as u32,
        dev: access.dev,
        reason: access.reason,
        verdict: access.verdict,
    };
    let Some(incident) = incident(&key, access.pool_id) else {
        count(Counter::ErrorIncidentsFull);
        count(Counter::RecordsLost);
        return 0;
    };
    let now = boot_ns();
    // SAFETY: points into a map's value, which lives as long as the program runs.
    let number = unsafe {
        ptr::write_volatile(&raw mut (*incident).last_boot_ns, now);
        next_number(&raw mut (*incident).count)
    };
    if number > u64::from(CONFIG.get(0).map_or(0, |config| config.full_records)) {
        count(Counter::RecordsAggregated);
        return 0;
    }
    let Some(mut record) = RECORDS.reserve::<Record>(0) else {
        // SAFETY: as above.
        add_one(unsafe { &raw mut (*incident).lost });
        count(Counter::ErrorRingFull);
        count(Counter::RecordsLost);
        return 0;
    };
    fill(record.as_mut_ptr(), access, &key, now, number, &mut reads);
    record.submit(0);
    // SAFETY: as above.
    add_one(unsafe { &raw mut (*incident).emitted });
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
pub extern "C" fn open_incident(key: *const IncidentKey, pool_id: u64) -> u32 {
    if key.is_null() {
        return 0;
    }
    let mut reads = Lenient::new();
    let mut value = IncidentValue {
        count: 0,
        emitted: 0,
        lost: 0,
        first_boot_ns: boot_ns(),
        last_boot_ns: 0,
        pool_id,
        uid: reads.users(Task::current()).0,
        login_uid: reads.login_uid(Task::current()),
        comm: [0; 2],
    };
    write_comm((&raw mut value.comm).cast());
    // A copy on this function's own stack: before 6.2 a map takes no key from elsewhere.
    // SAFETY: not null, and the verifier has checked its size.
    let key = unsafe { ptr::read_volatile(key) };
    // Another thread of the process may have been quicker: then its entry is taken.
    let (key, value) = (&key, &value);
    let _ = INCIDENTS.insert(key, value, BPF_NOEXIST);
    0
}

/// Writes the thread's name: sixteen bytes.
#[inline(always)]
fn write_comm(destination: *mut c_void) {
    // SAFETY: the verifier proves that the destination holds the bytes.
    unsafe { generated::bpf_get_current_comm(destination, COMM_BYTES) };
}

/// Writes the record. What cannot be read is zero, and the record is sent all the same.
#[inline(always)]
fn fill(record: *mut Record, access: &Access, key: &IncidentKey, now: u64, number: u64, reads: &mut Lenient) {
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
        set!(generation = access.generation);
        set!(pool_id = access.pool_id);
        set!(cgroup_id = generated::bpf_get_current_cgroup_id());
        let parent = reads.dentry_parent(access.target);
        set!(parent_ino = reads.dentry_ino(parent));
        set!(target_ino = reads.dentry_ino(access.target));
        set!(incident_count = number);
        set!(hook = access.hook as u32);
        set!(operation = access.operation as u32);
        set!(verdict = access.verdict);
        set!(reason = access.reason);
        set!(mode = access.mode);
        set!(pid = bpf_get_current_pid_tgid() as u32);
        set!(tgid = key.tgid);
        set!(ppid = reads.parent_process(task));
        let (uid, euid) = reads.users(task);
        set!(uid = uid);
        set!(euid = euid);
        set!(login_uid = reads.login_uid(task));
        set!(mnt_ns = reads.mount_namespace(task));
        let mut flags = if task.is_kernel_thread().unwrap_or(false) { RECORD_KERNEL_THREAD } else { 0 };
        let (mut mount_ns, mut mount_id) = (0, 0);
        if access.mount != 0 {
            flags |= RECORD_MOUNT_KNOWN;
            mount_ns = kernel::mount_namespace(access.mount).unwrap_or(0);
            mount_id = reads.mount_id(access.mount);
        }
        set!(mount_ns = mount_ns);
        set!(mount_id = mount_id);
        set!(dev = access.dev);
        set!(tier = kernel::tier());
        write_comm((&raw mut (*record).comm).cast());
        flags |= path::write_path(record, access.superblock, access.target);
        set!(flags = flags);
    }
}
