//! The storage daemon under the host's init system: stopped without its instances, kept from
//! starting, started again.
//!
//! Instances must survive the stop of their daemon. Facts of the packagings (Debian 13, Zabbly,
//! Gentoo, NixOS, Alpine):
//!
//! | Fact | So |
//! |---|---|
//! | `incus-startup.service` has `Requires=incus.socket` and an `ExecStop=` that runs `incusd shutdown` | stopping the socket in the usual way stops every instance: requirements are ignored (`--job-mode=ignore-requirements`) |
//! | `incus.service` has `KillMode=process`; virtual machines live in its cgroup | stopping the unit ends incusd alone. A unit with another kill mode is not stopped while instances run |
//! | systemd forgets `KillMode=` of a unit that is masked while it runs, and kills its whole cgroup when incusd ends | nothing is masked: a drop-in file whose assertion fails keeps the unit from starting, and leaves its settings alone |
//! | NixOS can be told to put `ExecStop=incus admin shutdown` into `incus.service` | such a unit is not stopped without the operator's word |
//! | OpenRC's `rc-service incusd stop` runs `incusd shutdown` (Alpine) or sends SIGPWR (Gentoo) | there the process gets SIGTERM instead, which leaves its instances |
//!
//! `hold` is that drop-in file, `units` asks and directs systemd, `process` ends a daemon that no
//! unit has started.

pub mod hold;
mod process;
mod units;

#[cfg(test)]
mod fake;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::host::systemd;
use crate::host::wait::Waited;
use crate::model::exit::Exit;

pub use hold::{Hold, Places};
pub use process::terminate;
pub use units::{
    Consent, LiveSystemctl, Reach, Scope, Systemctl, Unit, by_hand, hold as hold_unit, lift, look,
    may_stop, reach, start, stop,
};

/// The service manager of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manager {
    Systemd,
    /// With the name of the daemon's service, if one has been found.
    OpenRc {
        service: Option<String>,
    },
    /// None that is known here.
    Other,
}

/// The host's service manager, and the means to ask it.
#[derive(Clone, Debug)]
pub struct Host {
    pub manager: Manager,
    pub places: Places,
    /// The program `systemctl`.
    pub systemctl: PathBuf,
}

impl Host {
    /// This host.
    pub fn this() -> Self {
        let (manager, places) = (Manager::of_host(), Places::default());
        Self { manager, places, systemctl: "systemctl".into() }
    }
}

/// Names of the daemon's script in `/etc/init.d`: Alpine's, Gentoo's.
const OPENRC_NAMES: [&str; 2] = ["incusd", "incus"];

impl Manager {
    /// That of this host.
    pub fn of_host() -> Self {
        if systemd::manages_host() { Self::Systemd } else { Self::without_systemd(Path::new("/")) }
    }

    fn without_systemd(host: &Path) -> Self {
        // Made by OpenRC when it boots a host; its tools may be installed without that.
        if !host.join("run/openrc/softlevel").exists() {
            return Self::Other;
        }
        let exists = |name: &&str| host.join("etc/init.d").join(name).exists();
        Self::OpenRc { service: OPENRC_NAMES.into_iter().find(exists).map(str::to_owned) }
    }

    /// The command with which an operator starts a daemon that was stopped by a signal.
    pub fn start_command(&self, units: &[String]) -> String {
        match self {
            Self::Systemd => format!("systemctl start {}", units.join(" ")),
            // OpenRC takes a service whose process was ended by others for started.
            Self::OpenRc { service: Some(name) } => {
                format!("rc-service {name} zap; rc-service {name} start")
            }
            Self::OpenRc { service: None } | Self::Other => {
                "start incusd in the way in which it was started before".to_owned()
            }
        }
    }
}

/// Why the daemon was not stopped, kept from starting, or started.
#[derive(Debug, Error)]
pub enum ServiceError {
    #[error("systemctl {arguments} ended with {status}: {message}")]
    Systemctl { arguments: String, status: String, message: String },
    #[error("run {program}")]
    Run {
        program: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{operation} process {pid}")]
    Process {
        operation: &'static str,
        pid: u32,
        #[source]
        source: io::Error,
    },
    #[error("{operation} {path}, which keeps Incus from starting")]
    Hold {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("systemd does not see {path}, which keeps {unit} from starting")]
    HoldUnseen { unit: String, path: PathBuf },
    #[error("stopping {unit} would stop its instances: it has ExecStop={command}")]
    StopsInstances { unit: String, command: String },
    #[error(
        "stopping {unit} would kill {instances} instances: it has KillMode={kill_mode}, not process"
    )]
    KillsInstances { unit: String, kill_mode: String, instances: usize },
    #[error("process {pid} is supervised by {supervisor}, which would start it again at once")]
    Supervised { pid: u32, supervisor: String },
    #[error("{what} has not ended within {} s", limit.as_secs())]
    Overdue { what: String, limit: Duration },
    #[error("interrupted while {what}")]
    Interrupted { what: String },
}

impl ServiceError {
    /// Of a wait that ended early.
    pub(crate) fn early(waited: Waited, what: &str, limit: Duration) -> Self {
        match waited {
            Waited::Overdue => Self::Overdue { what: what.to_owned(), limit },
            Waited::Interrupted | Waited::Ended => Self::Interrupted { what: what.to_owned() },
        }
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::StopsInstances { .. } | Self::KillsInstances { .. } | Self::Supervised { .. } => {
                Exit::Refused
            }
            _ => Exit::Failure,
        }
    }

    /// The advice to the operator.
    pub fn fix(&self) -> String {
        let again = "then run the same command again";
        match self {
            Self::Systemctl { .. } => format!("see systemctl status incus.service, {again}"),
            Self::Run { .. } | Self::Process { .. } | Self::Hold { .. } => {
                format!("correct that, {again}")
            }
            Self::HoldUnseen { .. } => format!("systemctl daemon-reload, {again}"),
            Self::StopsInstances { .. } => {
                "if its instances may be stopped: the same command with --stop-instances".to_owned()
            }
            Self::KillsInstances { unit, .. } => format!(
                "is the unit masked while it runs? systemctl unmask {unit}, {again}; or stop the \
                 instances too: --stop-instances"
            ),
            Self::Supervised { supervisor, .. } => {
                let command = match supervisor.as_str() {
                    "runsv" => "sv down incus",
                    "supervise-daemon" => "rc-service incusd stop, which stops its instances",
                    _ => "its own tool",
                };
                format!("tell {supervisor} to stop it ({command}), {again}")
            }
            Self::Overdue { .. } => format!(
                "it goes on stopping: wait (systemctl status incus.service), {again}, with a \
                 longer --stop-timeout if need be. To end incusd alone, without its instances: \
                 systemctl kill --kill-whom=main --signal=KILL incus.service"
            ),
            Self::Interrupted { .. } => {
                "nothing was unmounted or deleted: run the same command again. Incus stays kept \
                 from starting where that was said above; to have it back: guardctl rollback \
                 --release-hold"
                    .to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_init_system_is_recognised_and_its_start_command_named() {
        let host = tempfile::tempdir().unwrap();
        let find = || Manager::without_systemd(host.path());
        assert_eq!(find(), Manager::Other);
        assert!(find().start_command(&[]).contains("in the way in which it was started"));
        std::fs::create_dir_all(host.path().join("run/openrc")).unwrap();
        std::fs::create_dir_all(host.path().join("etc/init.d")).unwrap();
        std::fs::write(host.path().join("run/openrc/softlevel"), "default").unwrap();
        assert_eq!(find(), Manager::OpenRc { service: None });
        std::fs::write(host.path().join("etc/init.d/incusd"), "").unwrap();
        let command = find().start_command(&[]);
        assert_eq!(command, "rc-service incusd zap; rc-service incusd start");
        let units = ["incus.socket".to_owned()];
        assert_eq!(Manager::Systemd.start_command(&units), "systemctl start incus.socket");
    }
}
