//! The two kinds of means: programs in the kernel, and a responder in user space.

use std::fs::File;
use std::path::PathBuf;

use guard_common::Tier;
use tokio::io::unix::AsyncFd;

use super::enforcement::{Marks, Means};
use super::error::DaemonError;
use crate::host::bpf::load::BareMaps;
use crate::host::bpf::{CanaryError, Maps, Programs, canary};
use crate::host::fanotify::Supervisor;
use crate::model::posture::{Troubles, trouble};

impl Means<Maps> for Programs {
    fn tier(&self) -> Tier {
        Self::tier(self)
    }

    fn is_adopted(&self) -> bool {
        self.adopted
    }

    fn prove(&mut self, maps: &mut Maps) -> Result<(), CanaryError> {
        canary::prove(maps, self.tokens())
    }

    fn retire_others(&mut self) -> Result<usize, DaemonError> {
        Ok(Self::retire_others(self)?)
    }

    fn withdraw(self: Box<Self>) -> Result<(), DaemonError> {
        Ok(Self::withdraw(*self)?)
    }

    fn note_troubles(&self, troubles: &mut Troubles) {
        troubles.set_if(trouble::UNPINNED, || {
            (!self.is_pinned()).then(|| "a link is no longer pinned".to_owned())
        });
        let skipped = self.skipped();
        troubles.set_if(trouble::SKIPPED, || {
            let what = "decisions were skipped, each a deletion (on any filesystem) that was \
                        allowed and not recorded";
            (skipped > 0).then(|| format!("{skipped} {what}"))
        });
    }

    fn any_program(&self) -> Option<PathBuf> {
        Some(Self::any_program(self))
    }
}

/// Source of the responder's records.
pub(super) type Answers = AsyncFd<File>;

/// The supervisor of the tier fanotify's responder, over maps that no program of another tier is to read.
#[derive(Debug)]
pub(super) struct ResponderMeans {
    pub supervisor: Supervisor,
    pub maps: BareMaps,
}

impl Means<Maps> for ResponderMeans {
    fn tier(&self) -> Tier {
        Tier::Fanotify
    }

    fn prove(&mut self, maps: &mut Maps) -> Result<(), CanaryError> {
        self.supervisor.prove(maps)
    }

    fn retire_others(&mut self) -> Result<usize, DaemonError> {
        Ok(self.supervisor.retire_others() + self.maps.retire_programs()?)
    }

    fn withdraw(self: Box<Self>) -> Result<(), DaemonError> {
        self.supervisor.withdraw();
        Ok(())
    }

    fn has_marks(&self) -> bool {
        true
    }

    fn apply(&mut self, marks: &Marks<'_>) {
        self.supervisor.apply(&marks.pools, &marks.leased, &marks.special, marks.snapshot);
    }

    fn mounts_changed(&mut self) {
        self.supervisor.mounts_changed();
    }

    fn tick(&mut self) {
        self.supervisor.tick();
    }

    fn note_troubles(&self, troubles: &mut Troubles) {
        let problems = self.supervisor.problems();
        troubles.set_if(trouble::UNMARKED, || problems.unmarked);
        troubles.set_if(trouble::UNSEALED, || problems.unsealed);
        troubles.set_if(trouble::UNSEEN, || problems.unseen);
        troubles.set_if(trouble::RESPONDER, || problems.replaced);
    }
}
