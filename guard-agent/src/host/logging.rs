//! Destination of the log: journald where standard error is its stream, else standard error. Either
//! way each line has one time.

use std::io::IsTerminal;
use std::panic;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::host::journal::Journal;

/// Begins to log. `object`: the process on whose behalf this one works.
pub fn begin(object: Option<u32>) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    match Journal::of_standard_error("guard-agent", object) {
        Some(journal) => {
            registry.with(journal).init();
            // On standard error it would have no priority.
            panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a thread panicked")));
        }
        None => {
            let lines = tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(std::io::stderr().is_terminal());
            registry.with(lines).init();
        }
    }
}
