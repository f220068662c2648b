//! The one place where tests wait for something that tells nobody when it happens.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Longest wait of a test for an agent's reaction to a change, on an emulated machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// Between two questions, at first and at most: asking takes an emulated machine's time from the
/// awaited work.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Asks `condition` until it is true, or fails naming `what` after `limit`.
pub fn until(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    until_some(what, limit, || Ok(condition()?.then_some(())))
}

/// Asks `question` until it has an answer, or fails naming `what` after `limit`.
pub fn until_some<T>(
    what: &str,
    limit: Duration,
    mut question: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = question().with_context(|| format!("while waiting: {what}"))? {
            return Ok(answer);
        }
        if start.elapsed() >= limit {
            bail!("waited {:.1} s in vain: {what}", limit.as_secs_f64());
        }
        thread::sleep((start.elapsed() / 20).clamp(INTERVALS.0, INTERVALS.1));
    }
}
