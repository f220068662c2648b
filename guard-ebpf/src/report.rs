//! Telemetry: counters, incidents, records. It never changes a verdict: what does not fit is counted.

use core::ptr;

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, generated};
use aya_ebpf::programs::LsmContext;
use aya_log_ebpf::warn;
use guard_common::record::{
    PATH_BYTES, PATH_COMPONENTS, RECORD_KERNEL_THREAD, RECORD_MOUNT_KNOWN, RECORD_PATH_TRUNCATED,
};
use guard_common::{Counter, IncidentKey, IncidentValue, PoolEntry, Record, Verdict};

use crate::decide::{Access, Outcome, boot_ns};
use crate::kernel::{self, ReadError, Task};
use crate::maps::{CONFIG, COUNTERS, INCIDENTS, POOL_COUNTERS, RECORDS};

const BPF_NOEXIST: u64 = 1;
const NAME_BYTES: u32 = 256;

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
fn add_one(value: *mut u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: points into a map's value, which lives as long as the program runs.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) value, in(reg) 1_u64);
    }
    #[cfg(not(target_arch = "bpf"))]
    unimplemented_on_host(value);
}

/// Adds one and returns the sum.
#[inline(always)]
fn next_number(value: *mut u64) -> u64 {
    let mut sum = 1_u64;
    #[cfg(target_arch = "bpf")]
    // SAFETY: as in `add_one`.
    unsafe {
        core::arch::asm!("{1} = atomic_fetch_add((u64 *)({0} + 0), {1})", in(reg) value, inout(reg) sum);
    }
    #[cfg(not(target_arch = "bpf"))]
    unimplemented_on_host(value);
    sum += 1;
    sum
}

/// The host only checks and lints this crate; nothing of it runs there.
#[cfg(not(target_arch = "bpf"))]
fn unimplemented_on_host(_: *mut u64) -> ! {
    unreachable!("the kernel program runs in the kernel only")
}

/// Counts an outcome, and records it if it is of the audited kind.
#[inline(always)]
pub fn outcome(context: &LsmContext, access: &Access, entry: Option<&PoolEntry>, outcome: Outcome) {
    let counter = outcome.counter();
    count(counter);
    let (generation, pool_id, mode) = entry.map_or((0, 0, 0), |e| (e.generation, e.pool_id, e.mode));
    if let Some(counters) = POOL_COUNTERS.get_ptr_mut(generation) {
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
        audit(context, access, &Pool { generation, pool_id, mode }, outcome);
    }
}

/// What an entry says that goes into the record.
struct Pool {
    generation: u64,
    pool_id: u64,
    mode: u32,
}

#[inline(always)]
fn audit(context: &LsmContext, access: &Access, pool: &Pool, outcome: Outcome) {
    let key = IncidentKey {
        generation: pool.generation,
        // Without it two processes with one pid could share an incident; the count stays exact.
        start_boot_ns: Task::current().process_start().unwrap_or(0),
        tgid: (bpf_get_current_pid_tgid() >> 32) as u32,
        dev: access.dev,
        reason: outcome.reason as u32,
        verdict: outcome.verdict as u32,
    };
    let Some(incident) = incident(&key, pool.pool_id) else {
        count(Counter::ErrorIncidentsFull);
        count(Counter::RecordsLost);
        warn!(context, "INCIDENTS is full: a decision on {:x} is counted, not recorded", access.dev);
        return;
    };
    let now = boot_ns();
    // SAFETY: points into a map's value, which lives as long as the program runs.
    let number = unsafe {
        ptr::write_volatile(&raw mut (*incident).last_boot_ns, now);
        next_number(&raw mut (*incident).count)
    };
    if number > u64::from(CONFIG.get(0).map_or(0, |config| config.full_records)) {
        count(Counter::RecordsAggregated);
        return;
    }
    let Some(mut record) = RECORDS.reserve::<Record>(0) else {
        // SAFETY: as above.
        add_one(unsafe { &raw mut (*incident).lost });
        count(Counter::ErrorRingFull);
        count(Counter::RecordsLost);
        return;
    };
    let complete = fill(record.as_mut_ptr(), access, pool, &key, now, number, outcome);
    record.submit(0);
    // SAFETY: as above.
    add_one(unsafe { &raw mut (*incident).emitted });
    count(Counter::RecordsEmitted);
    if complete.is_err() {
        count(Counter::ErrorReadRecord);
    }
}

/// The incident's counters, made if this is its first decision.
#[inline(always)]
fn incident(key: &IncidentKey, pool_id: u64) -> Option<*mut IncidentValue> {
    if let Some(value) = INCIDENTS.get_ptr_mut(key) {
        return Some(value);
    }
    let task = Task::current();
    let value = IncidentValue {
        count: 0,
        emitted: 0,
        lost: 0,
        first_boot_ns: boot_ns(),
        last_boot_ns: 0,
        pool_id,
        uid: task.users().unwrap_or((u32::MAX, 0)).0,
        login_uid: task.login_uid().unwrap_or(u32::MAX),
        comm: bpf_get_current_comm().unwrap_or_default(),
    };
    // Another thread of the process may have been quicker: then its entry is taken.
    let _ = INCIDENTS.insert(key, value, BPF_NOEXIST);
    INCIDENTS.get_ptr_mut(key)
}

/// Writes the record. What cannot be read stays zero, and the record is sent all the same.
#[inline(always)]
fn fill(
    record: *mut Record,
    access: &Access,
    pool: &Pool,
    key: &IncidentKey,
    now: u64,
    number: u64,
    outcome: Outcome,
) -> Result<(), ReadError> {
    let task = Task::current();
    let mut complete = Ok(());
    // SAFETY: the ring buffer has reserved a whole record at this address, for this program alone.
    unsafe {
        macro_rules! set {
            ($field:ident = $value:expr) => {
                ptr::write_volatile(&raw mut (*record).$field, $value)
            };
        }
        macro_rules! try_set {
            ($field:ident = $value:expr) => {
                set!(
                    $field = $value.unwrap_or_else(|error: ReadError| {
                        complete = Err(error);
                        0
                    })
                )
            };
        }
        set!(boot_ns = now);
        set!(start_boot_ns = key.start_boot_ns);
        set!(generation = pool.generation);
        set!(pool_id = pool.pool_id);
        set!(cgroup_id = generated::bpf_get_current_cgroup_id());
        try_set!(parent_ino = kernel::dentry_parent(access.target).and_then(kernel::dentry_ino));
        try_set!(target_ino = kernel::dentry_ino(access.target));
        set!(incident_count = number);
        set!(hook = access.hook as u32);
        set!(operation = access.operation as u32);
        set!(verdict = outcome.verdict as u32);
        set!(reason = outcome.reason as u32);
        set!(mode = pool.mode);
        set!(pid = bpf_get_current_pid_tgid() as u32);
        set!(tgid = key.tgid);
        try_set!(ppid = task.parent_process());
        let (uid, euid) = task.users().unwrap_or_else(|error| {
            complete = Err(error);
            (u32::MAX, u32::MAX)
        });
        set!(uid = uid);
        set!(euid = euid);
        set!(login_uid = task.login_uid().unwrap_or(u32::MAX));
        // A kernel thread or an exiting task may have none.
        set!(mnt_ns = task.mount_namespace().unwrap_or(0));
        let mut flags = if task.is_kernel_thread().unwrap_or(false) { RECORD_KERNEL_THREAD } else { 0 };
        if access.mount != 0 {
            flags |= RECORD_MOUNT_KNOWN;
            try_set!(mount_ns = kernel::mount_namespace(access.mount));
            try_set!(mount_id = kernel::mount_id(access.mount));
        } else {
            set!(mount_ns = 0);
            set!(mount_id = 0);
        }
        set!(dev = access.dev);
        set!(reserved = 0);
        set!(comm = bpf_get_current_comm().unwrap_or_default());
        flags |= write_path(record, access.superblock, access.target);
        set!(flags = flags);
    }
    complete
}

/// Writes the names from the target up to the superblock's root, each closed by a NUL, and how many
/// bytes they take. Returns the flag that says whether the root was reached.
///
/// A global function: see `decide`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn write_path(record: *mut Record, superblock: u64, target: u64) -> u32 {
    if record.is_null() {
        return RECORD_PATH_TRUNCATED;
    }
    let mut used: u32 = 0;
    let mut flag = RECORD_PATH_TRUNCATED;
    if let Ok(root) = kernel::superblock_root(superblock) {
        let mut dentry = target;
        for _ in 0..PATH_COMPONENTS {
            if dentry == root {
                flag = 0;
                break;
            }
            if used >= PATH_BYTES as u32 {
                break;
            }
            let Ok(name) = kernel::dentry_name(dentry) else { break };
            // SAFETY: a whole component fits behind every offset below PATH_BYTES (see PATH_STORAGE).
            let place = unsafe { (&raw mut (*record).path).cast::<u8>().add(used as usize) };
            let Ok(length) = kernel::read_text(place.cast(), NAME_BYTES, name) else { break };
            used += length & 0x1ff;
            match kernel::dentry_parent(dentry) {
                Ok(parent) if parent != dentry => dentry = parent,
                _ => break,
            }
        }
    }
    // SAFETY: not null, and the caller reserved a whole record.
    unsafe { ptr::write_volatile(&raw mut (*record).path_len, used) };
    flag
}
