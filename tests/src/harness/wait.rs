//! The one place where tests wait for something that tells nobody when it happens.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

const INTERVAL: Duration = Duration::from_millis(20);

/// Asks `condition` until it is true, or fails naming `what` after `limit`.
pub fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    until_some(what, limit, || Ok(condition()?.then_some(())))
}

/// Asks `question` until it has an answer, or fails naming `what` after `limit`.
pub fn until_some<T>(
    what: &str,
    limit: Duration,
    mut question: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = question().with_context(|| format!("while waiting: {what}"))? {
            return Ok(answer);
        }
        if Instant::now() >= end {
            bail!("waited {:.1} s in vain: {what}", limit.as_secs_f64());
        }
        thread::sleep(INTERVAL);
    }
}
