//! The text of `/proc/PID/mountinfo` → entries. See proc_pid_mountinfo(5).
//!
//! A line that does not parse is reported: it may be the mount that matters.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use guard_common::policy::kernel_dev;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Unique among the mounts that exist; reused later.
    pub mount_id: u32,
    pub parent_id: u32,
    /// Of `s_dev`, which on btrfs and overlay differs from `stat`.
    pub major: u32,
    pub minor: u32,
    /// The mounted directory of the filesystem. CephFS says `/` for a subdirectory too.
    pub root: PathBuf,
    /// Mountpoint, seen from the root directory of the process that has this table.
    pub mountpoint: PathBuf,
    /// Options of this mount.
    pub options: String,
    /// Propagation: `shared:N`, `master:N` and so on, in the kernel's order.
    pub propagation: Vec<String>,
    /// Type, with the subtype after a dot.
    pub fs_type: String,
    pub source: OsString,
    /// Options of the superblock.
    pub super_options: String,
}

impl MountEntry {
    /// Whether this mount (not its superblock) is read-only.
    pub fn is_read_only(&self) -> bool {
        self.options.split(',').any(|option| option == "ro")
    }

    /// `s_dev` in the kernel's encoding: the superblock's key in `POOLS`.
    pub fn dev(&self) -> u32 {
        kernel_dev(self.major, self.minor)
    }
}

/// A line that is no mount entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mountinfo line {line}: {problem}: {text}")]
pub struct ParseProblem {
    /// From 1.
    pub line: usize,
    pub problem: &'static str,
    /// The line, with invalid UTF-8 replaced.
    pub text: String,
}

/// Reads a whole table. Lines that are no entries are in the second list.
pub fn parse(table: &[u8]) -> (Vec<MountEntry>, Vec<ParseProblem>) {
    let (mut entries, mut problems) = (Vec::new(), Vec::new());
    for (index, line) in
        table.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty())
    {
        match entry(line) {
            Ok(entry) => entries.push(entry),
            Err(problem) => {
                let text = String::from_utf8_lossy(line).into_owned();
                problems.push(ParseProblem { line: index + 1, problem, text });
            }
        }
    }
    (entries, problems)
}

fn entry(line: &[u8]) -> Result<MountEntry, &'static str> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut next = |missing| fields.next().ok_or(missing);
    let mount_id = number(next("no mount id")?).ok_or("mount id is no number")?;
    let parent_id = number(next("no parent id")?).ok_or("parent id is no number")?;
    let device = next("no device")?;
    let colon = device.iter().position(|byte| *byte == b':').ok_or("device is not major:minor")?;
    let major = number(&device[..colon]).ok_or("major is no number")?;
    let minor = number(&device[colon + 1..]).ok_or("minor is no number")?;
    let root = path(next("no root")?);
    let mountpoint = path(next("no mountpoint")?);
    let options = text(next("no mount options")?);
    let mut propagation = Vec::new();
    // The optional fields end at a field that is a single hyphen. (A path may hold hyphens too.)
    loop {
        match next("no separator")? {
            b"-" => break,
            field => propagation.push(text(field)),
        }
    }
    let fs_type = text(next("no filesystem type")?);
    if fs_type.is_empty() {
        return Err("empty filesystem type");
    }
    let source = OsString::from_vec(unescape(next("no source")?));
    // Some filesystems write spaces into their options unescaped; an empty source or option is
    // legal.
    let rest: Vec<&[u8]> = fields.collect();
    let super_options = text(&rest.join(&b' '));
    Ok(MountEntry {
        mount_id,
        parent_id,
        major,
        minor,
        root,
        mountpoint,
        options,
        propagation,
        fs_type,
        source,
        super_options,
    })
}

fn number(field: &[u8]) -> Option<u32> {
    let digits = !field.is_empty() && field.iter().all(u8::is_ascii_digit);
    if digits { std::str::from_utf8(field).ok()?.parse().ok() } else { None }
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// Undoes the kernel's `\ooo`. A backslash with anything else behind it stays as it is.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        match (first, tail) {
            (b'\\', [high @ b'0'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7', tail @ ..]) => {
                bytes.push((high - b'0') << 6 | (middle - b'0') << 3 | (low - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;

    fn one(line: &str) -> MountEntry {
        let (mut entries, problems) = parse(line.as_bytes());
        assert_eq!(problems, []);
        assert_eq!(entries.len(), 1);
        entries.remove(0)
    }

    #[test]
    fn a_cephfs_pool_as_incus_mounts_it() {
        let entry =
            one("78 31 0:43 / /var/lib/incus/storage-pools/shared rw,relatime shared:20 - \
                 ceph admin@f0e1.testfs=/pool-a \
                 rw,name=admin,secret=<hidden>,acl,mon_addr=10.99.0.1:3300\n");
        assert_eq!((entry.mount_id, entry.parent_id, entry.major, entry.minor), (78, 31, 0, 43));
        assert_eq!(entry.dev(), 43);
        assert_eq!(entry.mountpoint, PathBuf::from("/var/lib/incus/storage-pools/shared"));
        assert_eq!(entry.propagation, ["shared:20"]);
        assert_eq!(entry.fs_type, "ceph");
        assert_eq!(entry.source, "admin@f0e1.testfs=/pool-a");
        assert!(entry.super_options.ends_with("mon_addr=10.99.0.1:3300"));
    }

    #[test]
    fn hyphens_escapes_and_odd_fields() {
        let entry = one(
            "1 2 8:1 /a\\040-\\040b /x\\011y\\012z\\134\\043\\9 rw shared:1 master:2 unbindable - \
             ext4 - a b",
        );
        assert_eq!(entry.root, PathBuf::from("/a - b"));
        assert_eq!(entry.mountpoint, PathBuf::from("/x\ty\nz\\#\\9"));
        assert_eq!(entry.propagation, ["shared:1", "master:2", "unbindable"]);
        assert_eq!((entry.source.as_bytes(), entry.super_options.as_str()), (&b"-"[..], "a b"));
        // An empty source leaves two spaces.
        assert_eq!(one("1 2 0:5 / /- rw - tmpfs  rw").source, "");
        assert_eq!(one("1 2 0:5 / /a-b rw - tmpfs none").super_options, "");
    }

    #[test]
    fn paths_that_are_not_utf8_are_kept() {
        let (entries, problems) = parse(b"1 2 0:5 / /a\xff\\377 rw - tmpfs none rw\n");
        assert!(problems.is_empty());
        assert_eq!(entries[0].mountpoint.as_os_str().as_bytes(), b"/a\xff\xff");
    }

    #[test]
    fn a_bad_line_is_reported_and_the_others_are_read() {
        let table = b"1 2 0:5 / /a rw - tmpfs none rw\nnonsense\n3 2 0:x / /b rw - tmpfs none rw\n\
                     4 2 0:5 / /c rw shared:1\n5 2 0:6 / /d rw - tmpfs none rw\n";
        let (entries, problems) = parse(table);
        assert_eq!(entries.iter().map(|entry| entry.mount_id).collect::<Vec<_>>(), [1, 5]);
        let found: Vec<_> =
            problems.iter().map(|problem| (problem.line, problem.problem)).collect();
        assert_eq!(
            found,
            [(2, "mount id is no number"), (3, "minor is no number"), (4, "no separator")]
        );
    }

    fn escape(path: &[u8]) -> Vec<u8> {
        path.iter()
            .flat_map(|byte| match byte {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
                other => vec![*other],
            })
            .collect()
    }

    proptest! {
        #[test]
        fn never_panics_and_loses_no_line(table in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (entries, problems) = parse(&table);
            let lines = table.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
            prop_assert_eq!(entries.len() + problems.len(), lines);
        }

        #[test]
        fn near_misses_never_panic(line in "[0-9: /a\\\\-]{0,80}") {
            let _ = parse(line.as_bytes());
        }

        #[test]
        fn escaped_paths_come_back(path in proptest::collection::vec(1_u8.., 1..60)) {
            let mut line = b"1 2 0:5 / ".to_vec();
            line.extend(escape(&path));
            line.extend(b" rw - tmpfs none rw");
            let (entries, problems) = parse(&line);
            prop_assert!(problems.is_empty());
            prop_assert_eq!(entries[0].mountpoint.as_os_str().as_bytes(), &path[..]);
        }
    }
}
