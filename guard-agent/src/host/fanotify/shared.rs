//! State that the responder's threads share.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nix::sys::fanotify::Fanotify;

use super::deletion_monitor::DeletionMonitor;
use super::order::{Reply, Wanted};

/// Shared by the responder's threads.
pub(super) struct Shared {
    pub group: Fanotify,
    /// The marked mounts, by id.
    pub mounts: Mutex<HashMap<u32, Marked>>,
    pub deletion_monitor: DeletionMonitor,
    /// The reason, if the mount table cannot be watched.
    pub unwatched: Mutex<Option<String>>,
    /// Time at which the answering thread began its present work, in milliseconds of `start`; 0: it
    /// waits for a question.
    pub busy_since: AtomicU64,
    /// Grows with each order: the mount table may be another one.
    pub orders: AtomicU64,
    pub start: Instant,
    /// The number of this process: asking for it is a system call.
    pub own: u32,
}

#[derive(Clone)]
pub(super) struct Marked {
    pub wanted: Arc<Wanted>,
    /// It has been sealed: nothing can be deleted through it.
    pub read_only: bool,
}

impl Shared {
    pub(super) fn mounts(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Marked>> {
        // Entries are replaced whole: a panic leaves none half-written.
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether there was a reason before.
    pub(super) fn set_unwatched(&self, why: Option<String>) -> bool {
        std::mem::replace(&mut *self.unwatched(), why).is_some()
    }

    pub(super) fn unwatched(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.unwatched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn milliseconds(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }
}

/// Sends the agent a line.
pub(super) fn send(replies: &Mutex<UnixStream>, reply: &Reply) {
    let Ok(mut line) = serde_json::to_string(reply) else { return };
    line.push('\n');
    // The agent may be gone.
    let _ = replies.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
}
