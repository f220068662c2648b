//! Errors of the tier `fanotify` on the agent's side.

use std::io;

use thiserror::Error;

use super::seals::SealsError;
use crate::host::bpf::CanaryError;

/// The tier could not be brought into force.
#[derive(Debug, Error)]
pub enum FanotifyError {
    #[error("{operation}")]
    Io {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Seals(#[from] SealsError),
    #[error(transparent)]
    Canary(#[from] CanaryError),
}

pub(super) fn failed<E: Into<io::Error>>(
    operation: &'static str,
) -> impl FnOnce(E) -> FanotifyError {
    move |source| FanotifyError::Io { operation, source: source.into() }
}
