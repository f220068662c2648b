//! The true node, what of it reaches the agent, the agent, and the kernel's entry of the pool.

use std::collections::{BTreeMap, BTreeSet};

use crate::join::{
    Config, Daemon, Effect, Epoch, Event, Evidence, Incarnation, JoinOperation, Machine, Membership,
    NodeMode, State,
};

/// Where the true join stands. The steps are those at whose ends different things are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Join {
    None,
    /// The address is set, the operation does not exist yet.
    Configured,
    /// The operation runs; its pools are mounted, or not yet.
    Running,
}

/// The pool's superblock. There is at most one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pool {
    /// Mounted by a join, or by a daemon that thinks of one: the cluster's data. Else the node's own.
    pub(super) clusters: bool,
    /// Its entry in the kernel; without one it is denied as unclassified.
    pub(super) entry: Option<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    /// 1 and 2 in turn: a generation is never that of the entry before.
    pub(super) generation: u64,
    pub(super) mode: NodeMode,
}

/// What is under way to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Message {
    Evidence { current: bool, evidence: Evidence },
    Began,
    Ended { succeeded: bool },
    Disabled,
    Lost,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    // The truth.
    pub(super) address: bool,
    pub(super) raft: bool,
    pub(super) member: bool,
    pub(super) daemon: Option<u32>,
    pub(super) last_life: u32,
    /// The daemon has been running for longer than the grace.
    pub(super) old: bool,
    pub(super) join: Join,
    pub(super) pool: Option<Pool>,
    pub(super) last_generation: u64,
    // The agent: its machine, what it has written down, and the mode for new entries.
    pub(super) agent: Option<Machine>,
    pub(super) journal: State,
    pub(super) under_way: Vec<Message>,
    // A release of the pool: ticks until its end.
    pub(super) release: Option<u8>,
    // How much may still happen.
    pub(super) crashes: u8,
    pub(super) kills: u8,
    pub(super) starts: u8,
    pub(super) joins: u8,
    pub(super) releases: u8,
    pub(super) room: usize,
}

/// What is broken in the machine or in its surroundings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The kernel allows what is unclassified.
    OpenKernel,
    /// A configuration that cannot be read counts as none.
    LossIsProof,
    /// Answers to old questions count.
    NoEpochs,
    /// A new pool has the mode of those that a look has spoken for.
    TrustsNewPools,
    /// A release does not end.
    EndlessLease,
    /// The end of a rollback is not heard.
    DeafToRollback,
    /// Sealed is for ever.
    NeverWeakens,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    // The node.
    Configure,
    Begin,
    Mount,
    SetRaft,
    BecomeMember,
    End { succeeded: bool },
    Kill,
    Start,
    GrowOld,
    MountOwn,
    Unmount,
    ClearAddress,
    Reinstall,
    Removed,
    // What reaches the agent.
    Look { config: bool, answers: bool },
    Deliver { index: usize, keep: bool, dies_after: Option<usize> },
    Drop { index: usize },
    // The agent.
    Reconcile { dies_after: Option<usize> },
    Crash,
    StartAgent,
    RollBack,
    // The operator and the clock.
    Release,
    Tick,
}

/// How often each of what could happen without end does happen at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) crashes: u8,
    pub(super) kills: u8,
    pub(super) starts: u8,
    pub(super) joins: u8,
    pub(super) releases: u8,
    /// Messages that are under way at once.
    pub(super) under_way: usize,
}

const ADDRESS: &str = "10.0.0.2:8443";
pub(super) const RELEASE_TICKS: u8 = 2;

impl World {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            address: false,
            raft: false,
            member: false,
            daemon: Some(1),
            last_life: 1,
            old: true,
            join: Join::None,
            pool: None,
            last_generation: 2,
            agent: Some(Machine::unknown()),
            journal: Machine::unknown().state().clone(),
            under_way: Vec::new(),
            release: None,
            crashes: bounds.crashes,
            kills: bounds.kills,
            starts: bounds.starts,
            joins: bounds.joins,
            releases: bounds.releases,
            room: bounds.under_way,
        }
    }

    /// What truth requires: the cluster's data on a node that is no member is for nobody to delete.
    pub(super) fn must_be_sealed(&self) -> bool {
        self.pool.is_some_and(|pool| pool.clusters) && !self.member
    }

    fn incarnation(life: u32) -> Incarnation {
        Incarnation { boot_id: "boot".to_owned(), pid: life, start_ticks: 0 }
    }

    fn evidence(&self, config: bool, answers: bool) -> Evidence {
        let config = if config {
            let cluster_address = self.address.then(|| ADDRESS.to_owned());
            Config::Read { cluster_address, raft_nodes: u32::from(self.raft) }
        } else {
            Config::Unreadable { why: String::new() }
        };
        let Some(life) = self.daemon else {
            let (operation, membership) = (JoinOperation::Unknown, Membership::NotAsked);
            return Evidence { config, daemon: Daemon::Stopped, operation, membership };
        };
        let age_seconds = if self.old { 1000 } else { 0 };
        let daemon = Daemon::Running { incarnation: Self::incarnation(life), age_seconds };
        let (operation, membership) = match (answers, self.join) {
            (false, _) => (JoinOperation::Unknown, Membership::NoAnswer { why: String::new() }),
            (true, Join::Running) if !self.member => (JoinOperation::Running, Membership::NotClustered),
            (true, join) => {
                let operation =
                    if join == Join::Running { JoinOperation::Running } else { JoinOperation::None };
                let membership = match (self.member, self.raft) {
                    (true, _) => Membership::Member,
                    // A daemon with raft nodes and no membership never gets its database.
                    (false, true) => Membership::NoAnswer { why: String::new() },
                    (false, false) => Membership::NotClustered,
                };
                (operation, membership)
            }
        };
        Evidence { config, daemon, operation, membership }
    }

    fn send(&mut self, message: Message) {
        // What does not fit is lost, as it would be if nobody read.
        if self.agent.is_some() && self.under_way.len() < self.room {
            self.under_way.push(message);
        }
    }

    /// The node's epoch is told from the older ones only: a message is of the present one or it is not.
    fn forget_epoch(&mut self, before: Epoch) {
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

    fn agent_dies(&mut self) {
        self.agent = None;
        self.under_way.clear();
    }

    /// Takes an event, and carries out its effects until the agent dies.
    fn step(&mut self, fault: Fault, event: Event, dies_after: Option<usize>) -> Option<()> {
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
            .filter(|effect| fault != Fault::NeverWeakens || *effect != Effect::SetMode(NodeMode::Policy))
            .collect();
        if dies_after.is_some_and(|number| number >= effects.len().max(1)) {
            return None;
        }
        for effect in effects.iter().take(dies_after.unwrap_or(effects.len())) {
            match effect {
                Effect::Persist => self.journal = machine.state().clone(),
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
    fn reconcile(&mut self, fault: Fault, dies_after: Option<usize>) -> Option<()> {
        let machine = self.agent.as_ref()?;
        let generation = 3 - self.last_generation;
        if let Some(Pool { entry: entry @ None, .. }) = &mut self.pool {
            let mode = match fault {
                Fault::NeverWeakens => NodeMode::Sealed,
                Fault::TrustsNewPools => machine.mode(),
                _ => machine.modes().of(generation),
            };
            *entry = Some(Entry { generation, mode });
            self.last_generation = generation;
        }
        let alive: BTreeSet<u64> = self.entry().iter().map(|entry| entry.generation).collect();
        if machine.alive() == Some(&alive) {
            return None;
        }
        self.step(fault, Event::Pools { alive }, dies_after)
    }

    pub(super) fn entry(&self) -> Option<Entry> {
        self.pool?.entry
    }

    fn start_agent(&mut self) {
        let found: BTreeMap<u64, NodeMode> =
            self.entry().iter().map(|entry| (entry.generation, entry.mode)).collect();
        let machine = Machine::restored(self.journal.clone(), &found);
        // The first reconciliation gives what has an entry the mode that the agent starts with.
        if let Some(Pool { entry: Some(entry), .. }) = &mut self.pool {
            entry.mode = machine.modes().of(entry.generation);
        }
        self.agent = Some(machine);
    }

    /// What happens if nothing goes wrong any more: the agent runs, every message arrives, and it looks.
    pub(super) fn settled(&self, fault: Fault) -> Self {
        let mut world = self.clone();
        world.old = true;
        if world.agent.is_none() {
            world.start_agent();
        }
        for _ in 0..6 {
            while let Some(message) = world.under_way.pop() {
                world.deliver(fault, message, None);
            }
            world.reconcile(fault, None);
            let evidence = world.evidence(true, true);
            world.deliver(fault, Message::Evidence { current: true, evidence }, None);
        }
        world
    }

    fn deliver(&mut self, fault: Fault, message: Message, dies_after: Option<usize>) -> Option<()> {
        let mut message = message;
        if matches!(message, Message::Evidence { .. }) && self.agent.as_ref()?.mode() == NodeMode::Sealed {
            // What the look can speak for was mounted before it. It may be overtaken by what is found.
            self.under_way.push(message);
            self.reconcile(fault, None);
            message = self.under_way.pop()?;
        }
        let epoch = self.agent.as_ref()?.epoch();
        let event = match message {
            Message::Evidence { current, mut evidence } => {
                let asked = if current || fault == Fault::NoEpochs { epoch } else { Epoch(0) };
                if fault == Fault::LossIsProof && matches!(evidence.config, Config::Unreadable { .. }) {
                    evidence.config = Config::Read { cluster_address: None, raft_nodes: 0 };
                }
                Event::Looked { asked, evidence }
            }
            Message::Began => Event::JoinBegan,
            Message::Ended { succeeded } => Event::JoinEnded { succeeded },
            Message::Disabled => Event::ClusterDisabled,
            Message::Lost => Event::EventsLost,
        };
        self.step(fault, event, dies_after)
    }

    pub(super) fn mount(&mut self, clusters: bool) {
        self.pool = Some(Pool { clusters, entry: None });
    }

    pub(super) fn act(&mut self, fault: Fault, action: Action) -> Option<()> {
        match action {
            Action::Configure => (self.address, self.join) = (true, Join::Configured),
            Action::Begin => {
                self.joins -= 1;
                self.join = Join::Running;
                self.send(Message::Began);
            }
            Action::Mount => self.mount(true),
            Action::SetRaft => self.raft = true,
            Action::BecomeMember => self.member = true,
            Action::End { succeeded } => {
                self.join = Join::None;
                self.send(Message::Ended { succeeded });
            }
            Action::Kill => {
                self.kills -= 1;
                (self.daemon, self.join) = (None, Join::None);
                self.send(Message::Lost);
            }
            Action::Start => {
                self.starts -= 1;
                self.last_life += 1;
                (self.daemon, self.old) = (Some(self.last_life), false);
                if self.address && self.pool.is_none() {
                    self.mount(true);
                }
            }
            Action::GrowOld => self.old = true,
            Action::MountOwn => self.mount(false),
            Action::Unmount => (self.pool, self.release) = (None, None),
            Action::ClearAddress => self.address = false,
            Action::Reinstall => (self.address, self.raft) = (false, false),
            Action::Removed => {
                // An online member that is removed unmounts its pools, keeps its address, and is told.
                (self.member, self.raft, self.pool, self.release) = (false, false, None, None);
                self.send(Message::Disabled);
            }
            Action::Look { config, answers } => {
                let evidence = self.evidence(config, answers);
                self.send(Message::Evidence { current: true, evidence });
            }
            Action::Deliver { index, keep, dies_after } => {
                let message = self.under_way.get(index)?.clone();
                if !keep {
                    self.under_way.remove(index);
                }
                self.deliver(fault, message, dies_after)?;
            }
            Action::Drop { index } => drop(self.under_way.remove(index)),
            Action::Reconcile { dies_after } => self.reconcile(fault, dies_after)?,
            Action::Crash => {
                self.crashes -= 1;
                self.agent_dies();
            }
            Action::StartAgent => self.start_agent(),
            Action::RollBack => {
                self.step(fault, Event::RollbackAsked { by: String::new() }, None)?;
                if *self.agent.as_ref()?.state() != State::RollingBack {
                    return None;
                }
                (self.pool, self.release) = (None, None);
                self.step(fault, Event::RollbackEnded { alive: BTreeSet::new() }, None)?;
            }
            Action::Release => {
                self.releases -= 1;
                self.release = Some(RELEASE_TICKS);
            }
            Action::Tick => match &mut self.release {
                Some(0) | None => return None,
                Some(left) if fault != Fault::EndlessLease => *left -= 1,
                Some(_) => return None,
            },
        }
        Some(())
    }

    /// Whether the kernel lets somebody who is no actor delete.
    pub(super) fn anyone_deletes(&self, fault: Fault) -> bool {
        let Some(pool) = self.pool else { return false };
        let released = self.release.is_some_and(|left| left > 0);
        released || (fault == Fault::OpenKernel && pool.entry.is_none())
    }

    /// Whether the kernel lets the storage daemon delete.
    pub(super) fn actor_deletes(&self) -> bool {
        self.entry().is_some_and(|entry| entry.mode == NodeMode::Policy)
    }
}
