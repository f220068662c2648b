//! The kernel program: BPF LSM hooks that decide about every deletion.
//!
//! ```text
//! hooks ─► decide ─► pools, walk and parts (from where), identity (who asks) ─► kernel (every read of kernel memory)
//!             │           └─► cache (earlier answers)
//!             └────► report (counters, incidents, records), path      maps: what the agent supplies
//! ```
//!
//! Limits: it never resolves a path to decide (identity decides; paths are for the log), never
//! sleeps, and never lets telemetry change a verdict.
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod cache;
mod decide;
mod hooks;
mod identity;
mod kernel;
mod maps;
mod parts;
mod path;
mod pools;
mod report;
mod walk;

/// The kernel lends GPL-only helpers to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // No panic survives in the object: the verifier would refuse the endless loop.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
extern crate std;
