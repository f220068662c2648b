//! Requests about a node, from operators or from the policy in their place: rollbacks, and joins
//! that are prepared. The state machine decides whether they are granted.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Agent, ReconcileCause};
use crate::daemon::control::Peer;
use crate::daemon::node::Node;
use crate::daemon::pool_book::KnownPool;
use crate::daemon::rollback::{Happening, What, begins_by_itself, may_begin};
use crate::host::mount_table::MountWatch;
use crate::model::control::report::RollbackReport;
use crate::model::control::{Refusal, Reply};
use crate::model::join::{Daemon, Event, JoinSeen, NodeState};
use crate::model::policy::OnJoinFailure;
use crate::model::rollback::{Allowed, RollbackOutcome, Target};

/// Longest wait for a prepared join to start. Afterwards evidence alone decides.
const PREPARATION: Duration = Duration::from_secs(600);

impl Agent {
    /// Begins a rollback; one that runs already is shown.
    pub(super) fn roll_back(
        &mut self,
        root: Option<&str>,
        allowed: Allowed,
        peer: &Peer,
        mounts: &MountWatch,
    ) -> Result<Reply, Refusal> {
        let root = self.meant(root)?;
        if self.nodes.of(&root).is_some_and(|node| *node.state() == NodeState::RollingBack) {
            return self.rollback_status(&root);
        }
        // The state says more than that Incus runs.
        if let Some(Err(refusal)) = self.nodes.of(&root).map(Node::may_roll_back) {
            return Err(Refusal::NodeState { root: root.display().to_string(), refusal });
        }
        may_begin(&root, self.daemon_of(&root))?;
        self.nodes.rollbacks.allow(&root, allowed);
        let asked =
            self.ask_node(&root, Event::RollbackAsked { by: format!("uid {}", peer.uid) }, mounts);
        if asked.is_err() {
            self.nodes.rollbacks.allow_nothing(&root);
        }
        asked?;
        self.rollback_status(&root)
    }

    /// Progress or outcome of the last rollback.
    pub(super) fn rollback_status_of(&self, root: Option<&str>) -> Result<Reply, Refusal> {
        self.rollback_status(&self.meant(root)?)
    }

    fn rollback_status(&self, root: &Path) -> Result<Reply, Refusal> {
        let state = self.nodes.of(root).map_or(&NodeState::Released, Node::state);
        let last = self.nodes.rollbacks.of(root).cloned().unwrap_or_default();
        let refusal = self.nodes.of(root).and_then(|node| node.may_roll_back().err());
        let refusal = refusal.map(|refusal| {
            Refusal::NodeState { root: root.display().to_string(), refusal }.report()
        });
        Ok(Reply::Rollback(Box::new(RollbackReport {
            root: root.display().to_string(),
            state: state.name().to_owned(),
            running: last.running || *state == NodeState::RollingBack,
            lazy: last.lazy,
            steps: last.steps,
            waiting_for: last.waiting_for,
            outcome: last.outcome,
            refusal,
        })))
    }

    /// Seals a node's pools for a join that is about to be started.
    pub(super) fn prepare_join(
        &mut self,
        root: Option<&str>,
        mounts: &MountWatch,
    ) -> Result<Reply, Refusal> {
        let root = self.meant(root)?;
        self.ask_node(&root, Event::JoinPrepared, mounts)?;
        self.nodes.prepared.insert(root.clone(), Instant::now() + PREPARATION);
        Ok(self.state_of(&root))
    }

    /// Ends the preparation of a join.
    pub(super) fn end_preparation(
        &mut self,
        root: Option<&str>,
        mounts: &MountWatch,
    ) -> Result<Reply, Refusal> {
        let root = self.meant(root)?;
        self.nodes.prepared.remove(&root);
        self.ask_node(&root, Event::PreparationEnded, mounts)?;
        Ok(self.state_of(&root))
    }

    /// Takes an operator's word about a node, which a look then judges.
    pub(super) fn take_word(
        &mut self,
        root: Option<&str>,
        word: impl FnOnce(String) -> Event,
        reason: &str,
        peer: &Peer,
        mounts: &MountWatch,
    ) -> Result<Reply, Refusal> {
        let reason = reason.trim();
        if reason.is_empty() {
            return Err(Refusal::ReasonMissing);
        }
        let root = self.meant(root)?;
        self.ask_node(&root, word(format!("uid {} ({reason})", peer.uid)), mounts)?;
        Ok(self.state_of(&root))
    }

    fn state_of(&self, root: &Path) -> Reply {
        let state = self.nodes.of(root).map_or("unknown", |node| node.state().name());
        Reply::NodeState { root: root.display().to_string(), state: state.to_owned() }
    }

    /// The node that is meant: by its root, or the only one.
    fn meant(&self, root: Option<&str>) -> Result<PathBuf, Refusal> {
        let all =
            || self.nodes.iter().map(|(root, _)| root.display().to_string()).collect::<Vec<_>>();
        let mut wanted = self
            .nodes
            .iter()
            .map(|(path, _)| path)
            .filter(|path| root.is_none_or(|root| *path == Path::new(root)));
        match (wanted.next(), wanted.next()) {
            (Some(path), None) => Ok(path.to_owned()),
            (Some(_), Some(_)) => Err(Refusal::AmbiguousNode { nodes: all() }),
            (None, _) => Err(Refusal::NoSuchNode { root: root.map(str::to_owned), nodes: all() }),
        }
    }

    fn daemon_of(&self, root: &Path) -> &Daemon {
        let seen = self.nodes.of(root).and_then(|node| node.seen.as_ref());
        seen.map_or(&Daemon::Unknown, |(_, evidence)| &evidence.daemon)
    }

    /// Sends a request to a node's machine, and brings its effects into the kernel before it is
    /// answered.
    fn ask_node(&mut self, root: &Path, event: Event, mounts: &MountWatch) -> Result<(), Refusal> {
        let (changed, result) = self.tell_node(root, event);
        if changed {
            self.bring_up_to_date(ReconcileCause::Node, mounts);
        }
        result.map_err(|refusal| Refusal::NodeState { root: root.display().to_string(), refusal })
    }

    /// Begins to unmount a node's live pools.
    pub(super) fn begin_rollback(&mut self, root: &Path) {
        let Some(node) = self.nodes.of(root) else { return };
        let target = |known: &KnownPool| Target {
            dev: known.pool.dev,
            generation: known.entry.generation,
            name: known.pool.name.clone(),
        };
        // A visitor is mounted elsewhere, by its host.
        let targets: Vec<Target> = self.book.own_pools(node.actor_set).map(target).collect();
        tracing::info!(root = %root.display(), pools = targets.len(), "rollback begins");
        let path = self.view.followed(&self.policy.current, root);
        if let Err(error) = self.nodes.rollbacks.start(root, path, targets) {
            // The next tick tries again.
            tracing::error!(root = %root.display(), %error, "the rollback could not be begun");
        }
    }

    /// Takes a message from a rollback's thread.
    pub(super) fn rollback_happened(&mut self, happening: &Happening, mounts: &MountWatch) {
        self.nodes.rollbacks.note(happening);
        let What::Ended(outcome) = &happening.what else { return };
        let root = &happening.root;
        log_outcome(root, outcome);
        // The kernel says which pools live now, not the thread.
        self.bring_up_to_date(ReconcileCause::Rollback, mounts);
        let Some(actor_set) = self.nodes.of(root).map(|node| node.actor_set) else { return };
        let alive = self.book.alive(actor_set);
        if self.tell_node(root, Event::RollbackEnded { alive }).0 {
            self.bring_up_to_date(ReconcileCause::Rollback, mounts);
        }
    }

    /// Does work that is due without a request: rollbacks that an earlier agent has begun, those
    /// that policy wants, and preparations that nothing has followed.
    pub(super) fn drive_nodes(&mut self, mounts: &MountWatch) {
        let now = Instant::now();
        let roots: Vec<PathBuf> = self.nodes.iter().map(|(root, _)| root.to_owned()).collect();
        for root in roots {
            let Some(node) = self.nodes.of(&root) else { continue };
            let last = self.nodes.rollbacks.of(&root);
            let is_running = last.is_some_and(|last| last.running);
            let has_pools = self.book.own_pools(node.actor_set).next().is_some();
            if *node.state() == NodeState::RollingBack && !is_running {
                self.begin_rollback(&root);
            } else if self.wants_rollback(&root)
                && begins_by_itself(node.state(), self.daemon_of(&root), has_pools, last, now)
            {
                let by = "the policy (on_join_failure = \"rollback\")".to_owned();
                if let Err(refusal) = self.ask_node(&root, Event::RollbackAsked { by }, mounts) {
                    tracing::warn!(root = %root.display(), %refusal, "no rollback");
                }
            }
            self.end_late_preparation(&root, now, mounts);
        }
    }

    fn wants_rollback(&self, root: &Path) -> bool {
        let mut roots = self.policy.current.roots().iter();
        let incus = roots.find(|known| known.path() == root).and_then(|known| known.incus());
        incus.is_some_and(|incus| incus.on_join_failure() == OnJoinFailure::Rollback)
    }

    fn end_late_preparation(&mut self, root: &Path, now: Instant, mounts: &MountWatch) {
        if self.nodes.prepared.get(root).is_none_or(|ends| now < *ends) {
            return;
        }
        self.nodes.prepared.remove(root);
        let prepared = NodeState::Joining { seen: JoinSeen::Prepared };
        if self.nodes.of(root).is_some_and(|node| *node.state() == prepared) {
            // The machine refuses nothing of the kind.
            let _ = self.ask_node(root, Event::PreparationEnded, mounts);
        }
    }
}

fn log_outcome(root: &Path, outcome: &RollbackOutcome) {
    let (root, unmounts) =
        (root.display(), outcome.steps.iter().filter(|step| step.outcome.is_done()).count());
    if outcome.is_complete() {
        return tracing::info!(%root, unmounts, "rollback has ended: nothing is left");
    }
    for problem in &outcome.problems {
        tracing::error!(%root, problem, "rollback");
    }
    for guest in &outcome.guests {
        tracing::warn!(%root, %guest, "rollback: nothing was unmounted, since a guest uses a pool");
    }
    for remaining in &outcome.remaining {
        let (pool, fix) = (&remaining.pool, &remaining.fix);
        let (mounts, holders) = (remaining.mounts.len(), remaining.holders.len());
        tracing::warn!(%root, pool, mounts, holders, fix, "rollback has ended: a superblock \
                                                           remains");
    }
}
