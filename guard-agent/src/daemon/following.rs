//! Settings from the policy in force, beside the maps: the files that are watched, and the canary's
//! interval. They are adjusted in one place, for every way in which a policy comes into force (a
//! watched file, the tick, a request, a signal).

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::host::watch::PathWatcher;

pub(super) struct Following {
    /// `None`: files cannot be watched on this host.
    pub watcher: Option<PathWatcher>,
    pub canary: Interval,
}

impl Following {
    /// Must be called within a tokio runtime.
    pub(super) fn begin(paths: Vec<PathBuf>, canary_every: Duration) -> Self {
        let watcher = PathWatcher::new(paths)
            .inspect_err(|error| {
                tracing::warn!(%error, "files are not watched: their changes are found by the \
                                        tick");
            })
            .ok();
        Self { watcher, canary: beat(canary_every) }
    }

    /// Goes over to these paths, also when they are the same as before: a mount may hide
    /// directories that were watched. The canary's timer goes on unless its interval is another
    /// one.
    pub(super) fn follow(&mut self, paths: Vec<PathBuf>, canary_every: Duration) {
        if let Some(Err(error)) = self.watcher.as_mut().map(|watcher| watcher.set_paths(paths)) {
            tracing::warn!(%error, "not every file is watched: changes are found by the tick");
        }
        if self.canary.period() != canary_every {
            self.canary = beat(canary_every);
        }
    }
}

fn beat(every: Duration) -> Interval {
    let mut beat = interval_at(Instant::now() + every, every);
    // On a host so busy that one proof outlasts the interval, proofs must not pile up.
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_new_policys_paths_and_interval_are_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("first"), directory.path().join("second"));
        let mut following = Following::begin(vec![first.clone()], HOUR);
        following.follow(vec![first, second.clone()], Duration::from_millis(1));
        fs::write(&second, "").unwrap();
        assert_eq!(following.watcher.as_mut().unwrap().changed().await.unwrap(), [second]);
        following.canary.tick().await;
    }

    #[tokio::test]
    async fn an_unchanged_interval_does_not_put_the_canary_off() {
        let mut following = Following::begin(Vec::new(), HOUR);
        let due = following
            .canary
            .poll_tick(&mut std::task::Context::from_waker(std::task::Waker::noop()));
        assert!(due.is_pending());
        let deadline = format!("{:?}", following.canary);
        following.follow(Vec::new(), HOUR);
        assert_eq!(format!("{:?}", following.canary), deadline);
    }
}
