//! Why the agent does not run, and the exit code that says so.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::control::SocketError;
use crate::host::audit_log::AuditError;
use crate::host::bpf::{CanaryError, LoadError, MapAccessError};
use crate::host::fanotify::FanotifyError;
use crate::host::state_file::StateError;
use crate::model::exit::Exit;
use crate::model::policy::PolicyErrors;

/// Why the maps could not be brought up to date.
#[derive(Debug, Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Maps(#[from] MapAccessError),
    #[error("read the mount table")]
    MountTable(#[source] io::Error),
    #[error("look at {HOST_NAMESPACE}, the mount namespace of PID 1")]
    HostNamespace(#[source] io::Error),
}

/// The mount namespace that is the host's view.
pub(super) const HOST_NAMESPACE: &str = "/proc/1/ns/mnt";

/// Why the agent does not run.
#[derive(Debug, Error)]
pub enum DaemonError {
    #[error("the policy is not usable:\n{0}")]
    Policy(PolicyErrors),
    #[error(
        "the state directory {directory} lies below the guarded root {root}: choose another with \
         --state-dir"
    )]
    StateBelowRoot { directory: PathBuf, root: PathBuf },
    #[error(
        "this process runs in the PID namespace {found}, which is a container's: it would take the \
         host for a guest, and allow what it is to deny. Nothing was changed: run it on the host, \
         or give its container the host's PID namespace (docker run --pid=host, Kubernetes: \
         hostPID: true) and mounts"
    )]
    InContainer { found: String },
    #[error("another agent holds {lock}: stop it first (systemctl stop guard-agent)")]
    Locked { lock: PathBuf },
    #[error("the mount table has no line for {path}: is /proc mounted?")]
    NoMountTable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "nothing is enforced ({reasons}); run `guardctl doctor` for the fix (policy `[agent] \
         on_inactive = \"run\"` keeps the agent running all the same)"
    )]
    Inactive {
        reasons: String,
        #[source]
        source: CanaryError,
    },
    #[error("the policy could not be brought into the kernel's maps")]
    NotReconciled(#[from] ReconcileError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Pins(#[from] crate::host::bpf::pins::PinError),
    #[error(transparent)]
    Map(#[from] MapAccessError),
    #[error(transparent)]
    Fanotify(#[from] FanotifyError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("{operation}")]
    Io {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
}

impl DaemonError {
    /// The process's exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Policy(_) | Self::StateBelowRoot { .. } => Exit::Policy,
            Self::Inactive { .. }
            | Self::InContainer { .. }
            | Self::Load(
                LoadError::NoHook { .. }
                | LoadError::NoBtf(_)
                | LoadError::Btf(_)
                | LoadError::NoObject
                | LoadError::NoFunction { .. }
                | LoadError::Program(_),
            ) => Exit::Inactive,
            Self::Load(LoadError::Incompatible { .. } | LoadError::OlderPins { .. }) => {
                Exit::IncompatiblePins
            }
            _ => Exit::Failure,
        }
    }
}

/// An error of an operation that is no other module's.
pub(super) fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::Io { operation, source }
}
