//! A yardstick of the benchmarks: the method of popular monitors. For each unlink on the host it
//! resolves the path and sends it through a ring buffer, and leaves the filtering to its reader.
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated};
use aya_ebpf::macros::{lsm, map};
use aya_ebpf::maps::RingBuf;
use aya_ebpf::programs::LsmContext;
use guard_common::Record;
use guard_common::names::capacity;

#[path = "../kernel/mod.rs"]
#[expect(dead_code, reason = "the kernel program's own; the monitor reads less")]
mod kernel;
#[path = "../path.rs"]
mod path;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[map]
static MONITORED: RingBuf = RingBuf::with_byte_size(8 * capacity::RECORDS_BYTES, 0);

#[lsm(hook = "path_unlink")]
pub(crate) fn monitor_path_unlink(context: LsmContext) -> i32 {
    let directory = kernel::Trusted::new(context.arg::<*const c_void>(0));
    let target = kernel::Trusted::new(context.arg::<*const c_void>(1));
    let superblock = directory.path_mount().mount_superblock().address();
    let Some(mut record) = MONITORED.reserve::<Record>(0) else { return 0 };
    let record_at = record.as_mut_ptr();
    // SAFETY: the ring buffer has reserved a whole record at this address, for this program alone.
    unsafe {
        ptr::write_volatile(&raw mut (*record_at).boot_ns, kernel::boot_ns());
        ptr::write_volatile(&raw mut (*record_at).pid, bpf_get_current_pid_tgid() as u32);
        generated::bpf_get_current_comm((&raw mut (*record_at).comm).cast(), 16);
    }
    path::write_path(record_at, superblock, target.address());
    record.submit(0);
    0
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
extern crate std;
