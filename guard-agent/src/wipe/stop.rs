//! Ends the storage daemon, and proves that it has ended: through systemd where that runs, else by SIGTERM to the
//! process. Instances that run on without it are named, since they use what lies below the root.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use crate::events::process::pidfd_open;

/// Longer than systemd's own limit before it kills (90 s).
const LIMIT: Duration = Duration::from_secs(120);

/// The daemon runs on.
#[derive(Debug, Error)]
pub enum StopError {
    #[error("systemctl {arguments} ended with {status}: {message}")]
    Systemctl { arguments: String, status: String, message: String },
    #[error("{operation} process {pid}")]
    Process {
        operation: &'static str,
        pid: u32,
        #[source]
        source: io::Error,
    },
    #[error("process {pid} has not ended {} s after SIGTERM", LIMIT.as_secs())]
    RunsOn { pid: u32 },
    #[error("start {program}")]
    Start {
        program: &'static str,
        #[source]
        source: io::Error,
    },
}

/// The units that would start the daemon, or are it: `incus.service` → its sockets too, which would start it again.
pub fn units(unit: &str) -> Vec<String> {
    let name = unit.strip_suffix(".service").unwrap_or(unit);
    // Sockets first: whoever asks after the service has ended must not start it again.
    vec![
        format!("{name}.socket"),
        format!("{name}-user.socket"),
        format!("{name}-user.service"),
        unit.to_owned(),
    ]
}

/// Stops those units that systemd knows. Returns their names.
pub fn stop_units(units: &[String]) -> Result<Vec<String>, StopError> {
    let mut loaded = Vec::new();
    for unit in units {
        if systemctl(&["show", "--property=LoadState", "--value", unit])?.trim() == "loaded" {
            loaded.push(unit.clone());
        }
    }
    if !loaded.is_empty() {
        let mut arguments = vec!["stop"];
        arguments.extend(loaded.iter().map(String::as_str));
        systemctl(&arguments)?;
    }
    Ok(loaded)
}

fn systemctl(arguments: &[&str]) -> Result<String, StopError> {
    let output = Command::new("systemctl")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| StopError::Start { program: "systemctl", source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(StopError::Systemctl {
        arguments: arguments.join(" "),
        status: output.status.to_string(),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// SIGTERM to one life of a process, and waits for its end. `start_ticks` is field 22 of its stat.
pub fn terminate(pid: u32, start_ticks: u64) -> Result<(), StopError> {
    let failed = |operation| move |source| StopError::Process { operation, pid, source };
    let Some(process) = pidfd_open(pid).map_err(failed("open"))? else { return Ok(()) };
    // From here on the descriptor is that process, whoever gets the pid later. Is it the one that was meant?
    if start_of(pid) != Some(start_ticks) {
        return Ok(());
    }
    pidfd_signal(&process, libc::SIGTERM).map_err(failed("send SIGTERM to"))?;
    let wait = PollTimeout::try_from(LIMIT).unwrap_or(PollTimeout::MAX);
    let mut descriptors = [PollFd::new(std::os::fd::AsFd::as_fd(&process), PollFlags::POLLIN)];
    loop {
        match poll(&mut descriptors, wait) {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(failed("wait for")(error.into())),
            Ok(0) => return Err(StopError::RunsOn { pid }),
            Ok(_) => return Ok(()),
        }
    }
}

fn pidfd_signal(process: &OwnedFd, signal: i32) -> io::Result<()> {
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(process);
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a system call on an open descriptor; without siginfo the kernel makes its own.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, descriptor, signal, none, 0) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    crate::events::process::start_ticks(&stat)
}

/// Processes of instances below a root: monitors of containers, and virtual machines. Found by their arguments.
pub fn instances(proc_root: &Path, root: &Path) -> io::Result<Vec<(u32, String)>> {
    let below = format!("{}/", root.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(proc_root)? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let arguments = fs::read(proc_root.join(format!("{pid}/cmdline"))).unwrap_or_default();
        let text = String::from_utf8_lossy(&arguments).replace('\0', " ");
        let is_instance =
            text.starts_with("[lxc monitor]") || text.contains("qemu-system") || text.contains("forkstart");
        if is_instance && text.contains(&below) {
            found.push((pid, text.trim().chars().take(120).collect()));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_stopped_before_the_service() {
        let found = units("incus.service");
        assert_eq!(found.first().map(String::as_str), Some("incus.socket"));
        assert_eq!(found.last().map(String::as_str), Some("incus.service"));
    }

    #[test]
    fn a_process_is_ended_and_one_that_is_gone_is_no_error() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id();
        let start = start_of(pid).unwrap();
        // Another life of the pid is left alone.
        terminate(pid, start + 1).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        terminate(pid, start).unwrap();
        assert!(!child.wait().unwrap().success());
        terminate(pid, start).unwrap();
    }

    #[test]
    fn instances_of_this_root_are_found() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, arguments) in [
            (10, "[lxc monitor] /var/lib/incus/containers c1"),
            (
                11,
                "/opt/incus/bin/qemu-system-x86_64\0-S\0-name\0v1\0-pidfile\0/var/lib/incus/logs/v1/qemu.pid",
            ),
            (12, "vi\0/var/lib/incus/x"),
            (13, "[lxc monitor] /var/lib/other/containers c1"),
        ] {
            fs::create_dir(proc.path().join(format!("{pid}"))).unwrap();
            fs::write(proc.path().join(format!("{pid}/cmdline")), arguments).unwrap();
        }
        let found = instances(proc.path(), Path::new("/var/lib/incus")).unwrap();
        assert_eq!(found.iter().map(|found| found.0).collect::<Vec<_>>(), [10, 11]);
    }
}
