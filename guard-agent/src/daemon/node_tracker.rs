//! The nodes whose way into a cluster is followed: one state machine, journal and observer for each
//! root that policy says so of. Decisions are `join`'s; here its effects on journals, observers and
//! modes are applied. Changes for the audit log and mounts are returned.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::node::Node;
use super::rollback::Rollbacks;
use crate::host::clock::now;
use crate::host::incus;
use crate::host::incus::{Observation, Observer};
use crate::host::paths;
use crate::model::join::{Effect, Event, NodeMode, NodeRefusal, NodeState, PoolModes};
use crate::model::policy::{Policy, Root};

/// Longest wait of a start for a first look at its nodes, so that a healthy one is guarded from the
/// first moment.
const FIRST_OBSERVATION: Duration = Duration::from_secs(3);
/// Observations that wait for the agent.
const WAITING: usize = 256;

/// All nodes, by their guarded root.
#[derive(Debug)]
pub(super) struct NodeTracker {
    directory: PathBuf,
    sender: mpsc::Sender<(Arc<Path>, Observation)>,
    nodes: BTreeMap<PathBuf, Node>,
    /// The modes that follow from the nodes' states, by the actor set of the node's root. A root
    /// without an entry is no node.
    modes: BTreeMap<u32, PoolModes>,
    pub rollbacks: Rollbacks,
    /// When the preparation of a join ends by itself.
    pub prepared: BTreeMap<PathBuf, Instant>,
}

/// A change of a node's state, for the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeChange {
    pub from: NodeState,
    pub to: NodeState,
    pub because: String,
}

/// Result of an event.
#[derive(Debug)]
pub(super) struct NodeOutcome {
    /// The kernel's maps have to follow.
    pub changed: bool,
    pub changes: Vec<NodeChange>,
    /// A rollback is to begin.
    pub rolls_back: bool,
    pub result: Result<(), NodeRefusal>,
}

impl NodeTracker {
    /// The other end is for the agent's loop.
    pub(super) fn new(
        state_dir: &Path,
        rollbacks: Rollbacks,
    ) -> (Self, mpsc::Receiver<(Arc<Path>, Observation)>) {
        let (sender, observations) = mpsc::channel(WAITING);
        let tracker = Self {
            directory: state_dir.join(paths::NODES_NAME),
            sender,
            nodes: BTreeMap::new(),
            modes: BTreeMap::new(),
            rollbacks,
            prepared: BTreeMap::new(),
        };
        (tracker, observations)
    }

    /// All nodes, with their roots.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Path, &Node)> {
        self.nodes.iter().map(|(root, node)| (root.as_path(), node))
    }

    /// The node of a root.
    pub(super) fn of(&self, root: &Path) -> Option<&Node> {
        self.nodes.get(root)
    }

    /// The modes that follow from the nodes' states, by actor set.
    pub(super) fn modes(&self) -> &BTreeMap<u32, PoolModes> {
        &self.modes
    }

    /// Makes the nodes those of the policy. A root that is followed no longer falls back to the
    /// policy's mode. `found`: the modes that the kernel's maps give a root's pools, by generation.
    /// Returns the problems with journals.
    pub(super) fn follow(
        &mut self,
        policy: &Policy,
        found: impl Fn(&Root) -> BTreeMap<u64, NodeMode>,
    ) -> Option<String> {
        let options_of = |root: &Root| Some((root.path().to_owned(), options(root)?));
        let wanted: BTreeMap<PathBuf, incus::Options> =
            policy.roots().iter().filter_map(options_of).collect();
        let is_other = |root: &PathBuf, node: &Node| wanted.get(root) != Some(&node.options);
        let others = self.nodes.iter().filter(|(root, node)| is_other(root, node));
        let gone: Vec<PathBuf> = others.map(|(root, _)| root.clone()).collect();
        gone.iter().for_each(|root| self.forget(root));
        let mut problem = None;
        for (path, options) in wanted {
            let Some(root) = root_at(policy, &path) else { continue };
            if self.nodes.contains_key(&path) {
                continue;
            }
            let (node, wrong) = Node::open(&self.directory, root, options, &found(root));
            tracing::info!(root = %path.display(), state = node.state().name(), "node");
            if let Some(wrong) = wrong {
                tracing::error!(
                    problem = wrong,
                    "a node's journal could not be understood: its pools are sealed"
                );
                problem = Some(wrong);
            }
            self.modes.insert(node.actor_set, node.machine().modes());
            self.nodes.insert(path, node);
        }
        problem
    }

    fn forget(&mut self, root: &Path) {
        let Some(mut node) = self.nodes.remove(root) else { return };
        if node.writes_later || node.unwritten.is_some() {
            // The last chance: an agent that follows the root again has only the file.
            node.write();
        }
        self.modes.remove(&node.actor_set);
        tracing::info!(root = %root.display(), "the node is followed no longer, or otherwise");
    }

    /// Starts the observers of nodes that have none.
    pub(super) fn start_observers(&mut self) {
        for node in self.nodes.values_mut().filter(|node| node.observer.is_none()) {
            let (asked, every) = (node.machine().epoch(), node.every());
            let (options, sender) = (node.options.clone(), self.sender.clone());
            node.observer = Some(Observer::spawn(options, asked, every, sender));
        }
    }

    /// Observes some of the nodes once, before they have observers.
    pub(super) async fn observe_once(
        &self,
        which: impl Fn(&Node) -> bool,
    ) -> Vec<(PathBuf, Observation)> {
        let mut tasks = JoinSet::new();
        for (root, node) in self.nodes.iter().filter(|(_, node)| which(node)) {
            let (root, asked) = (root.clone(), node.machine().epoch());
            let options = node.options.clone();
            tasks.spawn(async move {
                let evidence = incus::observe_once(options, FIRST_OBSERVATION).await;
                (root, Observation::Evidence { asked, evidence })
            });
        }
        let mut observations = Vec::new();
        while let Some(task) = tasks.join_next().await {
            // A task that has panicked has observed nothing.
            observations.extend(task.ok());
        }
        observations
    }

    /// Takes an observer's observation.
    pub(super) fn observed(&mut self, root: &Path, observation: Observation) -> NodeOutcome {
        let event = match observation {
            Observation::Evidence { asked, evidence } => {
                if let Some(node) = self.nodes.get_mut(root) {
                    node.seen = Some((now().time, evidence.clone()));
                }
                Event::Observed { asked, evidence }
            }
            Observation::Event(event) => event,
        };
        self.tell(root, event)
    }

    /// Sends an event to a node, and applies its effects here.
    pub(super) fn tell(&mut self, root: &Path, event: Event) -> NodeOutcome {
        let mut told =
            NodeOutcome { changed: false, changes: Vec::new(), rolls_back: false, result: Ok(()) };
        let Some(node) = self.nodes.get_mut(root) else { return told };
        let every = node.every();
        let (effects, result) = node.step(event);
        told.result = result;
        for effect in effects {
            match effect {
                Effect::Transition { from, to, because } => {
                    let (old, new) = (from.name(), to.name());
                    tracing::info!(root = %root.display(), from = old, to = new, because, "node");
                    told.changes.push(NodeChange { from, to, because });
                }
                // A stronger mode is in the kernel before the disk is waited for: see
                // `write_later`.
                Effect::Persist if told.changed => node.writes_later = true,
                Effect::Persist => {
                    node.write();
                    // A mode that was withheld before is withheld no longer.
                    told.changed |= node.unwritten.is_none() && set_modes(&mut self.modes, node);
                }
                // Withheld until the journal is written: an agent that starts again must not find
                // an older, stronger state contradicted by the kernel's present permissions.
                Effect::SetMode(mode)
                    if node.unwritten.is_some() && weakens(&self.modes, node, mode) => {}
                Effect::SetMode(_) => told.changed |= set_modes(&mut self.modes, node),
                Effect::Observe { asked } => {
                    if let Some(observer) = &node.observer {
                        observer.observe(asked, node.every());
                    }
                }
                Effect::RollBack => told.rolls_back = true,
            }
        }
        // A state in which more or less is to be expected than before.
        if node.every() != every
            && let Some(observer) = &node.observer
        {
            observer.observe(node.machine().epoch(), node.every());
        }
        told
    }

    /// Writes the journals of nodes whose stronger mode has been brought into the maps. An agent
    /// that dies before that is followed by one that finds the pools sealed, and believes them.
    pub(super) fn write_later(&mut self) {
        for node in self.nodes.values_mut().filter(|node| node.writes_later) {
            node.write();
        }
    }

    /// Writes journals that could not be written before. Returns whether the maps have to follow.
    pub(super) fn retry(&mut self) -> bool {
        let mut changed = false;
        for node in self.nodes.values_mut().filter(|node| node.unwritten.is_some()) {
            node.write();
            if node.unwritten.is_none() {
                changed |= set_modes(&mut self.modes, node);
            }
        }
        changed
    }

    /// Why journals on disk are not current, if some are not.
    pub(super) fn unwritten(&self) -> Option<String> {
        let unwritten = self.nodes.values().filter_map(|node| node.unwritten.as_deref());
        let unwritten: Vec<&str> = unwritten.collect();
        (!unwritten.is_empty()).then(|| unwritten.join("; "))
    }
}

fn weakens(modes: &BTreeMap<u32, PoolModes>, node: &Node, mode: NodeMode) -> bool {
    modes.get(&node.actor_set).is_some_and(|modes| mode < modes.mode) || mode == NodeMode::Policy
}

/// Gives a node's pools the modes of its state. Returns whether those are others.
fn set_modes(all: &mut BTreeMap<u32, PoolModes>, node: &Node) -> bool {
    let modes = node.machine().modes();
    all.insert(node.actor_set, modes.clone()) != Some(modes)
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

/// The root of the policy at a path.
pub(super) fn root_at<'p>(policy: &'p Policy, path: &Path) -> Option<&'p Root> {
    policy.roots().iter().find(|root| root.path() == path)
}

#[cfg(test)]
#[path = "node_tracker_tests.rs"]
mod tests;
