//! Takes over from the means in force, and puts this agent's means in their place.
//!
//! Nothing older ends before the new means have answered the canary.

use guard_common::Counter;
use tokio::io::Interest;

use super::{Agent, ReconcileCause};
use crate::daemon::error::{DaemonError, failed};
use crate::daemon::means::{Answers, ResponderMeans};
use crate::daemon::options::Options;
use crate::daemon::tiers::{Foundation, Ladder, Reached};
use crate::host::audit_log::origin;
use crate::host::bpf::load::BareMaps;
use crate::host::bpf::{CanaryError, canary, object};
use crate::host::clock;
use crate::host::fanotify;
use crate::host::fanotify::Supervisor;
use crate::host::mount_table::MountWatch;
use crate::host::reactor;
use crate::model::audit::Body;
use crate::model::audit::record::{AgentChange, IncidentBody, PolicyChange};
use crate::model::errors::chain;
use crate::model::policy::TierChoice;
use crate::model::posture::trouble;

fn boot_id() -> Result<String, DaemonError> {
    Ok(origin::of_this_host().map_err(failed("read the boot id"))?.boot_id)
}

impl Agent {
    /// Attaches the prepared tier (or another one of the ladder), and proves it before any older
    /// means go. Returns the source of the responder's records, if there is one.
    pub(crate) fn put_in_force(
        &mut self,
        options: &Options,
        foundation: Foundation,
        mut ladder: Ladder,
        mounts: &MountWatch,
    ) -> Result<Option<Answers>, DaemonError> {
        // Makes room for records of denials meanwhile.
        self.drain_old_records();
        let reached = self.attach_and_prove(foundation, &mut ladder)?;
        self.enforcement.passed_over = ladder.passed_over;
        let (answers, proven) = match reached {
            Reached::Programs(programs, proven) => {
                self.enforcement.hold(Box::new(programs));
                (None, proven)
            }
            Reached::Maps(bare) => {
                let answers = self.start_responder(options, bare, mounts)?;
                (Some(answers), self.enforcement.prove().expect("the responder is in use"))
            }
        };
        let adopted = self.enforcement.means().is_some_and(|means| means.is_adopted());
        let retired = match &proven {
            Ok(()) => {
                self.succession.settle(&mut self.enforcement.maps)?;
                let others = self.enforcement.retire_others()?;
                if answers.is_none() {
                    self.end_responders(options);
                }
                others + self.take_over()?
            }
            Err(_) => 0,
        };
        self.announce(match (adopted, retired) {
            (true, _) => AgentChange::Adopted,
            (false, 0) => AgentChange::Started,
            (false, _) => AgentChange::Upgraded,
        });
        // Not while programs of another layout enforce: this agent could tell them nothing.
        let may_run_inactive =
            self.policy.current.allow_inactive() && !self.succession.is_pending();
        self.enforcement.conclude(&proven, may_run_inactive)?;
        match proven {
            Ok(()) => self.canary_passed(),
            Err(error) => {
                self.canary_failed(&error);
                if !may_run_inactive {
                    return Err(self.inactive(error));
                }
            }
        }
        Ok(answers)
    }

    /// Attaches the prepared tier, or the next one, until one answers the canary. The last one is
    /// returned with the canary's result.
    fn attach_and_prove(
        &mut self,
        first: Foundation,
        ladder: &mut Ladder,
    ) -> Result<Reached, DaemonError> {
        let mut next = first;
        loop {
            let prepared = match next {
                Foundation::Programs(prepared) => prepared,
                Foundation::Maps(bare) => return Ok(Reached::Maps(bare)),
            };
            let tier = prepared.tier();
            match prepared.attach() {
                Ok(programs) => {
                    match canary::prove(&mut self.enforcement.maps, programs.tokens()) {
                        Err(error) if ladder.has_more() => {
                            if !programs.adopted {
                                programs.withdraw()?;
                            }
                            ladder.pass_over(tier, &error, &chain(&error));
                        }
                        outcome => return Ok(Reached::Programs(programs, outcome)),
                    }
                }
                Err(error) if ladder.goes_on_after(&error) => {
                    ladder.pass_over(tier, &error, &error.in_brief());
                }
                Err(error) => return Err(error.into()),
            }
            next = ladder.next()?;
        }
    }

    /// Starts a responder, and synchronizes marks and seals with the maps.
    fn start_responder(
        &mut self,
        options: &Options,
        bare: BareMaps,
        mounts: &MountWatch,
    ) -> Result<Answers, DaemonError> {
        let (supervisor, pipe) = Supervisor::start(
            &bare.map_directory(),
            &options.pin_dir,
            &options.state_dir,
            &boot_id()?,
        )?;
        let answers = reactor::watch(pipe, Interest::READABLE)
            .map_err(failed("watch the responder's records"))?;
        self.enforcement.hold(Box::new(ResponderMeans { supervisor, maps: bare }));
        let passed_over = &self.enforcement.passed_over;
        let why = match passed_over.is_empty() {
            true => "policy asks for this tier".to_owned(),
            false => passed_over.join("; "),
        };
        self.posture.troubles.set(trouble::WEAK_TIER, why);
        self.reconcile(ReconcileCause::Start, mounts)?;
        Ok(answers)
    }

    /// Ends the remains of an agent of the tier fanotify, once a stronger tier is proven.
    fn end_responders(&mut self, options: &Options) {
        let boot_id = boot_id().map_err(|error| chain(&error));
        let ended = boot_id.and_then(|boot_id| {
            fanotify::unload(&options.pin_dir, &options.state_dir, &boot_id)
                .map_err(|error| chain(&error))
        });
        if let Err(error) = ended {
            tracing::error!(
                error,
                "the marks, seals or responder of the tier fanotify could not be removed"
            );
            self.posture.troubles.set(trouble::UNSEALED, error);
        }
    }

    /// Writes down the records that wait in the rings of other layouts.
    fn drain_old_records(&mut self) {
        let (offset, _) = clock::read();
        for record in self.succession.records() {
            self.write_decision(&record, offset);
        }
    }

    /// Ends all other layouts: their programs, then their maps, whose records and totals are taken
    /// over. Returns how many of them had programs.
    fn take_over(&mut self) -> Result<usize, DaemonError> {
        if !self.succession.has_others() {
            return Ok(0);
        }
        let retired = self.succession.retire()?;
        self.drain_old_records();
        let (offset, _) = clock::read();
        for summary in self.succession.ended_incidents() {
            let place = self.book.place(summary.key.generation);
            self.write(Body::Incident(Box::new(IncidentBody::new(&summary, offset, place))));
        }
        self.succession.carry_totals(&mut self.enforcement.maps);
        self.succession.remove_others()?;
        // Counts that came with the totals are not new.
        self.pulse.unrecorded_seen = self.counter(Counter::ErrorIncidentsFull);
        self.pulse.ended_seen = self.counter(Counter::PoolsEnded);
        Ok(retired)
    }

    /// Writes down that the agent is up, and with which policy.
    fn announce(&mut self, change: AgentChange) {
        self.write_agent(change);
        let (policy, generation) = (self.policy.current.hash().to_owned(), self.policy.generation);
        tracing::info!(build = object::BUILD, ?change, policy, generation, "agent is up");
        self.write_policy(PolicyChange::Loaded, Vec::new());
        if self.policy.rejected.is_some() {
            // The file is wrong, and the last good policy was taken instead.
            self.write_policy(PolicyChange::Rejected, self.policy.errors().to_vec());
        }
    }

    /// Why nothing is enforced.
    fn inactive(&self, source: CanaryError) -> DaemonError {
        let reasons = self.posture.posture().into_iter().flat_map(|posture| &posture.reasons);
        let reasons: Vec<String> =
            reasons.map(|reason| format!("{}: {}", reason.code, reason.detail)).collect();
        DaemonError::Inactive { reasons: reasons.join("; "), source }
    }

    /// Takes up the nodes of the policy, looks at each before anything is decided about its pools,
    /// and brings policy and nodes into the maps: before anything is attached, so that the first
    /// decision already knows them.
    pub(crate) async fn open_nodes(&mut self, mounts: &MountWatch) -> Result<(), DaemonError> {
        self.take_up_nodes();
        self.observe_nodes_once(|_| true).await;
        self.reconcile(ReconcileCause::Start, mounts)?;
        // Pools that were mounted while no agent ran: they have entries only now.
        if self.observe_nodes_once(|node| !node.machine().unconfirmed().is_empty()).await {
            self.reconcile(ReconcileCause::Start, mounts)?;
        }
        self.nodes.start_observers();
        Ok(())
    }

    /// Compares the tier that has proven itself with policy's tier and the host's best one, and
    /// keeps the best one in mind.
    pub(super) fn assess_tier(&mut self) {
        let (Some(tier), choice) = (self.enforcement.proven_tier(), self.policy.current.tier())
        else {
            return;
        };
        let troubles = &mut self.posture.troubles;
        troubles.set_if(trouble::OTHER_TIER, || {
            (!choice.accepts(tier)).then(|| {
                format!("policy asks for {}, and {} is in force", choice.name(), tier.name())
            })
        });
        let best = self.grants.best_tier();
        // An operator who asks for this tier by name has taken note of it.
        let lost = best.filter(|best| *best < tier && choice != TierChoice::Only(tier));
        troubles.set_if(trouble::TIER_LOST, || {
            let best = lost?.name();
            let why = self.enforcement.passed_over.join("; ");
            Some(format!("{best} was in force on this host, and now {} is ({why})", tier.name()))
        });
        if lost.is_none() && best != Some(tier) {
            self.grants.set_best_tier(tier);
            self.save_state();
        }
    }
}
