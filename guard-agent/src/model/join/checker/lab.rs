//! Possible events in a world, and the invariants that hold in it.

use stateright::{Model, Property};

use super::message::{Message, Other};
use super::world::{Action, Bounds, Fault, Join, RELEASE_TICKS, World};
use crate::model::join::{NodeMode, NodeState};

/// A world with a fault, within bounds.
pub(super) struct Lab {
    pub(super) fault: Fault,
    pub(super) bounds: Bounds,
}

impl Model for Lab {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.bounds)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let runs = world.daemon.is_some();
        let joining = world.join == Join::Running;
        let mut when = |possible: bool, action: Action| {
            if possible {
                actions.push(action);
            }
        };
        when(
            runs && !world.address && !world.raft && world.pool.is_none() && world.joins > 0,
            Action::Configure,
        );
        // A retry finds the address set.
        let may_begin = world.join == Join::Configured
            || (matches!(world.join, Join::None | Join::Failed) && world.address && !world.raft);
        when(runs && may_begin && world.joins > 0, Action::Begin);
        when(joining && world.pool.is_none() && !world.raft, Action::Mount);
        when(joining && world.pool.is_some() && !world.raft, Action::SetRaft);
        when(joining && world.raft && !world.member, Action::BecomeMember);
        when(joining && world.member, Action::End { succeeded: true });
        when(joining, Action::End { succeeded: false });
        when(runs && world.kills > 0, Action::Kill);
        when(!runs && world.starts > 0, Action::Start);
        when(!world.silent && world.silences > 0, Action::GrowSilent);
        // Five seconds later; the stream's frames are there by then.
        let told = !world.under_way.iter().any(|message| matches!(message, Message::Frame(_)));
        when(world.join == Join::Failed && told, Action::Unlist);
        let alone = !world.address && !world.raft && world.pool.is_none();
        when(runs && alone && world.mounts > 0, Action::MountOwn);
        when(world.pool.is_some() && !joining, Action::Unmount);
        // Not before an agent has seen that there was a join: a join that nobody saw and everybody
        // has wiped away is no evidence (see "Limits" in docs/JOIN.md).
        let seen = world.journal.is_between();
        when(
            seen && world.address && !world.raft && world.join == Join::None,
            Action::ClearAddress,
        );
        when(
            !runs && world.pool.is_none() && !world.member && (world.address || world.raft),
            Action::Reinstall,
        );
        // A member that is removed and joins again by the same daemon, while nothing of it is heard
        // and nothing can be read, is believed to be the member it was (see "Limits" in
        // docs/JOIN.md).
        when(runs && world.member && world.join == Join::None && world.joins == 0, Action::Removed);
        when(
            runs && world.member
                && world.join == Join::None
                && world.joins == 0
                && world.removals > 0,
            Action::RemovedByForce,
        );
        // Members hear of each other once the agent has seen that this one is in a cluster.
        let hears = world.member && world.clustered && world.others > 0;
        for join in [true, false] {
            when(
                world.member && world.others > 0 && world.other_joins != join,
                Action::Others { join },
            );
        }
        for other in [Other::Began, Other::Failed, Other::Disabled, Other::Removed] {
            when(hears && world.followed, Action::Tells(other));
        }
        let free = world.agent.is_some() && world.under_way.len() < world.capacity;
        for (config, answers) in [(true, true), (true, false), (false, false)] {
            when(free && (runs || answers), Action::Observe { config, answers });
        }
        for index in 0..world.under_way.len() {
            when(true, Action::Deliver { index, keep: false, dies_after: None });
            when(true, Action::Deliver { index, keep: true, dies_after: None });
            // The end of the stream is never lost.
            when(world.under_way[index] != Message::Lost, Action::Drop { index });
            for number in 0..2 {
                let dies_after = Some(number);
                when(world.crashes > 0, Action::Deliver { index, keep: false, dies_after });
            }
        }
        when(world.agent.is_some(), Action::Reconcile { dies_after: None });
        for number in 0..2 {
            when(
                world.agent.is_some() && world.crashes > 0,
                Action::Reconcile { dies_after: Some(number) },
            );
        }
        when(world.agent.is_some() && world.crashes > 0, Action::Crash);
        when(world.agent.is_none(), Action::StartAgent);
        when(world.agent.is_some() && !runs, Action::RollBack);
        when(world.agent.is_some() && world.releases > 0, Action::Forget);
        when(world.agent.is_some() && world.pool.is_some() && world.releases > 0, Action::Release);
        when(world.release.is_some(), Action::Tick);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.act(self.fault, action)?;
        (next != *world).then_some(next)
    }

    #[expect(clippy::too_many_lines, reason = "a table")]
    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "1: without a release only actors delete in a live pool",
                |lab: &Lab, world: &World| {
                    !world.anyone_deletes(lab.fault) || world.release.is_some_and(|left| left > 0)
                },
            ),
            Property::always("2: never weaker than the truth requires", |_, world: &World| {
                !(world.must_be_sealed() && world.actor_deletes())
            }),
            Property::always("3: every lease ends", |lab: &Lab, world: &World| {
                let mut later = world.clone();
                for _ in 0..RELEASE_TICKS {
                    later.act(lab.fault, Action::Tick);
                }
                later.release.is_none_or(|left| left == 0)
            }),
            Property::always(
                "4: after a rollback nothing stays blocked",
                |lab: &Lab, world: &World| {
                    if !world.is_quiet()
                        || (world.journal != NodeState::Released
                            && world.journal != NodeState::RollingBack)
                    {
                        return true;
                    }
                    let mut later = world.wiped(lab.fault);
                    later.mount(false);
                    later.settled(lab.fault).actor_deletes()
                },
            ),
            Property::always(
                "5: a healthy member comes back to guarded",
                |lab: &Lab, world: &World| {
                    let healthy = world.member
                        && world.raft
                        && world.daemon.is_some()
                        && world.join != Join::Running;
                    !world.is_quiet()
                        || !healthy
                        || world.pool.is_none()
                        || world.settled(lab.fault).actor_deletes()
                },
            ),
            Property::always(
                "6: no member's guest is denied by what others do, or by missing answers",
                |_, world: &World| !world.harmed,
            ),
            Property::always(
                "7: an operator gets a healthy node back from every state",
                |lab: &Lab, world: &World| {
                    if !world.is_quiet() || world.join == Join::Running || world.pool.is_none() {
                        return true;
                    }
                    let settled = world.settled(lab.fault);
                    let own = !world.raft && world.pool.is_some_and(|pool| !pool.clusters);
                    if own && world.daemon.is_some() {
                        return settled.actor_deletes()
                            || settled.adopted(lab.fault).actor_deletes();
                    }
                    // The mounts that are left of a cluster can be unmounted.
                    let machine = settled.agent.as_ref().expect("it has been started");
                    !settled.must_be_sealed() || machine.may_roll_back().is_ok()
                },
            ),
            Property::sometimes("a removed node's pool is sealed", |_, world: &World| {
                world.raft && world.must_be_sealed() && world.journal == NodeState::JoinPartial
            }),
            Property::sometimes("a member that does not answer is held", |_, world: &World| {
                world.member && world.entry().is_some_and(|entry| entry.mode == NodeMode::Held)
            }),
            Property::sometimes("a member's storage daemon deletes", |_, world: &World| {
                world.member && world.actor_deletes()
            }),
            Property::sometimes("a failed join's pool is sealed", |_, world: &World| {
                world.must_be_sealed()
                    && world.entry().is_some_and(|entry| entry.mode == NodeMode::Sealed)
            }),
            Property::sometimes("a rollback has ended", |_, world: &World| {
                world.journal == NodeState::Released
            }),
        ]
    }
}
