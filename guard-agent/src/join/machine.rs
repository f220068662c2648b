//! One node's state machine: a state, and what it has to remember to judge evidence.
//!
//! Loss of evidence never weakens. Weakening needs a look that was asked for in the present epoch, and every sign
//! of something stronger begins a new one: so an answer that was delayed, repeated or overtaken can seal, never
//! unseal. What strengthens is applied before it is written down, what weakens after: an agent may die anywhere.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::conclude::conclude;
use super::{Config, Effect, Epoch, Event, JoinSeen, Kept, NodeMode, PoolModes, Refusal, State};

/// The machine. One owner holds it; everybody else sends events.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    state: State,
    epoch: Epoch,
    /// Generations of the pools' superblocks that live; not known before the first word of it.
    alive: Option<BTreeSet<u64>>,
    /// Those of them that a look has spoken for. None in a state that seals.
    confirmed: BTreeSet<u64>,
    /// Those of them that lived while a join ran or had failed, or while the node was a member. While one lives, a
    /// configuration that says "standalone" is not believed: Incus would delete the cluster's data as its own.
    suspect: BTreeSet<u64>,
}

impl Machine {
    /// A node that nothing is known of.
    pub fn unknown() -> Self {
        Self::restored(State::Unknown { kept: Kept::Nothing }, &BTreeMap::new())
    }

    /// What an agent that starts makes of the state that was written down, and of the modes that the node's pools have
    /// in the kernel's maps, by generation: the agent before it may have died between sealing them and writing down
    /// why. It has to be followed by a look.
    pub fn restored(state: State, found: &BTreeMap<u64, NodeMode>) -> Self {
        let state = match state.after_restart() {
            believed
                if believed.mode() == NodeMode::Policy
                    && found.values().any(|mode| *mode == NodeMode::Sealed) =>
            {
                State::Unknown { kept: Kept::Nothing }
            }
            believed => believed,
        };
        let confirmed = match state.mode() {
            NodeMode::Policy => found.keys().copied().collect(),
            NodeMode::Sealed => BTreeSet::new(),
        };
        Self { state, epoch: Epoch(1), alive: None, confirmed, suspect: BTreeSet::new() }
    }

    /// A machine in the middle of things, for drawings.
    pub(super) fn at(state: State, alive: BTreeSet<u64>) -> Self {
        let alive = Some(alive);
        let mut machine =
            Self { state, epoch: Epoch(1), alive, confirmed: BTreeSet::new(), suspect: BTreeSet::new() };
        machine.suspect_pools();
        machine
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// What a look that is asked for now has to answer with.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Generations of the pools' superblocks that live, as far as is known.
    pub fn alive(&self) -> Option<&BTreeSet<u64>> {
        self.alive.as_ref()
    }

    /// The mode of the pools that a look has spoken for.
    pub fn mode(&self) -> NodeMode {
        self.state.mode()
    }

    /// The modes of all pools.
    pub fn modes(&self) -> PoolModes {
        PoolModes { mode: self.mode(), confirmed: self.confirmed.clone() }
    }

    /// Generations that wait for a look that speaks for them, in a state that would give them policy's mode.
    pub fn unconfirmed(&self) -> BTreeSet<u64> {
        match (self.mode(), &self.alive) {
            (NodeMode::Policy, Some(alive)) => alive.difference(&self.confirmed).copied().collect(),
            _ => BTreeSet::new(),
        }
    }

    /// Whether pools of the node live. Not known yet: they may, but for what was written down as released.
    pub(super) fn has_pools(&self) -> bool {
        self.alive.as_ref().map_or(self.state != State::Released, |alive| !alive.is_empty())
    }

    /// Whether what is mounted may be the remains of a join or of a membership.
    pub(super) fn has_remains(&self) -> bool {
        match &self.alive {
            Some(alive) => self.suspect.iter().any(|generation| alive.contains(generation)),
            // Not known yet: only a node that was standalone before can have none.
            None => !matches!(
                self.state,
                State::Standalone | State::Unknown { kept: Kept::Standalone | Kept::Nothing }
            ),
        }
    }

    /// Takes one event. A refusal changes nothing: the machine comes back as it was.
    pub fn step(mut self, event: Event, effects: &mut Vec<Effect>) -> (Self, Result<(), Refusal>) {
        let result = self.take(event, effects);
        (self, result)
    }

    /// For the model checker, to which all epochs but the present one are alike.
    #[cfg(test)]
    pub(super) fn at_epoch(self, epoch: Epoch) -> Self {
        Self { epoch, ..self }
    }

    fn take(&mut self, event: Event, effects: &mut Vec<Effect>) -> Result<(), Refusal> {
        match event {
            Event::Looked { asked, evidence } => {
                let (state, because) = conclude(self, &evidence);
                let stronger = state.mode() > self.state.mode();
                // An answer to a question that is overtaken can only seal.
                if asked < self.epoch && !stronger {
                    return Ok(());
                }
                self.change(state, &because, effects);
                if stronger {
                    self.look_anew(effects);
                } else if matches!(evidence.config, Config::Read { .. }) {
                    self.confirm(effects);
                }
            }
            Event::Pools { alive } => self.pools(alive, effects),
            Event::JoinBegan => {
                self.change(
                    State::Joining { seen: JoinSeen::Running },
                    "Incus has begun to join a cluster",
                    effects,
                );
                self.look_anew(effects);
            }
            Event::JoinEnded { .. } | Event::MemberAdded | Event::EventsLost => self.look_anew(effects),
            Event::ClusterDisabled => {
                if self.mode() == NodeMode::Policy {
                    self.change(State::JoinPartial, "Incus says that it has left its cluster", effects);
                }
                self.look_anew(effects);
            }
            Event::JoinPrepared => match &self.state {
                State::Joined { .. } | State::Unknown { kept: Kept::Joined { .. } } | State::RollingBack => {
                    return Err(Refusal::NotFitToJoin { state: self.state.name() });
                }
                _ => {
                    let state = State::Joining { seen: JoinSeen::Prepared };
                    self.change(state, "an operator is about to let the node join", effects);
                    self.look_anew(effects);
                }
            },
            Event::PreparationEnded => {
                if self.state == (State::Joining { seen: JoinSeen::Prepared }) {
                    let state = State::Joining { seen: JoinSeen::Running };
                    self.change(state, "the prepared join has ended, or did not come in time", effects);
                }
                self.look_anew(effects);
            }
            Event::RollbackAsked { by } => return self.roll_back(&by, effects),
            Event::RollbackEnded { alive } => {
                if self.state == State::RollingBack {
                    let clean = alive.is_empty();
                    self.suspect.retain(|generation| alive.contains(generation));
                    self.alive = Some(alive);
                    let (state, because) = if clean {
                        (State::Released, "the rollback has ended, and no superblock of a pool is left")
                    } else {
                        (State::JoinFailed, "the rollback has ended, and superblocks of pools are left")
                    };
                    self.change(state, because, effects);
                    self.look_anew(effects);
                }
            }
        }
        Ok(())
    }

    fn pools(&mut self, alive: BTreeSet<u64>, effects: &mut Vec<Effect>) {
        let known = self.alive.as_ref().unwrap_or(&self.confirmed);
        let has_new = !alive.is_subset(known);
        self.suspect.retain(|generation| alive.contains(generation));
        self.confirmed.retain(|generation| alive.contains(generation));
        self.alive = Some(alive);
        self.suspect_pools();
        if self.state == State::Released && self.has_pools() {
            self.change(State::JoinFailed, "a pool has appeared after the rollback", effects);
        }
        if has_new {
            // It may come from a join whose beginning nobody has heard of: what was asked before cannot speak for it.
            self.look_anew(effects);
        }
    }

    /// A look that could read the configuration speaks for all pools that it can have seen.
    fn confirm(&mut self, effects: &mut Vec<Effect>) {
        if let (NodeMode::Policy, Some(alive)) = (self.mode(), &self.alive)
            && self.confirmed != *alive
        {
            self.confirmed.clone_from(alive);
            effects.push(Effect::SetMode(NodeMode::Policy));
        }
    }

    /// Whether a rollback may begin in this state.
    pub fn may_roll_back(&self) -> Result<(), Refusal> {
        match self.state {
            State::RollingBack => Err(Refusal::RollingBack),
            State::JoinFailed
            | State::JoinPartial
            | State::Released
            | State::Unknown { kept: Kept::Nothing } => Ok(()),
            _ => Err(Refusal::NotFailed { state: self.state.name() }),
        }
    }

    fn roll_back(&mut self, by: &str, effects: &mut Vec<Effect>) -> Result<(), Refusal> {
        self.may_roll_back()?;
        self.change(State::RollingBack, &format!("{by} asked for a rollback"), effects);
        self.look_anew(effects);
        effects.push(Effect::RollBack);
        Ok(())
    }

    fn change(&mut self, state: State, because: &str, effects: &mut Vec<Effect>) {
        if state == self.state {
            return;
        }
        let (from, to) = (std::mem::replace(&mut self.state, state.clone()), state);
        self.suspect_pools();
        if to.mode() == NodeMode::Sealed {
            self.confirmed.clear();
        }
        let set = Effect::SetMode(to.mode());
        let order = from.mode().cmp(&to.mode());
        effects.push(Effect::Transition { from, to, because: because.to_owned() });
        // Strengthening must not wait for the disk, weakening has to be written down before. (The daemon brings a mode
        // into the kernel's maps after all effects of an event: an agent that starts again goes by what was written.)
        match order {
            Ordering::Less => effects.extend([set, Effect::Persist]),
            Ordering::Equal => effects.push(Effect::Persist),
            Ordering::Greater => effects.extend([Effect::Persist, set]),
        }
    }

    /// What lives while the node is between the worlds, or a member, is not the node's own.
    fn suspect_pools(&mut self) {
        let not_its_own = self.state.is_between()
            || matches!(self.state, State::Joined { .. } | State::Unknown { kept: Kept::Joined { .. } });
        if let (true, Some(alive)) = (not_its_own, &self.alive) {
            self.suspect.clone_from(alive);
        }
    }

    /// Begins a new epoch: no answer to a question asked before can weaken any more.
    fn look_anew(&mut self, effects: &mut Vec<Effect>) {
        self.epoch.0 += 1;
        effects.push(Effect::Look { asked: self.epoch });
    }
}
