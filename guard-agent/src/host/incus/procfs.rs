//! Reads the texts below `/proc/<pid>`: whether the process is the daemon, a helper of it, or
//! neither.
//!
//! Pure. Helpers run the same executable in the same cgroup and outlive the daemon
//! (`KillMode=process`); their arguments distinguish them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Of `/proc/<pid>/stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub comm: Vec<u8>,
    pub state: u8,
    pub parent: u32,
    /// Field 22.
    pub start_ticks: u64,
}

impl Stat {
    /// The name is in parentheses and may itself hold blanks and parentheses: fields are counted
    /// from the last closing one.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let open = text.iter().position(|byte| *byte == b'(')?;
        let close = text.iter().rposition(|byte| *byte == b')')?;
        let comm = text.get(open + 1..close)?.to_vec();
        let rest = std::str::from_utf8(&text[close + 1..]).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        let start_ticks = fields.nth(17)?.parse().ok()?;
        Some(Self { comm, state, parent, start_ticks })
    }

    /// Whether it has ended, and only its parent has not noticed.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// Name of an executable's process: the kernel keeps 15 bytes.
pub(super) fn comm_of(executable: &Path) -> &[u8] {
    let name = executable.file_name().unwrap_or_default().as_bytes();
    &name[..name.len().min(15)]
}

/// Role of a process that runs the daemon's executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Daemon,
    Helper,
    /// No arguments can be seen: it is just starting or ending.
    Unclear,
}

/// Options of the daemon that take a value.
const WITH_VALUE: &[&[u8]] = &[
    b"--group",
    b"--logfile",
    b"--trace",
    b"--cpuprofile",
    b"--memprofile",
    b"--print-goroutines",
];

/// Subcommands that do not run the daemon, beside all that begin with `fork`.
const SUBCOMMANDS: &[&[u8]] = &[
    b"activateifneeded",
    b"callhook",
    b"cluster",
    b"completion",
    b"help",
    b"import",
    b"manpage",
    b"migratedumpsuccess",
    b"netcat",
    b"shutdown",
    b"sql",
    b"version",
    b"waitready",
];

/// The role of a process with these arguments (`/proc/<pid>/cmdline`).
pub(super) fn role(cmdline: &[u8], executables: &[&OsStr]) -> Role {
    let mut words = cmdline.strip_suffix(b"\0").unwrap_or(cmdline).split(|byte| *byte == 0);
    let name = words.next().unwrap_or_default();
    if name.is_empty() {
        return Role::Unclear;
    }
    // Monitors of containers and proxies call themselves something else: `[lxc monitor] …`.
    let base = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    if !executables.iter().any(|executable| executable.as_bytes() == base) {
        return Role::Helper;
    }
    while let Some(word) = words.next() {
        if WITH_VALUE.contains(&word) {
            words.next();
        } else if matches!(word, b"--help" | b"-h" | b"--version") {
            return Role::Helper;
        } else if !word.starts_with(b"-") {
            let helper = word.starts_with(b"fork") || SUBCOMMANDS.contains(&word);
            return if helper { Role::Helper } else { Role::Daemon };
        }
    }
    Role::Daemon
}

/// `INCUS_DIR` in `/proc/<pid>/environ`, or the directory that the daemon takes without it.
pub(super) fn incus_dir(environ: &[u8]) -> &Path {
    variable(environ, b"INCUS_DIR=").unwrap_or(Path::new("/var/lib/incus"))
}

/// `INCUS_SOCKET` in `/proc/<pid>/environ`.
pub(super) fn incus_socket(environ: &[u8]) -> Option<&Path> {
    variable(environ, b"INCUS_SOCKET=")
}

fn variable<'e>(environ: &'e [u8], name: &[u8]) -> Option<&'e Path> {
    let value = environ.split(|byte| *byte == 0).find_map(|pair| pair.strip_prefix(name))?;
    Some(Path::new(OsStr::from_bytes(value))).filter(|_| !value.is_empty())
}

/// The sockets that listen on a path (`/proc/<pid>/net/unix`): inode and path.
pub(super) fn listeners(table: &[u8]) -> Vec<(u64, PathBuf)> {
    table.split(|byte| *byte == b'\n').filter_map(listener).collect()
}

/// `Num: RefCount Protocol Flags Type St Inode Path`; the path may hold blanks.
fn listener(line: &[u8]) -> Option<(u64, PathBuf)> {
    let mut rest = line;
    let mut field = || {
        let start = rest.iter().position(|byte| *byte != b' ')?;
        let length = rest[start..].iter().position(|byte| *byte == b' ')?;
        let word = &rest[start..start + length];
        rest = &rest[start + length..];
        std::str::from_utf8(word).ok()
    };
    let (_, _, _) = (field()?, field()?, field()?);
    let flags = u32::from_str_radix(field()?, 16).ok()?;
    let (_, _) = (field()?, field()?);
    let inode = field()?.parse().ok()?;
    let path = Path::new(OsStr::from_bytes(rest.strip_prefix(b" ")?));
    // __SO_ACCEPTCON. Accepted connections bear the listener's path as well.
    (flags & 0x1_0000 != 0).then(|| (inode, path.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn role_of(arguments: &[&str]) -> Role {
        let cmdline: String = arguments.iter().map(|word| format!("{word}\0")).collect();
        role(cmdline.as_bytes(), &[OsStr::new("incusd")])
    }

    #[test]
    fn the_daemon_is_told_from_its_helpers() {
        for daemon in [
            &["incusd"][..],
            &["/usr/libexec/incus/incusd", "--group", "incus-admin"],
            &["incusd", "--group", "cluster", "--logfile", "/var/log/incus/incusd.log", "--debug"],
            &["/opt/incus/bin/incusd", "--group=incus-admin", "--syslog", "-v"],
        ] {
            assert_eq!(role_of(daemon), Role::Daemon, "{daemon:?}");
        }
        for helper in [
            &["/usr/libexec/incus/incusd", "forkproxy", "--", "1", "2"][..],
            &["incusd", "forkfile", "/var/lib/incus/x"],
            &["incusd", "forkstart", "c1", "/var/lib/incus/containers", "/run/incus/c1/lxc.conf"],
            &["incusd", "--debug", "waitready", "--timeout=600"],
            &["incusd", "activateifneeded"],
            &["incusd", "--version"],
            &["[lxc monitor] /var/lib/incus/containers c1"],
            &["rsync", "-a"],
        ] {
            assert_eq!(role_of(helper), Role::Helper, "{helper:?}");
        }
        assert_eq!(role(b"", &[OsStr::new("incusd")]), Role::Unclear);
    }

    #[test]
    fn stat_of_a_process_with_an_odd_name() {
        let text = b"42 (a) R (b) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 1234 5 6\n";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(
            (stat.comm.as_slice(), stat.state, stat.parent, stat.start_ticks),
            (&b"a) R (b"[..], b'S', 1, 1234)
        );
        assert!(!stat.has_ended());
        assert_eq!(Stat::parse(b"42 (a"), None);
    }

    #[test]
    fn only_listening_sockets_with_a_path() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
                     0000000000000000: 00000002 00000000 00010000 0001 01 20001 \
                     /var/lib/incus/unix.socket\n0000000000000000: 00000003 00000000 00000000 0001 \
                     03 20002 /var/lib/incus/unix.socket\n0000000000000000: 00000002 00000000 \
                     00010000 0001 01 20003 /var/lib/incus/unix socket\n0000000000000000: 00000003 \
                     00000000 00000000 0001 03 20004\n";
        let path = |path: &str| PathBuf::from(path);
        let expected = [
            (20001, path("/var/lib/incus/unix.socket")),
            (20003, path("/var/lib/incus/unix socket")),
        ];
        assert_eq!(listeners(table), expected);
    }

    #[test]
    fn the_directory_of_a_daemon() {
        assert_eq!(incus_dir(b"A=b\0INCUS_DIR=/srv/incus\0"), Path::new("/srv/incus"));
        assert_eq!(incus_dir(b"XINCUS_DIR=/x\0INCUS_DIR=\0"), Path::new("/var/lib/incus"));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_value(bytes: Vec<u8>) {
            let _ = (Stat::parse(&bytes), role(&bytes, &[]), incus_dir(&bytes), incus_socket(&bytes), listeners(&bytes));
        }
    }
}
