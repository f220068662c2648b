//! Everything from the command line to an agent that enforces. An error has ended nothing that was
//! in force before.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, mpsc};

use super::agent::Agent;
use super::control::access::{GROUP, reader_group};
use super::control::{Server, ServerOptions};
use super::error::{DaemonError, failed};
use super::means::Answers;
use super::node_tracker::NodeTracker;
use super::options::Options;
use super::policy_store::{PolicyStore, root_above};
use super::rollback::{Happening, Rollbacks};
use super::succession::Succession;
use super::tiers::Ladder;
use crate::host::audit_log::{AuditFile, AuditOptions, origin};
use crate::host::bpf::maps;
use crate::host::host_view;
use crate::host::incus::Observation;
use crate::host::mount_table;
use crate::host::mount_table::MountWatch;
use crate::host::reactor;
use crate::host::state_file::StateFile;

/// Lines of the audit log that a slow follower may lag behind.
const FOLLOWERS_LAG: usize = 1024;

/// An agent that enforces, and the sources of its events.
pub(super) struct Started {
    pub agent: Agent,
    pub mounts: MountWatch,
    pub records: AsyncFd<RingBuf<MapData>>,
    pub answers: Option<Answers>,
    pub observations: mpsc::Receiver<(Arc<Path>, Observation)>,
    pub rollbacks: mpsc::UnboundedReceiver<Happening>,
    pub server: Server,
    /// Lines of the audit log, for followers.
    pub lines: broadcast::Sender<Arc<str>>,
}

/// In a container's PID namespace the host would look like a guest.
pub(super) fn check_namespace(options: &Options) -> Result<(), DaemonError> {
    let foreign = host_view::foreign_pid_namespace();
    match foreign.map_err(failed("look at this process's PID namespace"))? {
        Some(found) if !options.container_as_host => Err(DaemonError::InContainer { found }),
        _ => Ok(()),
    }
}

/// Reads the policy, which must leave the agent's own files alone.
pub(super) fn open_policy(options: &Options) -> Result<PolicyStore, DaemonError> {
    let policy =
        PolicyStore::open(&options.policy, &options.state_dir).map_err(DaemonError::Policy)?;
    match root_above(&policy.current, &options.state_dir) {
        Some(root) => {
            let directory: PathBuf = options.state_dir.clone();
            Err(DaemonError::StateBelowRoot { directory, root })
        }
        None => Ok(policy),
    }
}

/// Puts an agent in force. The state directory is locked.
pub(super) async fn start(options: &Options, policy: PolicyStore) -> Result<Started, DaemonError> {
    let mounts = MountWatch::open(Path::new(mount_table::HOST))
        .map_err(|source| DaemonError::NoMountTable { path: mount_table::HOST.into(), source })?;
    let origin = origin::of_this_host().map_err(failed("read the host's name and boot id"))?;
    let (state, state_problem) = StateFile::open(&options.state_dir, &origin.boot_id)?;
    let readers = reader_group();
    if readers.is_none() {
        tracing::info!(
            group = GROUP,
            "there is no such group: only root reads the audit log and asks the agent"
        );
    }
    let audit_options = AuditOptions { readers, ..AuditOptions::default() };
    let audit = AuditFile::open(&options.audit, origin, audit_options)?;
    let server = Server::bind(ServerOptions::new(options.run_dir.clone(), options.audit.clone()))?;
    let (lines, _) = broadcast::channel(FOLLOWERS_LAG);

    let succession = Succession::begin(&options.pin_dir)?;
    let has_programs = succession.has_programs();
    let mut ladder = Ladder::of_this_host(succession.pins(), has_programs, policy.current.tier());
    let foundation = ladder.next()?;
    let maps_directory = foundation.map_directory();
    let mut maps = foundation.maps()?;
    succession.carry_into(&mut maps)?;
    let records = reactor::watch(maps::records(&maps_directory)?, Interest::READABLE)
        .map_err(failed("watch the records"))?;
    let (rollbacks, rolling) = Rollbacks::new(maps_directory);
    let (nodes, observations) = NodeTracker::new(&options.state_dir, rollbacks);
    let mut agent = Agent::new(policy, (maps, succession), state, audit, lines.clone(), nodes)?;
    agent.note_state_problem(state_problem);
    agent.keep_policy();
    agent.adopt_commands()?;
    agent.open_nodes(&mounts).await?;
    let answers = agent.put_in_force(options, foundation, ladder, &mounts)?;
    let rollbacks = rolling;
    Ok(Started { agent, mounts, records, answers, observations, rollbacks, server, lines })
}
