//! Replaces a responder that shares the agent's cgroup by one in a scope of its own, with no moment
//! between them.
//!
//! The old one answers until the new one has marked everything. Nothing here waits.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::child::Responder;

/// At most one successor that comes up, and one predecessor that goes.
#[derive(Debug, Default)]
pub(super) struct Handover {
    coming: Option<Responder>,
    going: Option<Responder>,
    /// systemd has refused once: the next agent tries again.
    refused: bool,
}

impl Handover {
    /// A successor that is alive, to be put in the place of `present`. Starts one if it is time for
    /// that.
    pub(super) fn next(
        &mut self,
        present: &Responder,
        maps_directory: &Path,
        records: &OwnedFd,
    ) -> Option<Responder> {
        let Some(mut coming) = self.coming.take() else {
            if !self.refused && !present.is_apart() && self.going.is_none() {
                match Responder::begin_apart(maps_directory, records) {
                    Ok(coming) => self.coming = coming,
                    Err(error) => self.give_up(&crate::model::errors::chain(&error)),
                }
            }
            return None;
        };
        if coming.has_answered() {
            return Some(coming);
        }
        let why =
            coming.ended().or_else(|| coming.is_overdue().then(|| "it does not answer".to_owned()));
        match why {
            Some(why) => {
                coming.kill();
                coming.reap();
                self.give_up(&why);
            }
            None => self.coming = Some(coming),
        }
        None
    }

    /// Keeps one that was replaced, until the new one has carried out its order.
    pub(super) fn leave(&mut self, predecessor: Responder) {
        self.going = Some(predecessor);
    }

    pub(super) fn retire(&mut self, order_is_carried_out: bool) {
        if order_is_carried_out && let Some(mut going) = self.going.take() {
            going.kill();
            going.reap();
        }
    }

    fn give_up(&mut self, why: &str) {
        self.refused = true;
        tracing::warn!(
            why,
            "the responder gets no scope of its own: it stays in the agent's cgroup"
        );
    }
}
