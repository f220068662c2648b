//! Ends a daemon by a signal: SIGTERM, after which incusd leaves its instances running.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

use super::ServiceError;
use crate::host::process::{pidfd_open, started};
use crate::host::wait;
use crate::host::wait::{Patience, Waited};

const PROC: &str = "/proc";
/// Parents that start a process again at once.
const SUPERVISORS: [&str; 4] = ["runsv", "s6-supervise", "supervise-daemon", "supervise"];

/// SIGTERM to one life of a process, and waits for its end. `start_ticks` is field 22 of its stat.
pub fn terminate(
    pid: u32,
    start_ticks: u64,
    patience: &Patience<'_>,
    alive: &mut dyn FnMut(&str),
) -> Result<(), ServiceError> {
    let failed = |operation| move |source| ServiceError::Process { operation, pid, source };
    let Some(process) = pidfd_open(pid).map_err(failed("open"))? else { return Ok(()) };
    // From here on the descriptor is that process, even if another one gets the pid later. Is it
    // the one that was meant?
    if started(Path::new(PROC), pid) != Some(start_ticks) {
        return Ok(());
    }
    if let Some(supervisor) = supervisor(Path::new(PROC), pid) {
        return Err(ServiceError::Supervised { pid, supervisor });
    }
    signal(&process, libc::SIGTERM).map_err(failed("send SIGTERM to"))?;
    let (what, limit) = (format!("the end of process {pid}"), patience.limit);
    let mut line = |passed: std::time::Duration| {
        let (passed, limit) = (passed.as_secs(), limit.as_secs());
        alive(&format!(
            "waiting for {what}: {passed} s of at most {limit} s (Ctrl-C ends the wait)"
        ));
    };
    match wait::until_readable(process.as_fd(), patience, &mut line).map_err(failed("wait for"))? {
        Waited::Ended => Ok(()),
        early => Err(ServiceError::early(early, &what, limit)),
    }
}

fn signal(process: &OwnedFd, signal: i32) -> io::Result<()> {
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(process);
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a system call on an open descriptor; without siginfo the kernel makes its own.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, descriptor, signal, none, 0) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The parent of a process, if it is a supervisor.
fn supervisor(proc_root: &Path, pid: u32) -> Option<String> {
    let status = fs::read_to_string(proc_root.join(format!("{pid}/status"))).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim();
    let name = fs::read_to_string(proc_root.join(parent).join("comm")).ok()?;
    // The kernel keeps 15 bytes of a name.
    let is_it = |known: &&&str| known.get(..15).unwrap_or(known) == name.trim_end();
    SUPERVISORS.iter().find(is_it).map(|known| (*known).to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::host::wait::Interrupt;

    #[test]
    fn a_process_is_ended_and_one_that_is_gone_is_no_error() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id();
        let start = started(Path::new(PROC), pid).unwrap();
        let (reader, _writer) = io::pipe().unwrap();
        let interrupt = Interrupt::by(reader.into());
        let patience = Patience::new(Duration::from_secs(100), &interrupt);
        let end = |start| terminate(pid, start, &patience, &mut |_| {});
        // Another life of the pid is left alone.
        end(start + 1).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        end(start).unwrap();
        assert!(!child.wait().unwrap().success());
        end(start).unwrap();
    }

    #[test]
    fn a_supervised_process_is_known() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, parent, name) in [(7, 5, "incusd"), (5, 1, "supervise-daemo"), (1, 0, "init")] {
            let directory = proc.path().join(pid.to_string());
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("status"), format!("Name:\t{name}\nPPid:\t{parent}\n"))
                .unwrap();
            fs::write(directory.join("comm"), format!("{name}\n")).unwrap();
        }
        assert_eq!(supervisor(proc.path(), 7).as_deref(), Some("supervise-daemon"));
        assert_eq!(supervisor(proc.path(), 5), None);
    }
}
