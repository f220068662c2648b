//! The yardstick of the benchmarks: programs on the busiest hooks that do nothing at all.
#![no_std]
#![no_main]

use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[lsm(hook = "path_unlink")]
pub(crate) fn empty_path_unlink(_context: LsmContext) -> i32 {
    0
}

#[lsm(hook = "inode_unlink")]
pub(crate) fn empty_inode_unlink(_context: LsmContext) -> i32 {
    0
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
extern crate std;
