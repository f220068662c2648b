//! Everything that decides, without touching the machine.
//!
//! No file here names a clock, a file, the network or the kernel: times, texts and the kernel's
//! replies are arguments. `cargo xtask lint` checks that. In flow order:
//!
//! ```text
//! mounts ─┐
//! policy ─┴─► classify ─► plan        events ─► audit
//!                          ▲
//!             join ────────┘          control (requests, replies, reports)
//! ```

pub mod address;
pub mod audit;
pub mod classify;
pub mod control;
pub mod errors;
pub mod events;
pub mod exit;
pub mod hints;
pub mod incus;
pub mod join;
pub mod mounts;
pub mod plan;
pub mod policy;
pub mod posture;
pub mod rollback;
pub mod state;
pub mod time;
