//! The agent in the model's world: its messages, their order, and its reactions. The machine in it
//! is the real one.

use std::collections::BTreeMap;

use super::message::OWN;
use super::message::{Frame, Message};
use super::world::{CLUSTERS_POOL, Entry, Fault, Join, OWN_POOL, Pool, World};
use crate::model::incus::frames::{Meaning, Own};
use crate::model::join::{
    Config, Daemon, Effect, Epoch, Event, Evidence, JoinOperation, Machine, Membership, NodeMode,
    NodeState, Pools,
};

impl World {
    pub(super) fn send(&mut self, message: Message) {
        // Messages that do not fit are lost, as they would be if nobody read.
        if self.agent.is_some() && self.under_way.len() < self.capacity {
            self.under_way.push(message);
        }
    }

    /// The node's epoch is told from the older ones only: a message is of the present one or it is
    /// not.
    pub(super) fn forget_epoch(&mut self, before: Epoch) {
        let Some(machine) = &mut self.agent else { return };
        if machine.epoch() != before {
            for message in &mut self.under_way {
                if let Message::Evidence { current, .. } = message {
                    *current = false;
                }
            }
        }
        *machine = machine.clone().at_epoch(Epoch(1));
    }

    /// A frame reaches a connected agent; else it is lost, and an agent that reconnects is told
    /// that something may be.
    pub(super) fn tell(&mut self, frame: Frame) {
        if self.followed && self.under_way.len() < self.capacity {
            self.send(Message::Frame(frame));
        } else {
            self.lose();
        }
    }

    pub(super) fn lose(&mut self) {
        if self.followed {
            self.followed = false;
            self.stream = 3 - self.stream;
            // The end of a stream is never lost: an agent that followed it sees it.
            if self.agent.is_some() {
                self.under_way.push(Message::Lost);
            }
        }
    }

    pub(super) fn agent_dies(&mut self) {
        self.agent = None;
        self.under_way.clear();
        self.followed = false;
    }

    /// Takes an event, and carries out its effects until the agent dies.
    pub(super) fn step(
        &mut self,
        fault: Fault,
        event: Event,
        dies_after: Option<usize>,
    ) -> Option<()> {
        let machine = self.agent.take()?;
        let before = machine.epoch();
        let event = match (fault, event) {
            (Fault::DeafToRollback, Event::RollbackEnded { .. }) => Event::EventsLost,
            (_, event) => event,
        };
        let mut effects = Vec::new();
        let (machine, _) = machine.step(event, &mut effects);
        let effects: Vec<Effect> = effects
            .into_iter()
            .filter(|effect| matches!(effect, Effect::Persist | Effect::SetMode(_)))
            .filter(|effect| {
                fault != Fault::NeverWeakens || *effect != Effect::SetMode(NodeMode::Policy)
            })
            .collect();
        if dies_after.is_some_and(|number| number >= effects.len().max(1)) {
            return None;
        }
        for effect in effects.iter().take(dies_after.unwrap_or(effects.len())) {
            match effect {
                Effect::Persist => {
                    self.journal = machine.state().clone();
                    self.memory.clone_from(machine.memory());
                }
                Effect::SetMode(mode) => {
                    if let Some(Pool { entry: Some(entry), .. }) = &mut self.pool {
                        entry.mode = if fault == Fault::TrustsNewPools {
                            *mode
                        } else {
                            machine.modes().of(entry.generation)
                        };
                    }
                }
                _ => {}
            }
        }
        if dies_after.is_some() {
            self.crashes -= 1;
            self.agent_dies();
        } else {
            self.agent = Some(machine);
            self.forget_epoch(before);
        }
        Some(())
    }

    /// The agent finds the pool, or its end.
    pub(super) fn reconcile(&mut self, fault: Fault, dies_after: Option<usize>) -> Option<()> {
        let machine = self.agent.as_ref()?;
        let generation = 3 - self.last_generation;
        if let Some(Pool { entry: entry @ None, clusters }) = &mut self.pool {
            let id = if *clusters { CLUSTERS_POOL } else { OWN_POOL };
            let mode = match fault {
                Fault::NeverWeakens => NodeMode::Sealed,
                Fault::TrustsNewPools => machine.mode(),
                _ => machine.modes().of(generation),
            };
            *entry = Some(Entry { generation, id, mode });
            self.last_generation = generation;
        }
        let alive: Pools = self.entry().iter().map(|entry| (entry.generation, entry.id)).collect();
        if machine.alive() == Some(&alive) {
            return None;
        }
        self.step(fault, Event::Pools { alive }, dies_after)
    }

    pub(super) fn start_agent(&mut self, fault: Fault) {
        let found: BTreeMap<u64, NodeMode> =
            self.entry().iter().map(|entry| (entry.generation, entry.mode)).collect();
        let journal = match fault {
            Fault::LostJournal => NodeState::Standalone,
            _ => self.journal.clone(),
        };
        let machine = Machine::restored(journal, self.memory.clone(), &found);
        // The first reconciliation gives a pool with an entry the mode that the agent starts with.
        if let Some(Pool { entry: Some(entry), .. }) = &mut self.pool {
            entry.mode = machine.modes().of(entry.generation);
        }
        self.agent = Some(machine);
    }

    /// Nothing is under way. A world with a message under way, if nothing goes wrong any more, ends
    /// like the one in which it has arrived: that one is reached too.
    pub(super) fn is_quiet(&self) -> bool {
        self.under_way.is_empty()
    }

    /// The world in which nothing goes wrong any more: the agent runs, every message arrives, and
    /// it looks.
    pub(super) fn settled(&self, fault: Fault) -> Self {
        let mut world = self.clone();
        world.silent = true;
        if world.join == Join::Failed {
            world.join = Join::None;
        }
        if world.agent.is_none() {
            world.start_agent(fault);
        }
        for _ in 0..6 {
            while !world.under_way.is_empty() {
                let message = world.under_way.remove(0);
                world.deliver(fault, message, None);
            }
            world.reconcile(fault, None);
            world.observe(fault, true, true);
        }
        while !world.under_way.is_empty() {
            let message = world.under_way.remove(0);
            world.deliver(fault, message, None);
        }
        world
    }

    /// A wipe leaves nothing. A fresh daemon starts on it.
    pub(super) fn wiped(&self, fault: Fault) -> Self {
        let mut world = self.settled(fault);
        (world.address, world.raft, world.member, world.rows) = (false, false, false, false);
        (world.pool, world.join, world.unheard) = (None, Join::None, false);
        world.reconcile(fault, None);
        let evidence =
            Evidence { config: Config::Absent, daemon: Daemon::Stopped, ..Evidence::none() };
        world.deliver(fault, Message::Evidence { current: true, joins: false, evidence }, None);
        world.daemon = Some(9);
        world.settled(fault)
    }

    /// An operator's word that the mounted pool is the node's own.
    pub(super) fn adopted(&self, fault: Fault) -> Self {
        let mut world = self.clone();
        if fault != Fault::DeafToOperator {
            world.step(fault, Event::Adopted { by: String::new() }, None);
        }
        world.settled(fault)
    }

    pub(super) fn observe(&mut self, fault: Fault, config: bool, answers: bool) {
        let evidence = self.evidence(fault, config, answers);
        if evidence.unanswered_seconds == 0 && matches!(evidence.membership, Membership::Member) {
            self.silent = false;
        }
        let is_answered = !matches!(evidence.operation, JoinOperation::Unknown);
        let joins = matches!(self.join, Join::Running | Join::Failed);
        self.send(Message::Evidence { current: true, joins, evidence });
        // From an answer on, the stream is connected.
        self.followed |= is_answered;
    }

    pub(super) fn deliver(
        &mut self,
        fault: Fault,
        message: Message,
        dies_after: Option<usize>,
    ) -> Option<()> {
        let mut message = message;
        if let Message::Evidence { evidence, .. } = &message
            && self.agent.as_ref()?.wants_pools_before(evidence)
        {
            // The pools that are found may overtake the look.
            self.under_way.push(message);
            self.reconcile(fault, None);
            message = self.under_way.pop()?;
        }
        let epoch = self.agent.as_ref()?.epoch();
        let survives = dies_after != Some(0);
        let event = match message {
            Message::Evidence { current, mut evidence, .. } => {
                let asked = if current || fault == Fault::NoEpochs { epoch } else { Epoch(0) };
                if fault == Fault::LossIsProof
                    && matches!(evidence.config, Config::Unreadable { .. })
                {
                    evidence.config =
                        Config::Read { cluster_address: None, raft_nodes: 0, name: None };
                }
                if fault == Fault::SilenceIsProof && evidence.unanswered_seconds > 0 {
                    evidence.membership = Membership::NotListed;
                }
                if let Config::Read { raft_nodes, .. } = evidence.config {
                    // Looks are made one at a time: no older answer takes back a newer one.
                    self.clustered = raft_nodes > 0 || self.clustered && self.raft;
                }
                // A silence from before the removal says nothing of it: word of it, or of the end of
                // the stream that would have told, is still under way then.
                let word = [Message::Frame(Frame::Removed), Message::Lost];
                let is_due = word.iter().any(|word| self.under_way.contains(word));
                if current && survives && evidence.unanswered_seconds > 0 && !is_due {
                    self.unheard = false;
                }
                Event::Observed { asked, evidence }
            }
            Message::Frame(frame) => {
                let own = match fault {
                    Fault::OthersFrames => Own::Alone,
                    _ if self.clustered => Own::Named(OWN),
                    _ => Own::Alone,
                };
                if frame == Frame::Removed && survives {
                    self.unheard = false;
                }
                match frame.report().meaning(own) {
                    Meaning::Event(Event::MemberRemoved) if fault == Fault::DeafToRemoval => {
                        return Some(());
                    }
                    Meaning::Event(event) => event,
                    Meaning::LookAgain | Meaning::Nothing => return Some(()),
                }
            }
            Message::Lost => Event::EventsLost,
        };
        self.step(fault, event, dies_after)
    }

    /// Whether a message under way speaks about this node's own place in a cluster.
    pub(super) fn says_something(message: &Message) -> bool {
        match message {
            Message::Frame(Frame::Other(_)) | Message::Lost => false,
            Message::Frame(_) => true,
            Message::Evidence { evidence, joins, .. } => {
                let config = match &evidence.config {
                    Config::Read { raft_nodes, .. } => *raft_nodes == 0,
                    Config::Absent => true,
                    Config::Unreadable { .. } => false,
                };
                config || *joins || evidence.membership == Membership::NotClustered
            }
        }
    }
}
