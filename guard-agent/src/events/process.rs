//! Whether the process of an incident still lives. A pid alone does not say so: pids are reused.

use std::path::Path;
use std::{fs, io};

use nix::unistd::{SysconfVar, sysconf};

/// Ticks a second in `/proc/<pid>/stat`, as the running system has it.
pub fn ticks_per_second() -> u64 {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    ticks.and_then(|ticks| u64::try_from(ticks).ok()).filter(|ticks| *ticks > 0).unwrap_or(100)
}

/// Whether process `tgid` that started at `start_boot_ns` still exists below `proc_root` (`/proc`).
///
/// Only the certain absence of the process is a "no": what cannot be read or understood counts as
/// alive, so that no count is ever given up on a guess.
pub fn is_alive(proc_root: &Path, tgid: u32, start_boot_ns: u64, ticks_per_second: u64) -> bool {
    match fs::read(proc_root.join(tgid.to_string()).join("stat")) {
        Ok(stat) => start_ticks(&stat)
            .is_none_or(|ticks| ticks.abs_diff(to_ticks(start_boot_ns, ticks_per_second)) <= 1),
        Err(error) => !is_gone(&error),
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

/// Field 22: the start on the boot clock in ticks. The command name (field 2) is in parentheses and may
/// itself hold blanks and parentheses: fields are counted from the last closing one.
pub(crate) fn start_ticks(stat: &[u8]) -> Option<u64> {
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&stat[close + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
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
        assert!(!is_alive(Path::new("/proc"), std::process::id(), start_ns + 3_600_000_000_000, ticks));
    }
}
