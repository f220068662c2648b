//! The true node, its visible part, and the kernel's entry of the pool.

use super::message::{Frame, Message, OWN, Other};
use crate::model::join::{
    Config, Daemon, Event, Evidence, HOLD_SECONDS, Incarnation, JoinOperation, Machine, Membership,
    Memory, NodeMode, NodeState, Pools,
};

/// Step of the true join. Each step leaves different things at its end.
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
    /// Mounted by a join, or by a daemon that thinks of one: the cluster's data. Else the node's
    /// own.
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
    // The agent: its machine, its journal, and the mode for new entries.
    pub(super) agent: Option<Machine>,
    pub(super) journal: NodeState,
    /// The node's pools, as it has written them down.
    pub(super) memory: Memory,
    pub(super) under_way: Vec<Message>,
    /// The event stream is connected, and which one: 1 and 2 in turn.
    pub(super) followed: bool,
    pub(super) stream: u64,
    /// The last configuration that the agent has seen names a cluster.
    pub(super) clustered: bool,
    /// The database has not answered for long.
    pub(super) silent: bool,
    /// A healthy member's guests were denied because of an event that says nothing about it.
    pub(super) harmed: bool,
    // A release of the pool: ticks until its end.
    pub(super) release: Option<u8>,
    // Number of each event that may still happen.
    pub(super) crashes: u8,
    pub(super) kills: u8,
    pub(super) starts: u8,
    pub(super) joins: u8,
    pub(super) releases: u8,
    pub(super) removals: u8,
    pub(super) others: u8,
    pub(super) silences: u8,
    pub(super) mounts: u8,
    pub(super) capacity: usize,
}

/// A fault in the machine or in its surroundings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The kernel allows deletions in pools without an entry.
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
    /// Events of other members count as this one's.
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
    /// Failed operations are listed no more.
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
    // The messages that reach the agent.
    Observe {
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

/// Largest number of each event that could happen without end.
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

pub(super) const ADDRESS: &str = "10.0.0.2:8443";
/// Lasting ids of the node's own pool, and of the cluster's.
pub(super) const OWN_POOL: u64 = 11;
pub(super) const CLUSTERS_POOL: u64 = 22;
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
            capacity: bounds.under_way,
        }
    }

    /// Whether the truth requires a seal: nobody may delete the cluster's data on a node that is no
    /// member. (Until the agent can know that it is none any more.)
    pub(super) fn must_be_sealed(&self) -> bool {
        self.pool.is_some_and(|pool| pool.clusters) && !self.member && !self.unheard
    }

    pub(super) fn incarnation(life: u32) -> Incarnation {
        Incarnation { boot_id: "boot".to_owned(), pid: life, start_ticks: 0 }
    }

    pub(super) fn evidence(&self, fault: Fault, config: bool, answers: bool) -> Evidence {
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
            evidence.daemon =
                Daemon::Running { incarnation: Self::incarnation(life), age_seconds: 0 };
            (evidence.operation, evidence.membership) = match (answers, self.member, self.raft) {
                (false, ..) => (JoinOperation::Unknown, no_answer()),
                // A question to all members takes as long as the slowest answer.
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

    pub(super) fn entry(&self) -> Option<Entry> {
        self.pool?.entry
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
            Action::Deliver { index, .. } => {
                self.under_way.get(*index).is_some_and(Self::says_something)
            }
            // The operator's own doing.
            Action::RollBack | Action::Release | Action::Forget => true,
            // An agent that was killed before it had written the membership down starts from the
            // journal (see "Limits" in docs/JOIN.md).
            Action::StartAgent => !self.journal.is_member(),
            _ => false,
        };
        let had_guests = self.has_guests();
        self.happen(fault, action)?;
        let sealed = self.entry().is_some_and(|entry| entry.mode == NodeMode::Sealed);
        self.harmed |= had_guests && self.member && sealed && !says_something;
        Some(())
    }

    /// Actions of the cluster's other members.
    fn others_act(&mut self, action: Action) {
        match action {
            Action::Removed => {
                // An online member that is removed unmounts its pools, keeps its address, and is
                // told.
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
            _ => {}
        }
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
            Action::Removed | Action::RemovedByForce | Action::Others { .. } | Action::Tells(_) => {
                self.others_act(action)
            }
            Action::Observe { config, answers } => self.observe(fault, config, answers),
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
                if *self.agent.as_ref()?.state() != NodeState::RollingBack {
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

    /// Whether the kernel lets a process that is no actor delete.
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
