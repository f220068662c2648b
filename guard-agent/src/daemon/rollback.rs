//! Rollbacks beside the agent: the engine blocks, so each has a thread of its own, and reports to
//! the agent.
//!
//! The state machine knows that a rollback runs, and its journal says so; a thread that dies with
//! its agent is begun anew by the next one. Unmounting twice does no harm.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::host::rollback::LiveHost;
use crate::host::rollback::helper::Helper;
use crate::model::control::Refusal;
use crate::model::join::{Daemon, NodeState};
use crate::model::rollback::{Allowed, Limits, Progress, RollbackOutcome, StepReport, Target, run};

/// All rollbacks that this agent has begun, by the node's root.
#[derive(Debug)]
pub(super) struct Rollbacks {
    sender: UnboundedSender<Happening>,
    map_directory: PathBuf,
    by_root: BTreeMap<PathBuf, Rollback>,
    /// Permissions of the next rollback of a root. None for one that begins by itself, or goes on
    /// after a restart.
    allowed: BTreeMap<PathBuf, Allowed>,
}

/// The last rollback of a node.
#[derive(Clone, Debug, Default)]
pub(super) struct Rollback {
    pub running: bool,
    pub lazy: bool,
    pub steps: Vec<StepReport>,
    pub waiting_for: usize,
    pub outcome: Option<RollbackOutcome>,
    /// When.
    pub ended: Option<Instant>,
}

/// A message from a rollback's thread.
#[derive(Debug)]
pub(super) struct Happening {
    pub root: PathBuf,
    pub what: What,
}

/// Progress of a rollback, or its outcome.
#[derive(Debug)]
pub(super) enum What {
    Progress(Progress),
    Ended(RollbackOutcome),
}

impl Rollbacks {
    /// With the directory of the pinned maps. The other end is for the agent's loop.
    pub(super) fn new(map_directory: PathBuf) -> (Self, UnboundedReceiver<Happening>) {
        let (sender, happenings) = unbounded_channel();
        (
            Self { sender, map_directory, by_root: BTreeMap::new(), allowed: BTreeMap::new() },
            happenings,
        )
    }

    /// Sets the permissions of a node's next rollback.
    pub(super) fn allow(&mut self, root: &Path, allowed: Allowed) {
        self.allowed.insert(root.to_owned(), allowed);
    }

    /// The next one of a node is allowed nothing.
    pub(super) fn allow_nothing(&mut self, root: &Path) {
        self.allowed.remove(root);
    }

    /// The last one of a node.
    pub(super) fn of(&self, root: &Path) -> Option<&Rollback> {
        self.by_root.get(root)
    }

    /// Begins one of a node. `path` is its root with links followed, as the mount table has it. It
    /// always ends with [`What::Ended`], even if its thread dies.
    pub(super) fn start(
        &mut self,
        root: &Path,
        path: PathBuf,
        targets: Vec<Target>,
    ) -> io::Result<()> {
        let allowed = self.allowed.remove(root).unwrap_or_default();
        let (sender, map_directory, name) =
            (self.sender.clone(), self.map_directory.clone(), root.to_owned());
        std::thread::Builder::new().name("rollback".to_owned()).spawn(move || {
            // The agent may have gone; then nobody has to be told.
            let tell = |what| drop(sender.send(Happening { root: name.clone(), what }));
            let work = || {
                let mut host =
                    LiveHost::new(map_directory, Helper::this_program(), Limits::default());
                run(&mut host, &targets, &path, allowed, &mut |progress| {
                    tell(What::Progress(progress))
                })
            };
            let died = |_| RollbackOutcome::unknown(&targets, "the rollback's thread has panicked");
            tell(What::Ended(catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(died)));
        })?;
        self.by_root.insert(
            root.to_owned(),
            Rollback { running: true, lazy: allowed.lazy, ..Rollback::default() },
        );
        Ok(())
    }

    /// Notes a thread's message.
    pub(super) fn note(&mut self, happening: &Happening) {
        let rollback = self.by_root.entry(happening.root.clone()).or_default();
        match &happening.what {
            What::Progress(Progress::Step(step)) => rollback.steps.push(step.clone()),
            What::Progress(Progress::Waiting { superblocks }) => {
                rollback.waiting_for = *superblocks
            }
            What::Ended(outcome) => {
                (rollback.running, rollback.waiting_for) = (false, 0);
                rollback.outcome = Some(outcome.clone());
                rollback.ended = Some(Instant::now());
            }
        }
    }
}

/// Pause between a rollback that left something and the next automatic one.
pub(super) const AGAIN: Duration = Duration::from_secs(60);
/// The same if guests were in the way: those end by an operator's hand. Each attempt is written to
/// the node's history.
pub(super) const AGAIN_WITH_GUESTS: Duration = Duration::from_secs(900);

/// Whether the policy `on_join_failure = "rollback"` begins one now. Only for a join that has
/// failed for certain: a member whose cluster is out of reach looks like a join that broke off late
/// (`join-partial`). And only while the daemon is certainly stopped: a running one takes its pools
/// for mounted. It never takes a pool from under a guest.
pub(super) fn begins_by_itself(
    state: &NodeState,
    daemon: &Daemon,
    has_pools: bool,
    last: Option<&Rollback>,
    now: Instant,
) -> bool {
    let has_guests =
        |last: &Rollback| last.outcome.as_ref().is_some_and(|outcome| !outcome.guests.is_empty());
    let pause = if last.is_some_and(has_guests) { AGAIN_WITH_GUESTS } else { AGAIN };
    let waits = last
        .is_some_and(|last| last.running || last.ended.is_some_and(|ended| now < ended + pause));
    *state == NodeState::JoinFailed && *daemon == Daemon::Stopped && has_pools && !waits
}

/// An operator's rollback is not begun while the daemon runs. An unknown state does not prevent it:
/// the operator may know, and pools that are mounted again are sealed.
pub(super) fn may_begin(root: &Path, daemon: &Daemon) -> Result<(), Refusal> {
    match daemon {
        Daemon::Running { incarnation, .. } => Err(Refusal::DaemonRuns {
            root: root.to_string_lossy().into_owned(),
            pid: incarnation.pid,
        }),
        Daemon::Stopped | Daemon::Unknown => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::join::{Incarnation, Kept};
    use crate::model::rollback::Guest;

    #[test]
    fn a_rollback_begins_by_itself_only_when_that_is_certain() {
        let running = Daemon::Running {
            incarnation: Incarnation { boot_id: "b".to_owned(), pid: 7, start_ticks: 1 },
            age_seconds: 1,
        };
        let now = Instant::now();
        let begins = |state: NodeState, daemon: &Daemon, pools| {
            begins_by_itself(&state, daemon, pools, None, now)
        };
        assert!(begins(NodeState::JoinFailed, &Daemon::Stopped, true));
        assert!(!begins(NodeState::JoinFailed, &Daemon::Stopped, false));
        assert!(!begins(NodeState::JoinFailed, &Daemon::Unknown, true));
        assert!(!begins(NodeState::JoinFailed, &running, true));
        for state in [
            NodeState::JoinPartial,
            NodeState::Standalone,
            NodeState::RollingBack,
            NodeState::Released,
            NodeState::Unknown { kept: Kept::Nothing },
        ] {
            assert!(!begins(state, &Daemon::Stopped, true));
        }
        let left = |ended| Rollback { ended: Some(ended), ..Rollback::default() };
        let again = |last: &Rollback| {
            begins_by_itself(&NodeState::JoinFailed, &Daemon::Stopped, true, Some(last), now)
        };
        assert!(!again(&left(now)));
        assert!(now.checked_sub(AGAIN).is_none_or(|long_ago| again(&left(long_ago))));
        let guest = Guest {
            pool: "p".to_owned(),
            namespace: 9,
            pid: 77,
            name: "c1".to_owned(),
            mountpoint: "/data".to_owned(),
        };
        let outcome = RollbackOutcome { guests: vec![guest], ..RollbackOutcome::default() };
        let in_use = |ended| Rollback { outcome: Some(outcome.clone()), ..left(ended) };
        assert!(now.checked_sub(AGAIN).is_none_or(|long_ago| !again(&in_use(long_ago))));
        assert!(!again(&Rollback { running: true, ..Rollback::default() }));
        assert!(may_begin(Path::new("/x"), &running).is_err());
        assert!(may_begin(Path::new("/x"), &Daemon::Unknown).is_ok());
    }

    #[test]
    fn what_is_allowed_is_allowed_once() {
        let (mut rollbacks, _happenings) = Rollbacks::new(PathBuf::from("/nonexistent"));
        let root = Path::new("/var/lib/incus");
        rollbacks.allow(root, Allowed { lazy: true, force: true });
        rollbacks.start(root, root.to_owned(), Vec::new()).unwrap();
        assert!(rollbacks.of(root).unwrap().lazy && rollbacks.allowed.is_empty());
        // The next one, which policy or a restarted agent begins.
        rollbacks.start(root, root.to_owned(), Vec::new()).unwrap();
        assert!(!rollbacks.of(root).unwrap().lazy);
    }

    #[tokio::test]
    async fn a_rollback_without_maps_ends_with_everything_remaining() {
        let (mut rollbacks, mut happenings) = Rollbacks::new(PathBuf::from("/nonexistent"));
        let root = Path::new("/var/lib/incus");
        let target = Target { dev: 43, generation: 7, name: "shared".to_owned() };
        rollbacks.start(root, root.to_owned(), vec![target]).unwrap();
        assert!(rollbacks.of(root).unwrap().running);
        while let Some(happening) = happenings.recv().await {
            rollbacks.note(&happening);
            if matches!(happening.what, What::Ended(_)) {
                break;
            }
        }
        let ended = rollbacks.of(root).unwrap();
        assert!(!ended.running);
        let outcome = ended.outcome.as_ref().unwrap();
        assert_eq!(outcome.remaining[0].generation, 7);
        assert!(!outcome.problems.is_empty());
    }
}
