//! A cgroup for guardctl alone, which it then asks a lease for.
//!
//! With systemd, guardctl starts itself once more in a scope, as the same process; elsewhere
//! (OpenRC, a bare guest) it makes a cgroup below the hierarchy's root, and enters it. The next
//! call removes the empty cgroups that remain: nobody else can, since guardctl becomes the command.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::host::mount_table;
use crate::host::{roots, systemd};

/// Set for the guardctl in the scope, never for the command: the value of `INVOCATION_ID` before
/// systemd-run set its own.
pub const MARK: &str = "GUARDCTL_OWN_CGROUP";
const INVOCATION: &str = "INVOCATION_ID";
/// Above the cgroups that guardctl makes itself.
const PARENT: &str = "/guard-agent.exec";
/// Another guardctl may remove a new cgroup before it is entered.
const ATTEMPTS: u32 = 16;

/// There is no cgroup for guardctl alone.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("this host runs systemd, and has no systemd-run")]
    NoSystemdRun,
    #[error("no cgroup v2 hierarchy is mounted")]
    NoHierarchy,
    #[error("{operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl CgroupError {
    /// The advice to the operator.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::NoSystemdRun => "install it: Debian's package systemd has it",
            Self::NoHierarchy => "mount one: mount -t cgroup2 cgroup2 /sys/fs/cgroup",
            Self::Io { .. } => "run guardctl as root, in the host's own mount namespace",
        }
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Io { operation, path, source }
}

/// Returns in a cgroup of guardctl's own. With systemd, this process begins anew for that.
pub fn enter() -> Result<(), CgroupError> {
    if env::var_os(MARK).is_some() {
        return Ok(());
    }
    if systemd::manages_host() { become_scope() } else { make() }
}

/// Gives a command the environment that guardctl had at first.
pub fn restore_environment(command: &mut Command) {
    let Some(before) = env::var_os(MARK) else { return };
    command.env_remove(MARK);
    if before.is_empty() {
        command.env_remove(INVOCATION);
    } else {
        command.env(INVOCATION, before);
    }
}

/// Does not return where it succeeds.
fn become_scope() -> Result<(), CgroupError> {
    let own = Path::new("/proc/self/exe");
    let program = env::current_exe().map_err(failed("find", own))?;
    let unit = format!("guard-exec-{}", systemd::unique());
    let mut command = systemd::in_scope(&unit, "Command with a lease (guardctl exec)", &[])
        .ok_or(CgroupError::NoSystemdRun)?;
    let error = command
        .arg(program)
        .args(env::args_os().skip(1))
        .env(MARK, env::var_os(INVOCATION).unwrap_or_default())
        .exec();
    let program = PathBuf::from(command.get_program());
    Err(failed("start", &program)(error))
}

fn make() -> Result<(), CgroupError> {
    let table = Path::new(mount_table::OWN);
    let snapshot = mount_table::open(table).map_err(failed("read", table))?;
    let parent = roots::cgroup_directory(PARENT, &snapshot).ok_or(CgroupError::NoHierarchy)?;
    fs::create_dir_all(&parent).map_err(failed("make", &parent))?;
    sweep(&parent);
    let own = parent.join(OsString::from(systemd::unique()));
    let mut outcome = Ok(());
    for _ in 0..ATTEMPTS {
        outcome = enter_new(&own);
        if !matches!(&outcome, Err(CgroupError::Io { source, .. }) if is_gone(source)) {
            break;
        }
    }
    outcome
}

fn enter_new(own: &Path) -> Result<(), CgroupError> {
    fs::create_dir(own).map_err(failed("make", own))?;
    // `0` is the process that writes it.
    let entrance = own.join("cgroup.procs");
    fs::write(&entrance, "0").map_err(failed("write to", &entrance))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
}

/// Removes the cgroups in which nothing runs any more. Those that a running command has made below
/// its own are left to it, also the empty ones.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && is_empty(&entry.path()) {
            sweep(&entry.path());
            // Another guardctl may have entered it meanwhile: then the kernel refuses.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Whether no process lives in a cgroup or below it.
fn is_empty(cgroup: &Path) -> bool {
    let events = fs::read_to_string(cgroup.join("cgroup.events"));
    events.is_ok_and(|events| events.lines().any(|line| line == "populated 0"))
}
