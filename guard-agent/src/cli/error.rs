//! Errors of guardctl's commands, with exit codes and advice.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::own_cgroup::CgroupError;
use crate::cli::client::ClientError;
use crate::host::rollback::helper::HelperError;
use crate::host::service::ServiceError;
use crate::host::wipe::WipeError;
use crate::model::exit::Exit;

/// A command has no result.
#[derive(Debug, Error)]
pub enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot write the output")]
    Output(#[from] io::Error),
    #[error("the policy that the agent has in force is not understood by this guardctl")]
    ForeignPolicy(#[source] crate::model::policy::PolicyErrors),
    #[error("the command was not run")]
    Exec(#[from] ExecError),
    #[error("there is no cgroup for the command")]
    OwnCgroup(#[from] CgroupError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error(transparent)]
    Wipe(#[from] WipeError),
    #[error("the helper process did not do its work")]
    Helper(#[source] HelperError),
}

impl CliError {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Client(error) => error.exit(),
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
            Self::Node(error) => error.exit(),
            Self::Service(error) => error.exit(),
            Self::Output(_)
            | Self::ForeignPolicy(_)
            | Self::Exec(_)
            | Self::OwnCgroup(_)
            | Self::Wipe(_)
            | Self::Helper(_) => Exit::Failure,
        }
    }

    pub(super) fn fix(&self) -> Option<String> {
        match self {
            Self::Client(error) => Some(error.fix()),
            Self::Node(error) => Some(error.fix()),
            Self::OwnCgroup(error) => Some(error.fix().to_owned()),
            Self::Wipe(error) => Some(error.fix()),
            Self::Service(error) => Some(error.fix()),
            Self::Output(_) | Self::ForeignPolicy(_) | Self::Helper(_) | Self::Exec(_) => None,
        }
    }
}

/// The command could not be run.
#[derive(Debug, Error)]
#[error("start {}", program.display())]
pub struct ExecError {
    pub(super) program: PathBuf,
    #[source]
    pub(super) source: io::Error,
}

/// A command that works on a node was not carried out.
#[derive(Debug, Error)]
pub enum NodeError {
    #[error("no root of the policy has join = \"incus\"")]
    NoNode,
    #[error("which node? {}", list(nodes))]
    Ambiguous { nodes: Vec<PathBuf> },
    #[error("{root} is no node of the policy in force; nodes: {}", list(nodes))]
    Unknown { root: PathBuf, nodes: Vec<PathBuf> },
    #[error("this needs uid 0")]
    NotRoot,
    #[error("guardctl runs in a mount or PID namespace that is not the host's")]
    OtherNamespace,
    #[error("{root} lies on a network filesystem")]
    OnNetwork { root: PathBuf },
    #[error("instances run that use {root}: {}", processes.join("; "))]
    Instances { root: PathBuf, processes: Vec<String> },
    #[error("guests use the pools of {root}: {}", guests.join("; "))]
    Guests { root: PathBuf, guests: Vec<String> },
    #[error("{root} has local pools that would be lost: {}", pools.join("; "))]
    LocalPools { root: PathBuf, pools: Vec<String> },
    #[error("Incus still runs (process {pid}) after it was stopped: something starts it again")]
    StillRuns { pid: u32 },
    #[error("cannot tell whether Incus runs")]
    DaemonUnknown,
    #[error("Incus does not run, and cannot stop its instances")]
    CannotStopInstances,
    #[error("Incus does not run")]
    NotStarted { command: String },
    #[error("{units} cannot start: masked")]
    Masked { units: String },
    #[error("an earlier rollback or wipe has left {path}, which keeps Incus from starting")]
    Held { path: PathBuf },
    #[error("interrupted while {doing}")]
    Interrupted { doing: &'static str, next: String },
    #[error("{what} has not ended within {} s", limit.as_secs())]
    Overdue { what: &'static str, limit: std::time::Duration, next: String },
    #[error("{operation}")]
    Io {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
}

impl NodeError {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoNode | Self::Unknown { .. } | Self::Ambiguous { .. } | Self::NotRoot => {
                Exit::Usage
            }
            Self::OtherNamespace
            | Self::OnNetwork { .. }
            | Self::Instances { .. }
            | Self::Guests { .. }
            | Self::LocalPools { .. }
            | Self::CannotStopInstances
            | Self::Held { .. }
            | Self::Masked { .. } => Exit::Refused,
            Self::StillRuns { .. }
            | Self::DaemonUnknown
            | Self::NotStarted { .. }
            | Self::Interrupted { .. }
            | Self::Overdue { .. }
            | Self::Io { .. } => Exit::Failure,
        }
    }

    /// The advice to the operator.
    pub fn fix(&self) -> String {
        match self {
            Self::NotStarted { command } => return format!("start it first: {command}"),
            Self::Masked { units } => return format!("systemctl unmask {units}, then try again"),
            Self::Interrupted { next, .. } | Self::Overdue { next, .. } => return next.clone(),
            Self::NoNode => {
                "add [[root]] preset = \"incus\" (or join = \"incus\") to the policy; guardctl \
                 policy check"
            }
            Self::Ambiguous { .. } | Self::Unknown { .. } => "name one: --root DIR",
            Self::NotRoot => "run it as root (sudo guardctl …)",
            Self::OtherNamespace => "run it on the host: nsenter --mount --target 1 guardctl …",
            Self::OnNetwork { .. } => {
                "the files below it belong to others: guardctl does not delete them"
            }
            Self::Instances { .. } => {
                "stop them (incus stop --all --all-projects, or end the processes), then try \
                 again; or let this command stop them: --stop-instances"
            }
            Self::Guests { .. } => {
                "stop them (incus stop NAME, or end the processes), then try again; or let this \
                 command stop the instances: --stop-instances. guardctl rollback --force unmounts \
                 from under them: what they write there goes to their own disk then"
            }
            Self::Held { .. } => {
                "guardctl rollback (or guardctl wipe) goes on where that ended; to have Incus back \
                 without: guardctl rollback --release-hold"
            }
            Self::LocalPools { .. } => "guardctl wipe, without --yes, lists them",
            Self::CannotStopInstances => {
                "start Incus and stop them (incus stop --all --all-projects), or end their \
                 processes; then try again"
            }
            Self::StillRuns { .. } => {
                "stop what starts it (systemctl status PID names its unit), then run the same \
                 command again"
            }
            Self::DaemonUnknown => "run it as root, and on the host",
            Self::Io { .. } => "correct that, then try again",
        }
        .to_owned()
    }
}

fn list(nodes: &[PathBuf]) -> String {
    if nodes.is_empty() {
        return "none".to_owned();
    }
    nodes.iter().map(|node| node.display().to_string()).collect::<Vec<_>>().join(", ")
}
