//! The nodes whose way into a cluster is followed: one state machine, journal and observer for each
//! root that policy says so of. Decisions are `join`'s; here its effects are carried out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use guard_common::{Mode, PoolEntry};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::agent::Agent;
use super::node::Node;
use super::posture;
use super::rollback::Rollbacks;
use crate::host::clock::now;
use crate::host::incus;
use crate::host::incus::{Observation, Observer};
use crate::host::mount_table::MountWatch;
use crate::host::paths;
use crate::model::audit::Body;
use crate::model::audit::record::NodeBody;
use crate::model::join;
use crate::model::join::{Effect, Event, NodeMode, Refusal, State};
use crate::model::plan;
use crate::model::plan::Overrides;
use crate::model::policy::{DefaultMode, Policy, Root};

/// How long a start waits for a first look at its nodes, so that a healthy one is guarded from the
/// first moment.
const FIRST_LOOK: Duration = Duration::from_secs(3);
/// Observations that wait for the agent.
const WAITING: usize = 256;

/// All nodes, by their guarded root.
#[derive(Debug)]
pub struct Nodes {
    directory: PathBuf,
    sender: mpsc::Sender<(Arc<Path>, Observation)>,
    nodes: BTreeMap<PathBuf, Node>,
    pub(super) rollbacks: Rollbacks,
    /// When the preparation of a join ends by itself.
    pub(super) prepared: BTreeMap<PathBuf, Instant>,
}

impl Nodes {
    /// The other end is for the agent's loop.
    pub fn new(
        state_dir: &Path,
        rollbacks: Rollbacks,
    ) -> (Self, mpsc::Receiver<(Arc<Path>, Observation)>) {
        let (sender, observations) = mpsc::channel(WAITING);
        let (directory, nodes, prepared) =
            (state_dir.join(paths::NODES_NAME), BTreeMap::new(), BTreeMap::new());
        (Self { directory, sender, nodes, rollbacks, prepared }, observations)
    }

    /// All nodes, with their roots.
    pub fn iter(&self) -> impl Iterator<Item = (&Path, &Node)> {
        self.nodes.iter().map(|(root, node)| (root.as_path(), node))
    }

    /// The node of a root.
    pub fn of(&self, root: &Path) -> Option<&Node> {
        self.nodes.get(root)
    }
}

impl Agent {
    /// Takes up the nodes of the policy, looks at each before anything is decided about its pools,
    /// and brings policy and nodes into the maps.
    pub async fn open_nodes(&mut self, mounts: &MountWatch) {
        self.take_up_nodes();
        self.look_at_nodes(|_| true).await;
        self.reconcile(mounts);
        // Pools that were mounted while no agent ran: they have entries only now.
        if self.look_at_nodes(|node| !node.machine().unconfirmed().is_empty()).await {
            self.reconcile(mounts);
        }
        self.start_observers();
    }

    /// Looks at some of the nodes, before they have observers. Returns whether the maps have to
    /// follow.
    async fn look_at_nodes(&mut self, which: impl Fn(&Node) -> bool) -> bool {
        let (mut looks, mut changed) = (JoinSet::new(), false);
        for (root, node) in self.nodes.nodes.iter().filter(|(_, node)| which(node)) {
            let (root, asked, options) =
                (root.clone(), node.machine().epoch(), node.options.clone());
            looks.spawn(
                async move { (root, asked, incus::observe_once(options, FIRST_LOOK).await) },
            );
        }
        while let Some(look) = looks.join_next().await {
            // A look that has panicked has seen nothing.
            let Ok((root, asked, evidence)) = look else { continue };
            let observation = Observation::Looked { asked, evidence };
            changed |= self.observe(&root, observation);
        }
        changed
    }

    /// Makes the nodes those of the policy. A root that is followed no longer falls back to the
    /// policy's mode.
    pub(super) fn follow_policy(&mut self) {
        self.take_up_nodes();
        self.start_observers();
    }

    fn take_up_nodes(&mut self) {
        let wanted: BTreeMap<PathBuf, incus::Options> = self
            .policy
            .policy
            .roots()
            .iter()
            .filter_map(|root| Some((root.path().into(), options(root)?)))
            .collect();
        let changed = |root: &PathBuf, node: &Node| wanted.get(root) != Some(&node.options);
        let gone: Vec<PathBuf> = self
            .nodes
            .nodes
            .iter()
            .filter(|(root, node)| changed(root, node))
            .map(|(root, _)| root.clone())
            .collect();
        for root in gone {
            if let Some(mut node) = self.nodes.nodes.remove(&root) {
                if node.writes_later || node.unwritten.is_some() {
                    // The last chance: who follows the root again has only the file.
                    node.write();
                }
                self.overrides.nodes.remove(&node.actor_set);
                tracing::info!(root = %root.display(), "the node is followed no longer, or \
                                                        otherwise");
            }
        }
        for (path, options) in wanted {
            let Some(root) = root_at(&self.policy.policy, &path) else { continue };
            if self.nodes.nodes.contains_key(&path) {
                continue;
            }
            let found = self.found_modes(root);
            let (node, problem) = Node::open(&self.nodes.directory, root, options, &found);
            tracing::info!(root = %path.display(), state = node.state().name(), "node");
            if let Some(problem) = problem {
                tracing::error!(
                    problem,
                    "a node's journal could not be understood: its pools are sealed"
                );
                self.troubles.set(posture::STATE_LOST, problem);
            }
            self.overrides.nodes.insert(node.actor_set, node.machine().modes());
            self.nodes.nodes.insert(path, node);
        }
    }

    /// The modes that the kernel's maps give the root's pools, by generation. What policy or an
    /// operator has sealed says nothing of the node, and a release neither.
    fn found_modes(&self, root: &Root) -> BTreeMap<u64, NodeMode> {
        // Maps that cannot be read are told of by the reconciliation that follows.
        let pools = self.maps.observed().map(|observed| observed.pools).unwrap_or_default();
        let own = pools.iter().filter(|(key, entry)| {
            entry.actor_set == root.actor_set() && plan::is_own(**key, entry)
        });
        let own = own.map(|(_, entry)| entry);
        let found = |entry: &PoolEntry| match Mode::from_u32(entry.mode)? {
            Mode::Guarded | Mode::Observed => Some((entry.generation, NodeMode::Policy)),
            Mode::Held => Some((entry.generation, NodeMode::Held)),
            Mode::Sealed => {
                let otherwise = root.default_mode() == DefaultMode::Sealed
                    || self.overrides.is_sealed(entry.pool_id);
                (!otherwise).then_some((entry.generation, NodeMode::Sealed))
            }
            Mode::Released => None,
        };
        own.filter_map(found).collect()
    }

    fn start_observers(&mut self) {
        let sender = self.nodes.sender.clone();
        for node in self.nodes.nodes.values_mut().filter(|node| node.observer.is_none()) {
            let (asked, every) = (node.machine().epoch(), node.every());
            node.observer =
                Some(Observer::spawn(node.options.clone(), asked, every, sender.clone()));
        }
    }

    /// Takes what an observer has seen.
    pub fn observed(&mut self, root: &Path, observation: Observation, mounts: &MountWatch) {
        if let Observation::Looked { evidence, .. } = &observation
            && self.nodes.of(root).is_some_and(|node| node.machine().wants_pools_before(evidence))
        {
            self.reconcile(mounts);
        }
        if self.observe(root, observation) {
            self.reconcile(mounts);
        }
    }

    fn observe(&mut self, root: &Path, observation: Observation) -> bool {
        let event = match observation {
            Observation::Looked { asked, evidence } => {
                if let Some(node) = self.nodes.nodes.get_mut(root) {
                    node.seen = Some((now().time, evidence.clone()));
                }
                Event::Looked { asked, evidence }
            }
            Observation::Event(event) => event,
        };
        self.inform_node(root, event)
    }

    /// Tells a node what has happened, which it cannot refuse. Returns whether the maps have to
    /// follow.
    fn inform_node(&mut self, root: &Path, event: Event) -> bool {
        let (changed, result) = self.tell_node(root, event);
        if let Err(refusal) = result {
            tracing::warn!(root = %root.display(), %refusal, "the node has refused to be told what \
                                                              happened");
        }
        changed
    }

    /// Sends an event to a node and carries out what comes of it. Returns whether the maps have to
    /// follow.
    pub(super) fn tell_node(&mut self, root: &Path, event: Event) -> (bool, Result<(), Refusal>) {
        let Some(node) = self.nodes.nodes.get_mut(root) else { return (false, Ok(())) };
        let every = node.every();
        let (effects, result) = node.step(event);
        let mut changed = false;
        for effect in effects {
            // What strengthens is in the kernel before the disk is waited for: see
            // `write_later_journals`.
            if effect == Effect::Persist
                && changed
                && let Some(node) = self.nodes.nodes.get_mut(root)
            {
                node.writes_later = true;
                continue;
            }
            changed |= self.carry_out(root, effect);
        }
        self.judge_journals();
        // A state in which more or less is to be expected than before.
        if let Some(node) = self.nodes.nodes.get(root).filter(|node| node.every() != every)
            && let Some(observer) = &node.observer
        {
            observer.look(node.machine().epoch(), node.every());
        }
        (changed, result)
    }

    fn carry_out(&mut self, root: &Path, effect: Effect) -> bool {
        let Some(node) = self.nodes.nodes.get_mut(root) else { return false };
        match effect {
            Effect::Transition { from, to, because } => {
                self.note_transition(root, &from, &to, because);
                false
            }
            Effect::Persist => {
                node.write();
                // A mode that was withheld before is withheld no longer.
                node.unwritten.is_none() && set_modes(&mut self.overrides, node)
            }
            // Withheld until the journal is written: an agent that starts again must not find an
            // older, stronger state contradicted by what the kernel already allows.
            Effect::SetMode(mode)
                if node.unwritten.is_some() && weakens(&self.overrides, node, mode) =>
            {
                false
            }
            Effect::SetMode(_) => set_modes(&mut self.overrides, node),
            Effect::Look { asked } => {
                let every = node.every();
                if let Some(observer) = &node.observer {
                    observer.look(asked, every);
                }
                false
            }
            Effect::RollBack => {
                self.begin_rollback(root);
                false
            }
        }
    }

    fn note_transition(&mut self, root: &Path, from: &State, to: &State, because: String) {
        tracing::info!(root = %root.display(), from = from.name(), to = to.name(), because, "node");
        let mode = self.node_mode_name(root, to.mode());
        let root = root.display().to_string();
        let (from, to) = (from.name().to_owned(), to.name().to_owned());
        self.write(Body::Node(NodeBody { root, from, to, mode, because }));
    }

    /// The mode that a node's pools have by its state.
    pub(super) fn node_mode_name(
        &self,
        root: &Path,
        mode: NodeMode,
    ) -> crate::model::events::Name<guard_common::Mode> {
        let policy = root_at(&self.policy.policy, root).map(|root| root.default_mode());
        crate::model::events::Name(crate::model::plan::node_mode(
            policy.unwrap_or(DefaultMode::Guarded),
            mode,
        ))
    }

    /// Tells each node which of its pools live. Returns whether the maps have to follow.
    pub(super) fn tell_nodes_of_pools(&mut self) -> bool {
        let roots: Vec<(PathBuf, u32)> =
            self.nodes.nodes.iter().map(|(root, node)| (root.clone(), node.actor_set)).collect();
        let mut changed = false;
        for (root, actor_set) in roots {
            let alive = self.alive(actor_set);
            let known = self.nodes.of(&root).and_then(|node| node.machine().alive().cloned());
            if known.as_ref() != Some(&alive) {
                changed |= self.inform_node(&root, Event::Pools { alive });
            }
        }
        changed
    }

    /// The live pools of a set.
    pub(super) fn alive(&self, actor_set: u32) -> join::Pools {
        let pools = self.pools.values().filter(|known| known.entry.actor_set == actor_set);
        // A visitor is the host's own filesystem, of which a container has a directory: no join has
        // brought it.
        let pools = pools.filter(|known| plan::is_own(known.key, &known.entry));
        pools.map(|known| (known.entry.generation, known.entry.pool_id)).collect()
    }

    /// Writes the journals of nodes whose stronger mode has been brought into the maps. An agent
    /// that dies before that is followed by one that finds the pools sealed, and believes them.
    pub(super) fn write_later_journals(&mut self) {
        for node in self.nodes.nodes.values_mut().filter(|node| node.writes_later) {
            node.write();
        }
        self.judge_journals();
    }

    /// Writes journals that could not be written before. Returns whether the maps have to follow.
    pub(super) fn retry_journals(&mut self) -> bool {
        let mut changed = false;
        for node in self.nodes.nodes.values_mut().filter(|node| node.unwritten.is_some()) {
            node.write();
            if node.unwritten.is_none() {
                changed |= set_modes(&mut self.overrides, node);
            }
        }
        self.judge_journals();
        changed
    }

    fn judge_journals(&mut self) {
        let nodes = &self.nodes;
        let unwritten: Vec<&str> =
            nodes.nodes.values().filter_map(|node| node.unwritten.as_deref()).collect();
        self.troubles
            .set_if(posture::JOURNAL, || (!unwritten.is_empty()).then(|| unwritten.join("; ")));
    }
}

fn weakens(overrides: &Overrides, node: &Node, mode: NodeMode) -> bool {
    overrides.nodes.get(&node.actor_set).is_some_and(|modes| mode < modes.mode)
        || mode == NodeMode::Policy
}

/// Gives a node's pools the modes of its state. Returns whether those are others.
fn set_modes(overrides: &mut Overrides, node: &Node) -> bool {
    let modes = node.machine().modes();
    overrides.nodes.insert(node.actor_set, modes.clone()) != Some(modes)
}

fn options(root: &Root) -> Option<incus::Options> {
    let settings = root.incus()?;
    let executables =
        root.actors().iter().filter_map(|actor| actor.executable()).map(Path::to_owned).collect();
    Some(incus::Options {
        socket: settings.socket().map(Path::to_owned),
        executables,
        ..incus::Options::new(root.path(), settings.unit())
    })
}

fn root_at<'p>(policy: &'p Policy, path: &Path) -> Option<&'p Root> {
    policy.roots().iter().find(|root| root.path() == path)
}
