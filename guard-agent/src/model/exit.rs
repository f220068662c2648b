//! Exit codes of both binaries. Documented in docs/OPERATIONS.md; never renumbered.

use std::process::ExitCode;

/// Why a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Something failed that the other codes do not name.
    Failure = 1,
    /// The command line is wrong (clap's own code).
    Usage = 2,
    /// The policy file is missing or wrong.
    Policy = 3,
    /// Nothing is enforced: the posture is `inactive`.
    Inactive = 4,
    /// The agent could not be reached.
    Unreachable = 5,
    /// The agent refused the request.
    Refused = 6,
    /// Enforced in part only: the posture is `degraded` or `audit-only`, or a check of `doctor`
    /// failed.
    Degraded = 7,
    /// The pinned maps hold content that this agent cannot carry over.
    IncompatiblePins = 8,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}
