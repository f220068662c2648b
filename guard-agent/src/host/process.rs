//! Whether a process still lives. A pid alone does not say so: pids are reused, so its start time
//! is compared too.

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::{fs, io};

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{SysconfVar, sysconf};

/// Ticks a second in `/proc/<pid>/stat`, as the running system has it.
pub fn ticks_per_second() -> u64 {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    ticks.and_then(|ticks| u64::try_from(ticks).ok()).filter(|ticks| *ticks > 0).unwrap_or(100)
}

/// Whether process `tgid` that started at `start_boot_ns` still exists below `proc_root` (`/proc`).
///
/// Only the certain absence of the process is a "no": a process that cannot be read or understood
/// counts as alive, so that no count is ever given up on a guess.
pub fn is_alive(proc_root: &Path, tgid: u32, start_boot_ns: u64, ticks_per_second: u64) -> bool {
    match fs::read(proc_root.join(tgid.to_string()).join("stat")) {
        Ok(stat) => start_ticks(&stat)
            .is_none_or(|ticks| ticks.abs_diff(to_ticks(start_boot_ns, ticks_per_second)) <= 1),
        Err(error) => !is_gone(&error),
    }
}

/// The start time of a process below `proc_root` (`/proc`), in ticks. `None`: there is none, or it
/// cannot be read.
pub fn started(proc_root: &Path, pid: u32) -> Option<u64> {
    start_ticks(&fs::read(proc_root.join(pid.to_string()).join("stat")).ok()?)
}

/// Whether the process `pid` that started at `ticks` has certainly ended. A zombie has.
pub fn has_ended(proc_root: &Path, pid: u32, ticks: u64) -> bool {
    match fs::read(proc_root.join(pid.to_string()).join("stat")) {
        Ok(stat) => is_dead(&stat) || start_ticks(&stat).is_some_and(|found| found != ticks),
        Err(error) => is_gone(&error),
    }
}

/// Field 3, the state.
fn is_dead(stat: &[u8]) -> bool {
    let close = stat.iter().rposition(|byte| *byte == b')');
    let state = close.and_then(|close| stat.get(close + 2));
    matches!(state, Some(b'Z' | b'X' | b'x'))
}

/// A descriptor of a process, which becomes readable when the process ends. `None` if there is no
/// such process.
pub fn pidfd_open(pid: u32) -> io::Result<Option<OwnedFd>> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: a system call on numbers; the result is checked.
    let result = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) });
    match result {
        Err(Errno::ESRCH) => Ok(None),
        Err(error) => Err(error.into()),
        Ok(descriptor) => {
            let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
            // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }))
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

/// A field by its number in proc(5), from 3 on. The command name (field 2) is in parentheses and
/// may itself hold blanks and parentheses: fields are counted from the last closing one.
pub(crate) fn stat_field(stat: &[u8], number: usize) -> Option<&str> {
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    std::str::from_utf8(&stat[close + 1..])
        .ok()?
        .split_ascii_whitespace()
        .nth(number.checked_sub(3)?)
}

/// Field 22: the start on the boot clock in ticks.
fn start_ticks(stat: &[u8]) -> Option<u64> {
    stat_field(stat, 22)?.parse().ok()
}

/// The same in nanoseconds, as exact as the ticks are.
pub(crate) fn start_boot_ns(stat: &[u8]) -> Option<u64> {
    let start = u128::from(start_ticks(stat)?) * 1_000_000_000 / u128::from(ticks_per_second());
    Some(u64::try_from(start).unwrap_or(u64::MAX))
}

fn to_ticks(boot_ns: u64, ticks_per_second: u64) -> u64 {
    let ticks = u128::from(boot_ns) * u128::from(ticks_per_second) / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proc_with(tgid: u32, comm: &str, start: u64) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(tgid.to_string())).unwrap();
        let zeros = "0 ".repeat(18);
        let stat = format!("{tgid} ({comm}) S {zeros}{start} 1 2 3\n");
        fs::write(root.path().join(format!("{tgid}/stat")), stat).unwrap();
        root
    }

    #[test]
    fn the_same_process_lives_and_a_reused_pid_does_not() {
        let root = proc_with(42, "a) R 1 (b", 1_234);
        let alive = |tgid, start| is_alive(root.path(), tgid, start, 100);
        assert!(alive(42, 12_345_678_901));
        assert!(alive(42, 12_350_000_001), "one tick of tolerance");
        assert!(!alive(42, 12_360_000_000));
        assert!(!alive(42, 0));
        assert!(!alive(43, 12_340_000_000));
    }

    #[test]
    fn what_cannot_be_understood_is_alive() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("7")).unwrap();
        fs::write(root.path().join("7/stat"), "7 (x").unwrap();
        assert!(is_alive(root.path(), 7, 0, 100));
    }

    #[test]
    fn this_process_lives() {
        let ticks = ticks_per_second();
        let own = start_ticks(&fs::read("/proc/self/stat").unwrap()).unwrap();
        let start_ns = own * (1_000_000_000 / ticks);
        assert!(is_alive(Path::new("/proc"), std::process::id(), start_ns, ticks));
        assert!(!is_alive(
            Path::new("/proc"),
            std::process::id(),
            start_ns + 3_600_000_000_000,
            ticks
        ));
    }
}
