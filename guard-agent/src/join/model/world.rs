//! The true node, what of it reaches the agent, the agent, and the kernel's entry of the pool.

use std::collections::BTreeMap;

use crate::incus::frames::{Meaning, News, Own, Report};
use crate::join::{
    Config, Daemon, Effect, Epoch, Event, Evidence, HOLD_SECONDS, Incarnation, JoinOperation, Machine,
    Membership, Memory, NodeMode, Pools, State,
};

/// Where the true join stands. The steps are those at whose ends different things are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Join {
    None,
    /// The address is set, the operation does not exist yet.
    Configured,
    /// The operation runs; its pools are mounted, or not yet.
    Running,
    /// It has failed, and is still listed.
    Failed,
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
    pub(super) id: u64,
    pub(super) mode: NodeMode,
}

/// What is under way to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Message {
    /// `joins`: the node itself was joining, or had just failed to, when it was looked at.
    Evidence {
        current: bool,
        joins: bool,
        evidence: Evidence,
    },
    Frame(Frame),
    Lost,
}

/// What the event stream tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Frame {
    Began,
    Ended {
        succeeded: bool,
    },
    Disabled,
    Removed,
    /// Of another member: what it says of itself.
    Other(Other),
}

/// What happens on another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Other {
    Began,
    Failed,
    Disabled,
    Removed,
}

impl Frame {
    /// As Incus sends it.
    fn report(self) -> Report {
        let failed = || News::JoinFailed { error: String::new() };
        let ended = |succeeded| News::Event(Event::JoinEnded { succeeded });
        let (sender, news) = match self {
            Self::Began => (OWN, News::Event(Event::JoinBegan)),
            Self::Ended { succeeded: false } => (OWN, failed()),
            Self::Ended { succeeded } => (OWN, ended(succeeded)),
            Self::Disabled => (OWN, News::Event(Event::ClusterDisabled)),
            Self::Removed => (OTHER, News::Removed { member: OWN.to_owned() }),
            Self::Other(Other::Began) => (OTHER, News::Event(Event::JoinBegan)),
            // One that has given up has no name any more.
            Self::Other(Other::Failed) => ("", failed()),
            Self::Other(Other::Disabled) => (OTHER, News::Event(Event::ClusterDisabled)),
            Self::Other(Other::Removed) => (OTHER, News::Removed { member: OTHER.to_owned() }),
        };
        Report { news, sender: sender.to_owned() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    // The truth.
    pub(super) address: bool,
    pub(super) raft: bool,
    pub(super) member: bool,
    pub(super) daemon: Option<u32>,
    pub(super) last_life: u32,
    pub(super) join: Join,
    /// The node's database has the cluster's pool: its daemon mounts it at every start.
    pub(super) rows: bool,
    /// Another member joins; a daemon that is asked for the cluster tells so.
    pub(super) other_joins: bool,
    /// The node was removed by force, and no agent has heard of it or waited for long in vain.
    pub(super) unheard: bool,
    pub(super) pool: Option<Pool>,
    pub(super) last_generation: u64,
    // The agent: its machine, what it has written down, and the mode for new entries.
    pub(super) agent: Option<Machine>,
    pub(super) journal: State,
    /// What it has written down of the node's pools.
    pub(super) memory: Memory,
    pub(super) under_way: Vec<Message>,
    /// The event stream is connected, and which one: 1 and 2 in turn.
    pub(super) followed: bool,
    pub(super) stream: u64,
    /// The last configuration that the agent has seen names a cluster.
    pub(super) clustered: bool,
    /// The database has not answered for long.
    pub(super) silent: bool,
    /// A healthy member's guests were denied by what says nothing about it.
    pub(super) harmed: bool,
    // A release of the pool: ticks until its end.
    pub(super) release: Option<u8>,
    // How much may still happen.
    pub(super) crashes: u8,
    pub(super) kills: u8,
    pub(super) starts: u8,
    pub(super) joins: u8,
    pub(super) releases: u8,
    pub(super) removals: u8,
    pub(super) others: u8,
    pub(super) silences: u8,
    pub(super) mounts: u8,
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
    /// What the event stream tells of other members counts as this one's.
    OthersFrames,
    /// The daemon is asked for the operations of the whole cluster.
    OthersOperations,
    /// A removal by force is not heard.
    DeafToRemoval,
    /// A long silence counts as proof that the node is no member.
    SilenceIsProof,
    /// A socket is asked that nobody serves.
    WrongSocket,
    /// A journal that is lost counts as that of a standalone server.
    LostJournal,
    /// An operator's word is not heard.
    DeafToOperator,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    // The node.
    Configure,
    Begin,
    Mount,
    SetRaft,
    BecomeMember,
    End {
        succeeded: bool,
    },
    Kill,
    Start,
    GrowSilent,
    /// What has failed is listed no more.
    Unlist,
    MountOwn,
    Unmount,
    ClearAddress,
    Reinstall,
    Removed,
    RemovedByForce,
    // The other members.
    Others {
        join: bool,
    },
    Tells(Other),
    // What reaches the agent.
    Look {
        config: bool,
        answers: bool,
    },
    Deliver {
        index: usize,
        keep: bool,
        dies_after: Option<usize>,
    },
    Drop {
        index: usize,
    },
    // The agent.
    Reconcile {
        dies_after: Option<usize>,
    },
    Crash,
    StartAgent,
    RollBack,
    // The operator and the clock.
    Forget,
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
    /// Removals by force.
    pub(super) removals: u8,
    /// Things that other members do.
    pub(super) others: u8,
    /// Times that the database is silent for long.
    pub(super) silences: u8,
    /// Mounts of a pool of its own.
    pub(super) mounts: u8,
    /// Messages that are under way at once.
    pub(super) under_way: usize,
}

const ADDRESS: &str = "10.0.0.2:8443";
const OWN: &str = "node2";
const OTHER: &str = "node3";
/// Lasting ids of the node's own pool, and of the cluster's.
const OWN_POOL: u64 = 11;
const CLUSTERS_POOL: u64 = 22;
pub(super) const RELEASE_TICKS: u8 = 2;

impl World {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            address: false,
            raft: false,
            member: false,
            daemon: Some(1),
            last_life: 1,
            join: Join::None,
            rows: false,
            other_joins: false,
            unheard: false,
            pool: None,
            last_generation: 2,
            agent: Some(Machine::unknown()),
            journal: Machine::unknown().state().clone(),
            memory: Memory::default(),
            under_way: Vec::new(),
            followed: false,
            stream: 1,
            clustered: false,
            silent: false,
            harmed: false,
            release: None,
            crashes: bounds.crashes,
            kills: bounds.kills,
            starts: bounds.starts,
            joins: bounds.joins,
            releases: bounds.releases,
            removals: bounds.removals,
            others: bounds.others,
            silences: bounds.silences,
            mounts: bounds.mounts,
            room: bounds.under_way,
        }
    }

    /// What truth requires: the cluster's data on a node that is no member is for nobody to delete. (Until it can be
    /// known that it is none any more.)
    pub(super) fn must_be_sealed(&self) -> bool {
        self.pool.is_some_and(|pool| pool.clusters) && !self.member && !self.unheard
    }

    fn incarnation(life: u32) -> Incarnation {
        Incarnation { boot_id: "boot".to_owned(), pid: life, start_ticks: 0 }
    }

    fn evidence(&self, fault: Fault, config: bool, answers: bool) -> Evidence {
        let answers = answers && fault != Fault::WrongSocket;
        let config = if config {
            let cluster_address = self.address.then(|| ADDRESS.to_owned());
            let name = self.raft.then(|| OWN.to_owned());
            Config::Read { cluster_address, raft_nodes: u32::from(self.raft), name }
        } else {
            Config::Unreadable { why: String::new() }
        };
        let no_answer = || Membership::NoAnswer { why: String::new() };
        let mut evidence = Evidence { config, daemon: Daemon::Stopped, ..Evidence::none() };
        if let Some(life) = self.daemon {
            evidence.daemon = Daemon::Running { incarnation: Self::incarnation(life), age_seconds: 0 };
            (evidence.operation, evidence.membership) = match (answers, self.member, self.raft) {
                (false, ..) => (JoinOperation::Unknown, no_answer()),
                // Whoever asks all members waits for the slowest.
                (true, true, _) if fault == Fault::OthersOperations && self.other_joins => {
                    (self.operation(fault), no_answer())
                }
                (true, true, _) => (self.operation(fault), Membership::Member),
                // A daemon with raft nodes and no membership never gets its database.
                (true, false, true) => (self.operation(fault), no_answer()),
                (true, false, false) => (self.operation(fault), Membership::NotClustered),
            };
            evidence.stream = Some(self.stream).filter(|_| answers && self.followed);
        }
        let is_answered = matches!(&evidence.config, Config::Read { raft_nodes: 0, .. })
            || matches!(evidence.membership, Membership::Member | Membership::NotClustered);
        if self.silent && !is_answered {
            evidence.unanswered_seconds = HOLD_SECONDS;
        }
        evidence
    }

    fn operation(&self, fault: Fault) -> JoinOperation {
        match self.join {
            Join::Running => JoinOperation::Running,
            _ if fault == Fault::OthersOperations && self.other_joins => JoinOperation::Running,
            Join::Failed => JoinOperation::Failed,
            Join::None | Join::Configured => JoinOperation::None,
        }
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

    /// A frame reaches whoever is connected; else it is lost, and whoever comes back is told that something may be.
    fn tell(&mut self, frame: Frame) {
        if self.followed && self.under_way.len() < self.room {
            self.send(Message::Frame(frame));
        } else {
            self.lose();
        }
    }

    fn lose(&mut self) {
        if self.followed {
            self.followed = false;
            self.stream = 3 - self.stream;
            // The end of a stream is never lost: whoever followed it sees it.
            if self.agent.is_some() {
                self.under_way.push(Message::Lost);
            }
        }
    }

    fn agent_dies(&mut self) {
        self.agent = None;
        self.under_way.clear();
        self.followed = false;
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
    fn reconcile(&mut self, fault: Fault, dies_after: Option<usize>) -> Option<()> {
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

    pub(super) fn entry(&self) -> Option<Entry> {
        self.pool?.entry
    }

    fn start_agent(&mut self, fault: Fault) {
        let found: BTreeMap<u64, NodeMode> =
            self.entry().iter().map(|entry| (entry.generation, entry.mode)).collect();
        let journal = match fault {
            Fault::LostJournal => State::Standalone,
            _ => self.journal.clone(),
        };
        let machine = Machine::restored(journal, self.memory.clone(), &found);
        // The first reconciliation gives what has an entry the mode that the agent starts with.
        if let Some(Pool { entry: Some(entry), .. }) = &mut self.pool {
            entry.mode = machine.modes().of(entry.generation);
        }
        self.agent = Some(machine);
    }

    /// Nothing is under way. What becomes of a world in which something is, if nothing goes wrong any more, is what
    /// becomes of the one in which it has arrived: that one is reached too.
    pub(super) fn is_quiet(&self) -> bool {
        self.under_way.is_empty()
    }

    /// What happens if nothing goes wrong any more: the agent runs, every message arrives, and it looks.
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
            world.look(fault, true, true);
        }
        while !world.under_way.is_empty() {
            let message = world.under_way.remove(0);
            world.deliver(fault, message, None);
        }
        world
    }

    /// What a wipe leaves: nothing. A fresh daemon starts on it.
    pub(super) fn wiped(&self, fault: Fault) -> Self {
        let mut world = self.settled(fault);
        (world.address, world.raft, world.member, world.rows) = (false, false, false, false);
        (world.pool, world.join, world.unheard) = (None, Join::None, false);
        world.reconcile(fault, None);
        let evidence = Evidence { config: Config::Absent, daemon: Daemon::Stopped, ..Evidence::none() };
        world.deliver(fault, Message::Evidence { current: true, joins: false, evidence }, None);
        world.daemon = Some(9);
        world.settled(fault)
    }

    /// An operator's word that what is mounted is the node's own.
    pub(super) fn adopted(&self, fault: Fault) -> Self {
        let mut world = self.clone();
        if fault != Fault::DeafToOperator {
            world.step(fault, Event::Adopted { by: String::new() }, None);
        }
        world.settled(fault)
    }

    fn look(&mut self, fault: Fault, config: bool, answers: bool) {
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

    fn deliver(&mut self, fault: Fault, message: Message, dies_after: Option<usize>) -> Option<()> {
        let mut message = message;
        let followed = matches!(&message, Message::Evidence { evidence, .. } if evidence.stream.is_some());
        let sealed = self.agent.as_ref()?.mode() > NodeMode::Policy;
        if followed || (sealed && matches!(message, Message::Evidence { .. })) {
            // What the look can speak for was mounted before it. It may be overtaken by what is found.
            self.under_way.push(message);
            self.reconcile(fault, None);
            message = self.under_way.pop()?;
        }
        let epoch = self.agent.as_ref()?.epoch();
        let survives = dies_after != Some(0);
        let event = match message {
            Message::Evidence { current, mut evidence, .. } => {
                let asked = if current || fault == Fault::NoEpochs { epoch } else { Epoch(0) };
                if fault == Fault::LossIsProof && matches!(evidence.config, Config::Unreadable { .. }) {
                    evidence.config = Config::Read { cluster_address: None, raft_nodes: 0, name: None };
                }
                if fault == Fault::SilenceIsProof && evidence.unanswered_seconds > 0 {
                    evidence.membership = Membership::NotListed;
                }
                if let Config::Read { raft_nodes, .. } = evidence.config {
                    self.clustered = raft_nodes > 0;
                }
                if current && survives && evidence.unanswered_seconds > 0 {
                    self.unheard = false;
                }
                Event::Looked { asked, evidence }
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
                    Meaning::Event(Event::MemberRemoved) if fault == Fault::DeafToRemoval => return Some(()),
                    Meaning::Event(event) => event,
                    Meaning::LookAgain | Meaning::Nothing => return Some(()),
                }
            }
            Message::Lost => Event::EventsLost,
        };
        self.step(fault, event, dies_after)
    }

    /// Whether what is under way speaks about this node's own place in a cluster.
    fn says_something(message: &Message) -> bool {
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

    /// A member's guests are at work: in a pool that the kernel lets them delete in.
    fn has_guests(&self) -> bool {
        self.member && self.entry().is_some_and(|entry| entry.mode < NodeMode::Sealed)
    }

    pub(super) fn mount(&mut self, clusters: bool) {
        self.pool = Some(Pool { clusters, entry: None });
    }

    /// Lets something happen, and notes whether it has harmed a healthy member.
    pub(super) fn act(&mut self, fault: Fault, action: Action) -> Option<()> {
        let says_something = match &action {
            Action::Deliver { index, .. } => self.under_way.get(*index).is_some_and(Self::says_something),
            // The operator's own doing.
            Action::RollBack | Action::Release | Action::Forget => true,
            _ => false,
        };
        let had_guests = self.has_guests();
        self.happen(fault, action)?;
        let sealed = self.entry().is_some_and(|entry| entry.mode == NodeMode::Sealed);
        self.harmed |= had_guests && self.member && sealed && !says_something;
        Some(())
    }

    fn happen(&mut self, fault: Fault, action: Action) -> Option<()> {
        match action {
            Action::Configure => (self.address, self.join) = (true, Join::Configured),
            Action::Begin => {
                self.joins -= 1;
                (self.join, self.rows) = (Join::Running, true);
                self.tell(Frame::Began);
            }
            Action::Mount => self.mount(true),
            Action::SetRaft => self.raft = true,
            Action::BecomeMember => self.member = true,
            Action::End { succeeded } => {
                self.join = if succeeded { Join::None } else { Join::Failed };
                self.tell(Frame::Ended { succeeded });
            }
            Action::Kill => {
                self.kills -= 1;
                (self.daemon, self.join) = (None, Join::None);
                self.lose();
            }
            Action::Start => {
                self.starts -= 1;
                self.last_life += 1;
                self.daemon = Some(self.last_life);
                if self.rows && self.pool.is_none() {
                    self.mount(true);
                }
            }
            Action::GrowSilent => {
                self.silences -= 1;
                self.silent = true;
            }
            Action::Unlist => self.join = Join::None,
            Action::MountOwn => {
                self.mounts -= 1;
                self.mount(false);
            }
            Action::Unmount => (self.pool, self.release) = (None, None),
            Action::ClearAddress => self.address = false,
            Action::Reinstall => (self.address, self.raft, self.rows) = (false, false, false),
            Action::Removed => {
                // An online member that is removed unmounts its pools, keeps its address, and is told.
                (self.member, self.raft, self.rows) = (false, false, false);
                (self.pool, self.release) = (None, None);
                self.tell(Frame::Disabled);
            }
            Action::RemovedByForce => {
                self.removals -= 1;
                (self.member, self.unheard) = (false, true);
                self.tell(Frame::Removed);
            }
            Action::Others { join } => self.other_joins = join,
            Action::Tells(other) => {
                self.others -= 1;
                self.tell(Frame::Other(other));
            }
            Action::Look { config, answers } => self.look(fault, config, answers),
            Action::Deliver { index, keep, dies_after } => {
                let message = self.under_way.get(index)?.clone();
                if !keep {
                    self.under_way.remove(index);
                }
                self.deliver(fault, message, dies_after)?;
            }
            Action::Drop { index } => match self.under_way.remove(index) {
                // A stream that loses something has broken.
                Message::Frame(_) => self.lose(),
                Message::Evidence { .. } | Message::Lost => {}
            },
            Action::Reconcile { dies_after } => self.reconcile(fault, dies_after)?,
            Action::Crash => {
                self.crashes -= 1;
                self.agent_dies();
            }
            Action::StartAgent => self.start_agent(fault),
            Action::RollBack => {
                self.step(fault, Event::RollbackAsked { by: String::new() }, None)?;
                if *self.agent.as_ref()?.state() != State::RollingBack {
                    return None;
                }
                (self.pool, self.release) = (None, None);
                self.step(fault, Event::RollbackEnded { alive: Pools::new() }, None)?;
            }
            Action::Forget => self.step(fault, Event::Forgotten { by: String::new() }, None)?,
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
