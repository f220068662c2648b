//! Bytes from the kernel program: a record of the ring buffer, or (by their length) an incident of
//! its map.

use std::mem::{offset_of, size_of};
use std::time::Duration;

use guard_agent::model::audit::record::{DecisionBody, IncidentBody};
use guard_agent::model::audit::{Body, Filter, Kind, Origin, Place, Record as Line};
use guard_agent::model::events::{Decision, DecodeError, Summary, decode};
use guard_agent::model::time::BootOffset;
use guard_common::record::{
    PATH_STORAGE, RECORD_KERNEL_THREAD, RECORD_MOUNT_KNOWN, RECORD_PATH_TRUNCATED, Record,
};
use guard_common::{IncidentKey, IncidentValue};

const INCIDENT: usize = size_of::<IncidentKey>() + size_of::<IncidentValue>();

pub fn check(bytes: &[u8]) {
    match decode(bytes) {
        Ok(decision) => {
            assert_eq!(bytes.len(), size_of::<Record>());
            is_told_whole(&decision);
            comes_back_from_its_bytes(&decision);
        }
        Err(DecodeError::Size { found, .. }) => {
            assert!(found == bytes.len() && found != size_of::<Record>());
        }
        Err(DecodeError::Unknown { value, .. }) => {
            assert_ne!(value, 1, "every list of values begins with 1")
        }
        Err(DecodeError::PathLength { found, .. }) => assert!(found as usize > PATH_STORAGE),
    }
    if let Ok(bytes) = bytes.try_into() {
        incident(bytes);
    }
}

fn is_told_whole(decision: &Decision) {
    let text = decision.path.text();
    assert!(text.starts_with(if decision.path.truncated { "…" } else { "/" }), "{text:?}");
    let replaced = text.contains(char::REPLACEMENT_CHARACTER);
    assert!(
        decision.path.hex_if_not_utf8().is_none() || replaced,
        "{text:?} shows all, and hex says it does not"
    );
    assert!(text.ends_with(decision.path.target_name().as_ref()));
    comes_back(Body::Decision(Box::new(DecisionBody::new(decision, offset(), Place::default()))));
}

fn offset() -> BootOffset {
    BootOffset::between(Duration::new(1_790_000_000, 5), Duration::new(100, 7))
}

/// As a line of the audit log.
fn comes_back(body: Body) {
    let kind = body.kind();
    let origin = Origin { host: "h".to_owned(), boot_id: "b".to_owned() };
    let record = Line::new(&origin, 1, offset().stamp(7), body);
    let line = record.to_line();
    let text = line.strip_suffix('\n').expect("a line ends with a line feed");
    assert!(!text.contains('\n'), "{text:?} is more than one line");
    let of_kind = |kind: Kind| Filter { kind: Some(kind), ..Filter::default() };
    assert_eq!(of_kind(kind).select(text.as_bytes()), Some(record));
    assert_eq!(of_kind(Kind::Posture).select(text.as_bytes()), None);
}

fn comes_back_from_its_bytes(decision: &Decision) {
    let Some(bytes) = encode(decision) else { return };
    assert_eq!(decode(&bytes).as_ref(), Ok(decision));
}

/// `None` where text does not tell the bytes: of a name that is not UTF-8, or not the kernel's.
fn encode(decision: &Decision) -> Option<Vec<u8>> {
    let mut bytes = vec![0; size_of::<Record>()];
    let mut put =
        |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
    let text = decision.path.text();
    let known = text.strip_prefix('…').unwrap_or(&text);
    let names: Vec<&str> = known.split('/').skip(1).collect();
    let comm = &decision.comm;
    let lossy =
        comm.contains(char::REPLACEMENT_CHARACTER) || decision.path.hex_if_not_utf8().is_some();
    if lossy || (known != "/" && names.iter().any(|name| name.is_empty())) {
        return None;
    }
    let path: Vec<u8> = names
        .iter()
        .rev()
        .filter(|name| !name.is_empty())
        .flat_map(|name| [name, "\0"])
        .collect::<String>()
        .into();
    if path.len() > PATH_STORAGE {
        // The last name was cut off, and there is no room to close it.
        return None;
    }
    put(offset_of!(Record, path), &path);
    put(offset_of!(Record, comm), comm.as_bytes());
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let flags = flag(decision.path.truncated, RECORD_PATH_TRUNCATED)
        | flag(decision.kernel_thread, RECORD_KERNEL_THREAD)
        | flag(decision.mount_id.is_some(), RECORD_MOUNT_KNOWN);
    for (offset, value) in [
        (offset_of!(Record, hook), decision.hook as u32),
        (offset_of!(Record, operation), decision.operation as u32),
        (offset_of!(Record, verdict), decision.verdict as u32),
        (offset_of!(Record, reason), decision.reason as u32),
        (offset_of!(Record, mode), decision.mode.map_or(0, |mode| mode as u32)),
        (offset_of!(Record, pid), decision.pid),
        (offset_of!(Record, tgid), decision.tgid),
        (offset_of!(Record, ppid), decision.ppid),
        (offset_of!(Record, uid), decision.uid),
        (offset_of!(Record, euid), decision.euid),
        (offset_of!(Record, login_uid), decision.login_uid.unwrap_or(u32::MAX)),
        (offset_of!(Record, mnt_ns), decision.mnt_ns),
        (offset_of!(Record, mount_ns), decision.mount_ns.unwrap_or_default()),
        (offset_of!(Record, mount_id), decision.mount_id.unwrap_or_default()),
        (offset_of!(Record, dev), decision.dev),
        (offset_of!(Record, flags), flags),
        (offset_of!(Record, path_len), u32::try_from(path.len()).expect("a path is short")),
    ] {
        put(offset, &value.to_ne_bytes());
    }
    for (offset, value) in [
        (offset_of!(Record, boot_ns), decision.boot_ns),
        (offset_of!(Record, start_boot_ns), decision.start_boot_ns),
        (offset_of!(Record, generation), decision.generation.unwrap_or_default()),
        (offset_of!(Record, pool_id), decision.pool_id.unwrap_or_default()),
        (offset_of!(Record, cgroup_id), decision.cgroup_id),
        (offset_of!(Record, parent_ino), decision.parent_ino),
        (offset_of!(Record, target_ino), decision.target_ino),
        (offset_of!(Record, incident_count), decision.incident_count),
    ] {
        put(offset, &value.to_ne_bytes());
    }
    Some(bytes)
}

fn incident(bytes: &[u8; INCIDENT]) {
    let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let half = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let key = IncidentKey {
        generation: word(0),
        start_boot_ns: word(8),
        tgid: half(16),
        dev: half(20),
        reason: half(24),
        verdict: half(28),
    };
    let value = IncidentValue {
        count: word(32),
        emitted: word(40),
        lost: word(48),
        first_boot_ns: word(56),
        last_boot_ns: word(64),
        pool_id: word(72),
        uid: half(80),
        login_uid: half(84),
        comm: [word(88), word(96)],
    };
    let summary = Summary { key, value, ended: value.count.is_multiple_of(2) };
    assert!(summary.aggregated() <= value.count);
    comes_back(Body::Incident(Box::new(IncidentBody::new(&summary, offset(), Place::default()))));
}
