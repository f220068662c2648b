//! The agent's process: wiring only.
//!
//! One task owns all state (`agent::Agent`). The loop sends it everything else as an
//! `agent::AgentEvent`: the mount table, the watched paths, the kernel's records, requests from the
//! control socket, and time. Nothing here decides which pools to protect.

mod agent;
mod audit_trail;
mod clusters;
pub mod command_line;
pub mod control;
mod enforcement;
mod error;
mod event_loop;
mod following;
mod grants;
mod last_good;
mod means;
mod mount_view;
mod node;
mod node_tracker;
mod notify;
mod options;
mod policy_store;
mod pool_book;
mod posture_tracker;
mod rollback;
mod start_up;
mod succession;
mod tiers;

use std::future::Future;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::mpsc;

pub use crate::daemon::error::DaemonError;
use crate::daemon::error::failed;
use crate::daemon::event_loop::EventLoop;
pub use crate::daemon::options::Options;
use crate::daemon::start_up::start;
use crate::host::audit_log::origin;
use crate::host::bpf::LoadError;
use crate::host::bpf::layouts::Layouts;
use crate::host::fanotify;
use crate::host::paths;
use crate::model::exit::Exit;

/// Runs until `shutdown`. Enforcement goes on after it. Each of `reloads` has the policy file read
/// again.
pub async fn run(
    options: Options,
    shutdown: impl Future<Output = ()>,
    reloads: mpsc::Receiver<()>,
) -> Result<(), DaemonError> {
    start_up::check_namespace(&options)?;
    let policy = start_up::open_policy(&options)?;
    let _lock = lock(&options.state_dir)?;
    let started = start(&options, policy).await?;
    EventLoop::new(started, reloads).run(shutdown).await
}

/// Shows in `systemctl status` why the agent does not run.
pub fn tell_failure(exit: Exit, message: &str) {
    let text = format!("not running (exit code {}): {message}", exit as u8);
    notify::Notify::from_environment().status(&text);
}

/// Removes all pins, ends responders, and makes sealed mounts writable: nothing is enforced
/// afterwards.
pub fn unload(pin_dir: &Path, state_dir: &Path) -> Result<(), DaemonError> {
    let _lock = lock(state_dir)?;
    let layouts = Layouts::open(pin_dir).map_err(LoadError::Pins)?;
    let origin = origin::of_this_host().map_err(failed("read the host's name and boot id"))?;
    fanotify::unload(pin_dir, state_dir, &origin.boot_id)?;
    Ok(layouts.unload().map_err(LoadError::Pins)?)
}

/// One agent at a time.
fn lock(state_dir: &Path) -> Result<Flock<std::fs::File>, DaemonError> {
    std::fs::create_dir_all(state_dir).map_err(failed("create the state directory"))?;
    let path = state_dir.join(paths::LOCK_NAME);
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed("open the lock in the state directory"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| DaemonError::Locked { lock: path })
}
