//! Mount events of fanotify(7) (Linux 6.15), and statmount(2) (6.8), which describes a mount.
//!
//! The crates at hand know neither. Layouts and numbers are those of
//! `include/uapi/linux/fanotify.h` and `mount.h`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::libc;

use super::event::{self, u32_at, u64_at};

/// `FAN_MNT_ATTACH`: a mount was attached. (`FAN_MNT_DETACH` needs nothing: a mark goes with its
/// mount.)
pub(super) const ATTACHED: u64 = 0x0100_0000;
/// `FAN_REPORT_MNT`: the group tells of mounts.
pub(super) const REPORT_MOUNTS: u32 = 0x4000;
/// `FAN_MARK_MNTNS`: the mark is of a mount namespace.
pub(super) const MARK_NAMESPACE: u32 = 0x110;

/// `FAN_EVENT_INFO_TYPE_MNT`: behind the header of four bytes and four of padding, the mount's
/// unique id.
const INFO_MOUNT: u8 = 7;
const INFO_LENGTH: usize = 16;

/// The number of `statmount(2)`, the same on every architecture.
const STATMOUNT: libc::c_long = 457;
/// `STATMOUNT_SB_BASIC`, `_MNT_BASIC`, `_MNT_ROOT`, `_MNT_POINT`.
const ASKED: u64 = 0x1 | 0x2 | 0x8 | 0x10;
/// Bytes of `struct statmount` before its strings.
const FIXED: usize = 512;
/// Room for it and two paths.
const ROOM: usize = FIXED + 3 * 4096;

/// A mount, as far as a mark needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attached {
    /// The number that mountinfo has, which is used again.
    pub mount_id: u32,
    pub major: u32,
    pub minor: u32,
    pub is_read_only: bool,
    pub root: PathBuf,
    /// Nothing if it cannot be reached from this process's root.
    pub path: Option<PathBuf>,
}

/// The unique ids that events name; `None` where some are missing: for want of room, or not
/// understood.
pub(super) fn parse(mut bytes: &[u8]) -> Option<Vec<u64>> {
    let mut ids = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = event::first(bytes)?;
        let record = head.records.get(..INFO_LENGTH)?;
        if head.mask & libc::FAN_Q_OVERFLOW != 0 || record[0] != INFO_MOUNT {
            return None;
        }
        ids.push(u64_at(record, 8)?);
        bytes = rest;
    }
    Some(ids)
}

/// `struct mnt_id_req`, as of its first version.
#[repr(C)]
struct Request {
    size: u32,
    spare: u32,
    mount_id: u64,
    mask: u64,
}

/// Describes a mount. Asks no server.
pub(super) fn of(unique_id: u64) -> io::Result<Attached> {
    let size = u32::try_from(size_of::<Request>()).expect("a small structure");
    let request = Request { size, spare: 0, mount_id: unique_id, mask: ASKED };
    let mut room = vec![0_u8; ROOM];
    // SAFETY: the request has the size that it tells; no more than the given length is written.
    let result =
        unsafe { libc::syscall(STATMOUNT, &raw const request, room.as_mut_ptr(), room.len(), 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    understand(&room).ok_or_else(|| io::Error::other("cannot parse the reply of statmount(2)"))
}

fn understand(bytes: &[u8]) -> Option<Attached> {
    let has = u64_at(bytes, 8)?;
    if has & 0x3 != 0x3 {
        return None;
    }
    let text = |bit: u64, at: usize| {
        let start = FIXED + usize::try_from(u32_at(bytes, at)?).ok()?;
        let text = bytes.get(start..).filter(|_| has & bit != 0)?;
        let end = text.iter().position(|byte| *byte == 0)?;
        Some(PathBuf::from(OsString::from_vec(text[..end].to_vec())))
    };
    Some(Attached {
        mount_id: u32_at(bytes, 56)?,
        major: u32_at(bytes, 16)?,
        minor: u32_at(bytes, 20)?,
        is_read_only: u64_at(bytes, 64)? & libc::MOUNT_ATTR_RDONLY != 0,
        root: text(0x8, 104)?,
        path: text(0x10, 108).filter(|path| path.is_absolute()),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::event::tests::event;
    use super::*;

    fn attached(mask: u64, kind: u8, id: u64) -> Vec<u8> {
        let record = [&[kind, 0, 16, 0, 0, 0, 0, 0], &id.to_ne_bytes()[..]].concat();
        event(mask, 0, &record)
    }

    #[test]
    fn mounts_are_named_and_what_is_missing_is_told() {
        let both =
            [attached(ATTACHED, INFO_MOUNT, 7), attached(ATTACHED, INFO_MOUNT, 1 << 40)].concat();
        assert_eq!(parse(&both), Some(vec![7, 1 << 40]));
        assert_eq!(parse(&[]), Some(vec![]));
        assert_eq!(parse(&both[..both.len() - 1]), None);
        assert_eq!(parse(&attached(libc::FAN_Q_OVERFLOW, INFO_MOUNT, 7)), None);
        assert_eq!(parse(&attached(ATTACHED, 1, 7)), None);
    }

    #[test]
    fn a_mount_is_understood() {
        let mut bytes = vec![0; FIXED];
        for (at, value) in [(8, 0x1b_u32), (16, 0), (20, 43), (56, 41), (64, 1), (104, 1), (108, 4)]
        {
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        bytes.extend(b"\0/v\0/r/pool\0");
        let expected = Attached {
            mount_id: 41,
            major: 0,
            minor: 43,
            is_read_only: true,
            root: "/v".into(),
            path: Some("/r/pool".into()),
        };
        assert_eq!(understand(&bytes), Some(expected.clone()));
        // Without a place: detached meanwhile, or outside this process's root.
        bytes[8] = 0xb;
        assert_eq!(understand(&bytes), Some(Attached { path: None, ..expected }));
        bytes[8] = 0x8;
        assert_eq!(understand(&bytes), None);
    }

    proptest! {
        #[test]
        fn nothing_the_kernel_could_write_makes_it_fail(events: Vec<u8>, mut mount: Vec<u8>, size in 0..600_usize) {
            let _ = parse(&events);
            mount.resize(size, 0x1f);
            let found = understand(&mount);
            prop_assert!(found.is_none_or(|found| found.path.is_none_or(|path| path.starts_with(Path::new("/")))));
        }
    }
}
