//! The userspace agent of the deletion barrier.
//!
//! The kernel program decides; this agent tells it what to protect, proves that it answers, and
//! writes down what it did. Data flows through the modules in this order:
//!
//! ```text
//! mountinfo ─► mounts ─► classify ─► plan ─► bpf (maps, pins, canary) ─► kernel
//!                           ▲         ▲                                    │
//!                policy ────┴─────────┘          audit ◄─ events ◄─────────┘
//!                                                   ▲
//!                        guardctl ─► control ─► daemon (the one owner of all state)
//! ```
//!
//! There are four wings, and imports go down only: `cli` and `daemon` rest on `host`, and `host` on
//! `model`. `model` is pure: time, file text and kernel replies are its arguments.

pub mod cli;
pub mod daemon;
pub mod host;
pub mod model;
