//! One node's state machine: a state, and the memory that it needs to judge evidence.
//!
//! Loss of evidence never weakens. Weakening needs a look that was asked for in the present epoch,
//! and every sign of something stronger begins a new one: so an answer that was delayed, repeated
//! or overtaken can seal, never unseal. A stronger mode is applied before it is written down, a
//! weaker one after: an agent may die anywhere.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::{
    Config, Effect, Epoch, Event, Evidence, JoinSeen, Kept, Memory, NodeMode, NodeRefusal,
    NodeState, PoolModes, Pools,
};

/// The machine. One owner holds it; everybody else sends events.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    state: NodeState,
    epoch: Epoch,
    /// The pools that live; not known before the first word of it.
    alive: Option<Pools>,
    /// Generations of those that a look has spoken for. None in a state that seals.
    confirmed: BTreeSet<u64>,
    /// Generations of those that came while the daemon was followed and no join had begun.
    witnessed: BTreeSet<u64>,
    memory: Memory,
    /// The event stream that the last look found connected, if it has not broken since.
    followed: Option<u64>,
}

/// The meaning of a look.
pub(super) struct Assessment {
    pub state: NodeState,
    pub because: String,
    /// Whether it names the owners of the pools that it can have seen.
    pub speaks: bool,
}

impl Assessment {
    pub(super) fn new(state: NodeState, because: impl Into<String>) -> Self {
        Self { state, because: because.into(), speaks: false }
    }

    pub(super) fn speaking(state: NodeState, because: impl Into<String>) -> Self {
        Self { speaks: true, ..Self::new(state, because) }
    }
}

impl Machine {
    /// A node that nothing is known of.
    pub fn unknown() -> Self {
        Self::restored(
            NodeState::Unknown { kept: Kept::Nothing },
            Memory::default(),
            &BTreeMap::new(),
        )
    }

    /// The machine of an agent that starts, from the written state and from the modes that the
    /// node's pools have in the kernel's maps, by generation: the agent before it may have died
    /// between strengthening them and writing down why. A look has to follow.
    pub fn restored(state: NodeState, memory: Memory, found: &BTreeMap<u64, NodeMode>) -> Self {
        let believed = state.after_restart();
        let strongest = found.values().max().copied().unwrap_or(NodeMode::Policy);
        let state = match (believed, strongest) {
            (NodeState::Unconfirmed { confirmed_by, held: false }, NodeMode::Held) => {
                NodeState::Unconfirmed { confirmed_by, held: true }
            }
            (believed, strongest)
                if believed.mode() < strongest && believed.mode_of_others() < strongest =>
            {
                NodeState::Unknown { kept: Kept::Nothing }
            }
            (believed, _) => believed,
        };
        let policy = |(_, mode): &(&u64, &NodeMode)| **mode == NodeMode::Policy;
        let confirmed = match state.mode() {
            NodeMode::Sealed => BTreeSet::new(),
            NodeMode::Held => found.keys().copied().collect(),
            NodeMode::Policy => {
                found.iter().filter(policy).map(|(generation, _)| *generation).collect()
            }
        };
        Self { confirmed, memory, ..Self::in_state(state, None) }
    }

    /// A machine in the middle of things, for drawings and tests.
    pub(super) fn at(state: NodeState, alive: Pools) -> Self {
        let mut machine = Self::in_state(state, Some(alive));
        machine.suspect_pools();
        machine
    }

    fn in_state(state: NodeState, alive: Option<Pools>) -> Self {
        Self {
            state,
            epoch: Epoch(1),
            alive,
            confirmed: BTreeSet::new(),
            witnessed: BTreeSet::new(),
            memory: Memory::default(),
            followed: None,
        }
    }

    pub fn state(&self) -> &NodeState {
        &self.state
    }

    /// The number that the answer to a look, asked for now, must carry.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The pools that live, as far as is known.
    pub fn alive(&self) -> Option<&Pools> {
        self.alive.as_ref()
    }

    /// The memory of the node's pools.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The mode of the pools that a look has spoken for.
    pub fn mode(&self) -> NodeMode {
        self.state.mode()
    }

    /// The modes of all pools.
    pub fn modes(&self) -> PoolModes {
        PoolModes {
            mode: self.mode(),
            confirmed: self.confirmed.clone(),
            others: self.state.mode_of_others(),
        }
    }

    /// Whether the node has to be told which pools live before it is told of a look.
    ///
    /// A look can only speak for pools that the node knows of; a pool that was there before the
    /// event stream is not taken for one that came after; and a pool that is gone by now is not
    /// taken for the node's own.
    pub fn wants_pools_before(&self, observe: &Evidence) -> bool {
        observe.stream.is_some()
            || self.mode() > NodeMode::Policy
            || self.alive.is_none()
            || !self.unconfirmed().is_empty()
    }

    /// Generations that wait for a look that speaks for them, in a state that would give them
    /// policy's mode.
    pub fn unconfirmed(&self) -> BTreeSet<u64> {
        match (self.mode(), &self.alive) {
            (NodeMode::Policy, Some(alive)) => alive
                .keys()
                .filter(|generation| !self.confirmed.contains(generation))
                .copied()
                .collect(),
            _ => BTreeSet::new(),
        }
    }

    /// Whether pools of the node live. Not known yet: they may, unless the node was written down as
    /// released.
    pub(super) fn has_pools(&self) -> bool {
        self.alive.as_ref().map_or(self.state != NodeState::Released, |alive| !alive.is_empty())
    }

    /// Whether mounted pools may be the remains of a join or of a membership.
    pub(super) fn has_remains(&self) -> bool {
        match &self.alive {
            Some(alive) => alive.values().any(|id| self.memory.foreign.contains(id)),
            // Not known yet: only a node that was standalone before can have none.
            None => !matches!(
                self.state,
                NodeState::Standalone
                    | NodeState::Unknown { kept: Kept::Standalone | Kept::Nothing }
            ),
        }
    }

    /// Whether a live pool has no known owner. Not known yet which live: each will be asked about
    /// when it is. `stream`: the one that the daemon is followed by, if no join has begun. Pools
    /// that a node still has mounted from a cluster it has left are known.
    pub(super) fn has_strangers(&self, stream: Option<u64>) -> bool {
        let is_followed = stream.is_some() && stream == self.followed;
        let is_known = |(generation, id): (&u64, &u64)| {
            if self.memory.foreign.contains(id) {
                return self.state == NodeState::Left;
            }
            self.memory.own.contains(id)
                || self.confirmed.contains(generation)
                || (is_followed && self.witnessed.contains(generation))
        };
        self.alive.iter().flatten().any(|pool| !is_known(pool))
    }

    /// Takes one event. A refusal changes nothing: the machine comes back as it was.
    pub fn step(
        mut self,
        event: Event,
        effects: &mut Vec<Effect>,
    ) -> (Self, Result<(), NodeRefusal>) {
        let result = self.take(event, effects);
        (self, result)
    }

    /// For the model checker, to which all epochs but the present one are alike.
    #[cfg(test)]
    pub(super) fn at_epoch(self, epoch: Epoch) -> Self {
        Self { epoch, ..self }
    }

    fn take(&mut self, event: Event, effects: &mut Vec<Effect>) -> Result<(), NodeRefusal> {
        match event {
            Event::Observed { asked, evidence } => {
                // An answer does not mend a stream that has broken since the question.
                let followed = evidence.stream.filter(|_| asked >= self.epoch);
                let assessment = self.assess(&evidence);
                if asked >= self.epoch && evidence.config == Config::Absent && !self.has_pools() {
                    self.void(effects);
                }
                self.observed(asked, assessment, effects);
                self.set_followed(followed);
            }
            Event::Pools { alive } => self.pools(alive, effects),
            Event::JoinBegan => {
                // A member cannot join: the look tells the state.
                if !self.state.is_member() {
                    self.change(
                        NodeState::Joining { seen: JoinSeen::Running },
                        "Incus has begun to join a cluster",
                        effects,
                    );
                }
                self.observe_anew(effects);
            }
            Event::JoinEnded { .. } | Event::MemberAdded => self.observe_anew(effects),
            Event::EventsLost => {
                self.set_followed(None);
                self.observe_anew(effects);
            }
            Event::ClusterDisabled => self.leave(effects),
            Event::MemberRemoved => {
                if self.state.is_member() {
                    self.change(
                        NodeState::JoinPartial,
                        "Incus says that this server was removed from its cluster",
                        effects,
                    );
                }
                self.observe_anew(effects);
            }
            Event::JoinPrepared => match &self.state {
                NodeState::Joined { .. }
                | NodeState::Unconfirmed { .. }
                | NodeState::RollingBack => {
                    return Err(NodeRefusal::NotFitToJoin { state: self.state.name() });
                }
                _ => {
                    let state = NodeState::Joining { seen: JoinSeen::Prepared };
                    self.change(state, "an operator is about to let the node join", effects);
                    self.observe_anew(effects);
                }
            },
            Event::PreparationEnded => {
                if self.state == (NodeState::Joining { seen: JoinSeen::Prepared }) {
                    let state = NodeState::Joining { seen: JoinSeen::Running };
                    self.change(
                        state,
                        "the prepared join has ended, or did not come in time",
                        effects,
                    );
                }
                self.observe_anew(effects);
            }
            Event::RollbackAsked { by } => return self.roll_back(&by, effects),
            Event::RollbackEnded { alive } => self.rolled_back(alive, effects),
            Event::Adopted { by } => return self.adopt(&by, effects),
            Event::Forgotten { by } => return self.forget(&by, effects),
        }
        Ok(())
    }

    /// Incus's database is gone, and so are the pools that it would have mounted.
    fn void(&mut self, effects: &mut Vec<Effect>) {
        if self.memory != Memory::default() {
            self.memory = Memory::default();
            effects.push(Effect::Persist);
        }
    }

    /// Pools that came while another stream was followed may have come with a join.
    fn set_followed(&mut self, stream: Option<u64>) {
        if stream != self.followed {
            self.followed = stream;
            self.witnessed.clear();
        }
    }

    fn observed(&mut self, asked: Epoch, assessment: Assessment, effects: &mut Vec<Effect>) {
        let Assessment { state, because, speaks } = assessment;
        let stronger = state.mode() > self.state.mode();
        // An answer to a question that is overtaken can only strengthen.
        if asked < self.epoch && !stronger {
            return;
        }
        self.change(state, &because, effects);
        if stronger {
            self.observe_anew(effects);
        } else if speaks {
            self.confirm(effects);
        }
    }

    fn pools(&mut self, alive: Pools, effects: &mut Vec<Effect>) {
        let is_known = |generation: &u64| match &self.alive {
            Some(known) => known.contains_key(generation),
            None => self.confirmed.contains(generation),
        };
        let new: BTreeSet<u64> =
            alive.keys().filter(|generation| !is_known(generation)).copied().collect();
        for remembered in [&mut self.confirmed, &mut self.witnessed] {
            remembered.retain(|generation| alive.contains_key(generation));
        }
        if self.followed.is_some() && !self.state.is_between() && !self.state.is_member() {
            self.witnessed.extend(&new);
        }
        self.alive = Some(alive);
        let before = self.memory.clone();
        self.suspect_pools();
        if self.memory != before {
            effects.push(Effect::Persist);
        }
        if !new.is_empty() {
            // It may come from a join whose beginning nobody has heard of: an earlier request
            // cannot speak for it.
            self.observe_anew(effects);
        }
    }

    /// A look that could tell speaks for all pools that it can have seen.
    fn confirm(&mut self, effects: &mut Vec<Effect>) {
        let (NodeMode::Policy, Some(alive)) = (self.mode(), &self.alive) else { return };
        let is_member = self.state.is_member();
        let spoken_for = |id: &u64| is_member || !self.memory.foreign.contains(id);
        let confirmed: Pools = alive
            .iter()
            .filter(|(_, id)| spoken_for(id))
            .map(|(generation, id)| (*generation, *id))
            .collect();
        if !is_member {
            let known = self.memory.own.len();
            self.memory.own.extend(confirmed.values());
            if self.memory.own.len() > known {
                effects.push(Effect::Persist);
            }
        }
        let confirmed: BTreeSet<u64> = confirmed.into_keys().collect();
        if self.confirmed != confirmed {
            self.confirmed = confirmed;
            effects.push(Effect::SetMode(NodeMode::Policy));
        }
    }

    /// The node leaves its cluster in order. Pools that it still has mounted are the cluster's, and
    /// stay sealed.
    fn leave(&mut self, effects: &mut Vec<Effect>) {
        if self.state.is_member() || self.state == NodeState::JoinPartial {
            self.suspect_pools();
            self.confirmed.clear();
            effects.push(Effect::SetMode(NodeMode::Sealed));
            self.change(NodeState::Left, "Incus says that it has left its cluster", effects);
        }
        self.observe_anew(effects);
    }

    /// Whether a rollback may begin in this state.
    pub fn may_roll_back(&self) -> Result<(), NodeRefusal> {
        match self.state {
            NodeState::RollingBack => Err(NodeRefusal::RollingBack),
            NodeState::JoinFailed
            | NodeState::JoinPartial
            | NodeState::Released
            | NodeState::Unconfirmed { held: true, .. }
            | NodeState::Unknown { kept: Kept::Nothing } => Ok(()),
            NodeState::Left if self.has_remains() => Ok(()),
            _ => Err(NodeRefusal::NotFailed { state: self.state.name() }),
        }
    }

    fn roll_back(&mut self, by: &str, effects: &mut Vec<Effect>) -> Result<(), NodeRefusal> {
        self.may_roll_back()?;
        self.change(NodeState::RollingBack, &format!("{by} asked for a rollback"), effects);
        self.observe_anew(effects);
        effects.push(Effect::RollBack);
        Ok(())
    }

    fn rolled_back(&mut self, alive: Pools, effects: &mut Vec<Effect>) {
        if self.state != NodeState::RollingBack {
            return;
        }
        let clean = alive.is_empty();
        self.alive = Some(alive);
        let (state, because) = if clean {
            (NodeState::Released, "the rollback has ended, and no superblock of a pool is left")
        } else {
            (NodeState::JoinFailed, "the rollback has ended, and superblocks of pools are left")
        };
        self.change(state, because, effects);
        self.observe_anew(effects);
    }

    /// An operator's word that the live pools are this server's own. Evidence decides about
    /// everything else: a node that a cluster knows, or whose join runs, has none.
    fn adopt(&mut self, by: &str, effects: &mut Vec<Effect>) -> Result<(), NodeRefusal> {
        if self.state.is_member()
            || matches!(self.state, NodeState::Joining { .. } | NodeState::RollingBack)
        {
            return Err(NodeRefusal::NotItsOwn { state: self.state.name() });
        }
        self.memory.adopt(self.alive.as_ref());
        self.start_afresh(&format!("{by} says that its pools are its own"), effects);
        Ok(())
    }

    /// An operator's word that the state and the record of the node's own pools are void. Pools of
    /// joins and clusters stay known: only that tells them from the node's own.
    fn forget(&mut self, by: &str, effects: &mut Vec<Effect>) -> Result<(), NodeRefusal> {
        if matches!(self.state, NodeState::Joining { .. } | NodeState::RollingBack) {
            return Err(NodeRefusal::NotItsOwn { state: self.state.name() });
        }
        if self.has_remains() {
            return Err(NodeRefusal::HasRemains { state: self.state.name() });
        }
        self.memory.own.clear();
        self.start_afresh(&format!("{by} says that its history is void"), effects);
        Ok(())
    }

    /// Sealed until a look has decided.
    fn start_afresh(&mut self, because: &str, effects: &mut Vec<Effect>) {
        self.witnessed.clear();
        let afresh = NodeState::Unknown { kept: Kept::Nothing };
        if self.state == afresh {
            // The word is on record all the same.
            let (from, to) = (afresh.clone(), afresh);
            effects.push(Effect::Transition { from, to, because: because.to_owned() });
            effects.push(Effect::Persist);
        } else {
            self.change(afresh, because, effects);
        }
        self.observe_anew(effects);
    }

    fn change(&mut self, state: NodeState, because: &str, effects: &mut Vec<Effect>) {
        if state == self.state {
            return;
        }
        let (from, to) = (std::mem::replace(&mut self.state, state.clone()), state);
        self.suspect_pools();
        if to.mode() == NodeMode::Sealed {
            self.confirmed.clear();
        }
        let set = Effect::SetMode(to.mode());
        let order = (from.mode(), from.mode_of_others()).cmp(&(to.mode(), to.mode_of_others()));
        effects.push(Effect::Transition { from, to, because: because.to_owned() });
        // Strengthening must not wait for the disk, weakening has to be written down before. (The
        // daemon brings a mode into the kernel's maps after all effects of an event: an agent that
        // starts again goes by the journal.)
        match order {
            Ordering::Less => effects.extend([set, Effect::Persist]),
            Ordering::Equal => effects.push(Effect::Persist),
            Ordering::Greater => effects.extend([Effect::Persist, set]),
        }
    }

    fn suspect_pools(&mut self) {
        self.memory.note(&self.state, self.alive.as_ref());
    }

    /// Begins a new epoch: no answer to a question asked before can weaken any more.
    fn observe_anew(&mut self, effects: &mut Vec<Effect>) {
        self.epoch.0 += 1;
        effects.push(Effect::Observe { asked: self.epoch });
    }
}
