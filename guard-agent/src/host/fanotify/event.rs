//! The common head of all events of fanotify(7), and the numbers in them. Pure.

use nix::libc;

/// Bytes of `struct fanotify_event_metadata`.
pub(super) const METADATA: usize = size_of::<libc::fanotify_event_metadata>();

/// An event, as far as all have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head<'a> {
    pub mask: u64,
    /// The object of the question, opened for the reader of the event; -1 where nothing is asked.
    pub fd: i32,
    /// The process; not a positive number if it cannot be named.
    pub pid: i32,
    /// The information records behind the metadata.
    pub records: &'a [u8],
}

/// The first event, and the rest; `None` where the event is cut off, or of another version.
pub(super) fn first(bytes: &[u8]) -> Option<(Head<'_>, &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    if length < METADATA || *bytes.get(4)? != libc::FANOTIFY_METADATA_VERSION {
        return None;
    }
    let (event, rest) = bytes.split_at_checked(length)?;
    let records = event.get(usize::from(u16_at(event, 6)?)..)?;
    let head =
        Head { mask: u64_at(event, 8)?, fd: i32_at(event, 16)?, pid: i32_at(event, 20)?, records };
    Some((head, rest))
}

/// Numbers in the order of this machine's bytes; `None` beyond the end.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    u32_at(bytes, at).map(u32::cast_signed)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An event as the kernel lays it out.
    pub(crate) fn event(mask: u64, pid: i32, records: &[u8]) -> Vec<u8> {
        let length = u32::try_from(METADATA + records.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([libc::FANOTIFY_METADATA_VERSION, 0]);
        bytes.extend(u16::try_from(METADATA).unwrap().to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend((-1_i32).to_ne_bytes());
        bytes.extend(pid.to_ne_bytes());
        bytes.extend(records);
        bytes
    }

    #[test]
    fn events_are_taken_one_by_one() {
        let both = [event(libc::FAN_DELETE, 42, &[1, 2, 3]), event(libc::FAN_Q_OVERFLOW, -1, &[])]
            .concat();
        let (head, rest) = first(&both).unwrap();
        assert_eq!(head, Head { mask: libc::FAN_DELETE, fd: -1, pid: 42, records: &[1, 2, 3] });
        let (head, rest) = first(rest).unwrap();
        assert_eq!(head, Head { mask: libc::FAN_Q_OVERFLOW, fd: -1, pid: -1, records: &[] });
        assert_eq!(first(rest), None);
    }

    #[test]
    fn what_could_not_be_understood_is_refused() {
        let whole = event(libc::FAN_DELETE, 42, &[]);
        let changed = |at: usize, value: u8| {
            let mut bytes = whole.clone();
            bytes[at] = value;
            first(&bytes).is_some()
        };
        assert!(changed(12, 1) && !changed(4, 99), "the version counts");
        assert!(!changed(0, 23) && !changed(0, 25), "the length counts");
        assert!(!changed(6, 25), "the records begin behind the event");
    }
}
