//! Ring-buffer bytes → a typed [`Decision`]. Pure, and total: any bytes give a decision or an
//! error.
//!
//! Fields are read one by one at their offsets; nothing is transmuted. The place's names (pool,
//! mountpoint) and the wall clock are added later, by the audit record.

use std::borrow::Cow;
use std::mem::{offset_of, size_of};

use guard_common::record::{
    PATH_STORAGE, RECORD_KERNEL_THREAD, RECORD_MOUNT_KNOWN, RECORD_PATH_TRUNCATED, Record,
};
use guard_common::{Hook, Mode, Operation, Reason, Tier, Verdict};

/// Why bytes are not a record of this layout version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("a record has {expected} bytes, this one has {found}")]
    Size { expected: usize, found: usize },
    #[error("unknown value {value} in field `{field}`")]
    Unknown { field: &'static str, value: u32 },
    #[error("path_len {found} exceeds the path's {limit} bytes")]
    PathLength { found: u32, limit: usize },
}

/// One decision of the kernel program. Fields are those of [`Record`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub boot_ns: u64,
    pub start_boot_ns: u64,
    /// `None` if the superblock had no entry.
    pub generation: Option<u64>,
    /// `None` if the superblock had no entry.
    pub pool_id: Option<u64>,
    pub cgroup_id: u64,
    pub parent_ino: u64,
    pub target_ino: u64,
    pub incident_count: u64,
    pub hook: Hook,
    pub operation: Operation,
    pub verdict: Verdict,
    pub reason: Reason,
    /// `None` if the superblock had no entry.
    pub mode: Option<Mode>,
    pub pid: u32,
    pub tgid: u32,
    pub ppid: u32,
    pub uid: u32,
    pub euid: u32,
    /// `None` if it is not set.
    pub login_uid: Option<u32>,
    pub mnt_ns: u32,
    /// `None` where the hook does not know the mount.
    pub mount_ns: Option<u32>,
    /// `None` where the hook does not know the mount.
    pub mount_id: Option<u32>,
    pub dev: u32,
    /// Enforcement mechanism.
    pub tier: Tier,
    pub kernel_thread: bool,
    pub comm: String,
    pub path: DecisionPath,
}

/// Path of the target inside its superblock, as bytes: names need not be UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecisionPath {
    /// `/a/b/c`. If truncated, the part that is known: `/b/c`.
    bytes: Vec<u8>,
    /// The beginning of the path is missing.
    pub truncated: bool,
}

impl DecisionPath {
    /// For people: `/a/b/c`, or `…/b/c` if the beginning is missing. Bytes that are not UTF-8 are
    /// replaced.
    pub fn text(&self) -> String {
        match (self.truncated, self.bytes.is_empty()) {
            (true, true) => "…/".to_owned(),
            (true, false) => format!("…{}", String::from_utf8_lossy(&self.bytes)),
            (false, true) => "/".to_owned(),
            (false, false) => String::from_utf8_lossy(&self.bytes).into_owned(),
        }
    }

    /// The known bytes in hexadecimal, if [`text`](Self::text) had to replace some.
    pub fn hex_if_not_utf8(&self) -> Option<String> {
        match std::str::from_utf8(&self.bytes) {
            Ok(_) => None,
            Err(_) => Some(self.bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        }
    }

    /// The last name; empty if no name is known.
    pub fn target_name(&self) -> Cow<'_, str> {
        let name = self.bytes.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        String::from_utf8_lossy(name)
    }

    /// From names that come leaf first, each closed by a NUL. A name that is empty or not closed
    /// cannot be part of a whole path: the known part is kept, and the path counts as truncated.
    pub(crate) fn from_leaf_first(raw: &[u8], truncated: bool) -> Self {
        let closed = raw.is_empty() || raw.ends_with(&[0]);
        let names: Vec<&[u8]> =
            raw.strip_suffix(&[0]).unwrap_or(raw).split(|byte| *byte == 0).collect();
        let mut path =
            Self { bytes: Vec::with_capacity(raw.len() + 1), truncated: truncated || !closed };
        for name in names.iter().rev() {
            if name.is_empty() {
                path.truncated |= !raw.is_empty();
                continue;
            }
            path.bytes.push(b'/');
            path.bytes.extend_from_slice(name);
        }
        path
    }
}

/// Parses one record of the ring buffer.
pub fn decode(bytes: &[u8]) -> Result<Decision, DecodeError> {
    let fields = Fields::new(bytes)?;
    let flags = fields.u32(offset_of!(Record, flags));
    let mount_known = flags & RECORD_MOUNT_KNOWN != 0;
    Ok(Decision {
        boot_ns: fields.u64(offset_of!(Record, boot_ns)),
        start_boot_ns: fields.u64(offset_of!(Record, start_boot_ns)),
        generation: not_zero(fields.u64(offset_of!(Record, generation))),
        pool_id: not_zero(fields.u64(offset_of!(Record, pool_id))),
        cgroup_id: fields.u64(offset_of!(Record, cgroup_id)),
        parent_ino: fields.u64(offset_of!(Record, parent_ino)),
        target_ino: fields.u64(offset_of!(Record, target_ino)),
        incident_count: fields.u64(offset_of!(Record, incident_count)),
        hook: known("hook", fields.u32(offset_of!(Record, hook)), Hook::from_u32)?,
        operation: known(
            "operation",
            fields.u32(offset_of!(Record, operation)),
            Operation::from_u32,
        )?,
        verdict: known("verdict", fields.u32(offset_of!(Record, verdict)), Verdict::from_u32)?,
        reason: known("reason", fields.u32(offset_of!(Record, reason)), Reason::from_u32)?,
        mode: match fields.u32(offset_of!(Record, mode)) {
            0 => None,
            mode => Some(known("mode", mode, Mode::from_u32)?),
        },
        pid: fields.u32(offset_of!(Record, pid)),
        tgid: fields.u32(offset_of!(Record, tgid)),
        ppid: fields.u32(offset_of!(Record, ppid)),
        uid: fields.u32(offset_of!(Record, uid)),
        euid: fields.u32(offset_of!(Record, euid)),
        login_uid: login_uid(fields.u32(offset_of!(Record, login_uid))),
        mnt_ns: fields.u32(offset_of!(Record, mnt_ns)),
        mount_ns: mount_known.then(|| fields.u32(offset_of!(Record, mount_ns))),
        mount_id: mount_known.then(|| fields.u32(offset_of!(Record, mount_id))),
        dev: fields.u32(offset_of!(Record, dev)),
        tier: match fields.u32(offset_of!(Record, tier)) {
            // A program of before there were tiers.
            0 => Tier::BpfLsm,
            tier => known("tier", tier, Tier::from_u32)?,
        },
        kernel_thread: flags & RECORD_KERNEL_THREAD != 0,
        comm: comm(fields.slice(offset_of!(Record, comm), 16)),
        path: fields.path(flags & RECORD_PATH_TRUNCATED != 0)?,
    })
}

/// The login uid of a map or record; the kernel's "not set" is `None`.
pub(crate) fn login_uid(raw: u32) -> Option<u32> {
    (raw != u32::MAX).then_some(raw)
}

/// A NUL-padded thread name as text.
pub(crate) fn comm(raw: &[u8]) -> String {
    let end = raw.iter().position(|byte| *byte == 0).unwrap_or(raw.len());
    String::from_utf8_lossy(&raw[..end]).into_owned()
}

fn not_zero(value: u64) -> Option<u64> {
    (value != 0).then_some(value)
}

fn known<T>(
    field: &'static str,
    value: u32,
    parse: fn(u32) -> Option<T>,
) -> Result<T, DecodeError> {
    parse(value).ok_or(DecodeError::Unknown { field, value })
}

/// Bytes that are known to be as long as a [`Record`].
struct Fields<'a>(&'a [u8; size_of::<Record>()]);

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let size = DecodeError::Size { expected: size_of::<Record>(), found: bytes.len() };
        bytes.try_into().map(Self).map_err(|_| size)
    }

    fn slice(&self, offset: usize, length: usize) -> &'a [u8] {
        &self.0[offset..offset + length]
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.slice(offset, 4).try_into().expect("the slice has four bytes"))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_ne_bytes(self.slice(offset, 8).try_into().expect("the slice has eight bytes"))
    }

    fn path(&self, truncated: bool) -> Result<DecisionPath, DecodeError> {
        let found = self.u32(offset_of!(Record, path_len));
        let too_long = DecodeError::PathLength { found, limit: PATH_STORAGE };
        let length =
            usize::try_from(found).ok().filter(|length| *length <= PATH_STORAGE).ok_or(too_long)?;
        Ok(DecisionPath::from_leaf_first(self.slice(offset_of!(Record, path), length), truncated))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A record's bytes, written at the offsets.
    pub(crate) struct Bytes(Vec<u8>);

    impl Bytes {
        fn valid() -> Self {
            let mut bytes = Self(vec![0; size_of::<Record>()]);
            for offset in [
                offset_of!(Record, hook),
                offset_of!(Record, operation),
                offset_of!(Record, verdict),
            ] {
                bytes.u32(offset, 1);
            }
            bytes.u32(offset_of!(Record, reason), Reason::Guarded as u32);
            bytes.u32(offset_of!(Record, login_uid), u32::MAX);
            bytes
        }

        fn u32(&mut self, offset: usize, value: u32) -> &mut Self {
            self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
            self
        }

        fn path(&mut self, raw: &[u8]) -> &mut Self {
            let offset = offset_of!(Record, path);
            self.0[offset..offset + raw.len()].copy_from_slice(raw);
            self.u32(offset_of!(Record, path_len), u32::try_from(raw.len()).unwrap())
        }

        fn decode(&self) -> Decision {
            decode(&self.0).unwrap()
        }
    }

    #[test]
    fn a_record_is_read_field_by_field() {
        let mut bytes = Bytes::valid();
        bytes.path(b"c.txt\0b\0a\0").u32(offset_of!(Record, mode), Mode::Guarded as u32);
        bytes.u32(offset_of!(Record, tier), Tier::FmodRet as u32);
        bytes.u32(offset_of!(Record, tgid), 77).u32(offset_of!(Record, flags), RECORD_MOUNT_KNOWN);
        bytes.0[offset_of!(Record, comm)..][..2].copy_from_slice(b"rm");
        let decision = bytes.decode();
        assert_eq!(decision.path.text(), "/a/b/c.txt");
        assert_eq!(decision.path.target_name(), "c.txt");
        assert_eq!((decision.comm.as_str(), decision.tgid), ("rm", 77));
        assert_eq!((decision.mode, decision.pool_id), (Some(Mode::Guarded), None));
        assert_eq!((decision.login_uid, decision.mount_ns), (None, Some(0)));
        assert!(!decision.kernel_thread && !decision.path.truncated);
        assert_eq!((decision.tier, Bytes::valid().decode().tier), (Tier::FmodRet, Tier::BpfLsm));
    }

    #[test]
    fn paths_survive_truncation_and_bytes_that_are_not_utf8() {
        let cases: [(&[u8], u32, &str, Option<&str>); 7] = [
            (b"c\0b\0", RECORD_PATH_TRUNCATED, "…/b/c", None),
            (b"", RECORD_PATH_TRUNCATED, "…/", None),
            (b"", 0, "/", None),
            (b"\xff\xfe\0a\0", 0, "/a/\u{fffd}\u{fffd}", Some("2f612ffffe")),
            (b"c\0b", 0, "…/b/c", None),
            (b"c\0\0", 0, "…/c", None),
            (b"new\nline\0", 0, "/new\nline", None),
        ];
        for (raw, flags, text, hex) in cases {
            let mut bytes = Bytes::valid();
            let decision = bytes.path(raw).u32(offset_of!(Record, flags), flags).decode();
            assert_eq!(decision.path.text(), text);
            assert_eq!(decision.path.hex_if_not_utf8().as_deref(), hex, "{text}");
        }
    }

    #[test]
    fn unknown_values_and_sizes_are_typed_errors() {
        let size = size_of::<Record>();
        assert_eq!(decode(&[]), Err(DecodeError::Size { expected: size, found: 0 }));
        for (offset, field) in [
            (offset_of!(Record, hook), "hook"),
            (offset_of!(Record, operation), "operation"),
            (offset_of!(Record, verdict), "verdict"),
            (offset_of!(Record, reason), "reason"),
            (offset_of!(Record, mode), "mode"),
            (offset_of!(Record, tier), "tier"),
        ] {
            let mut bytes = Bytes::valid();
            bytes.u32(offset, 999);
            assert_eq!(decode(&bytes.0), Err(DecodeError::Unknown { field, value: 999 }));
        }
        let mut bytes = Bytes::valid();
        bytes.u32(offset_of!(Record, path_len), u32::MAX);
        let error = decode(&bytes.0).unwrap_err();
        assert_eq!(error, DecodeError::PathLength { found: u32::MAX, limit: PATH_STORAGE });
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_decision_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..1000)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn any_bytes_of_the_right_size_behind_valid_enums_give_a_path(
            noise in prop::collection::vec(any::<u8>(), PATH_STORAGE),
            length in 0..=PATH_STORAGE,
        ) {
            let mut bytes = Bytes::valid();
            bytes.path(&noise);
            bytes.u32(offset_of!(Record, path_len), u32::try_from(length).unwrap());
            let path = bytes.decode().path;
            prop_assert!(path.text().starts_with('/') || path.text().starts_with('…'));
        }

        #[test]
        fn every_path_of_names_comes_back_whole(
            names in prop::collection::vec(prop::collection::vec(1..=254u8, 1..20), 1..20),
        ) {
            let mut raw = Vec::new();
            let mut joined = Vec::new();
            for name in names.iter().rev() {
                raw.extend_from_slice(name);
                raw.push(0);
            }
            for name in &names {
                joined.push(b'/');
                joined.extend_from_slice(name);
            }
            let path = DecisionPath::from_leaf_first(&raw, false);
            prop_assert_eq!(path.bytes, joined);
            prop_assert!(!path.truncated);
        }
    }
}
