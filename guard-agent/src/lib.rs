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
//! `mounts`, `classify`, `policy`, `plan`, `events`, `audit::record` and `control::protocol` are
//! pure: no clock, no file, no kernel. Time, file text and kernel replies are their arguments.

pub mod address;
pub mod audit;
pub mod bpf;
pub mod classify;
pub mod cli;
pub mod command_line;
pub mod control;
pub mod daemon;
pub mod doctor;
pub mod durable;
mod errors;
pub mod events;
pub mod exit;
pub mod fanotify;
pub mod hints;
pub mod host_view;
pub mod incus;
pub mod join;
mod journal;
pub mod logging;
pub mod mounts;
pub mod offline;
pub mod paths;
pub mod plan;
pub mod policy;
pub mod posture;
pub mod preflight;
pub mod reactor;
pub mod rollback;
pub mod roots;
pub mod service;
pub mod systemd;
pub mod wait;
pub mod watch;
pub mod wipe;
