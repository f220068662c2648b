//! The log on a real file: modes, resuming, torn lines, rotation, and reading it back.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::*;
use crate::host::audit_log::history::{SEARCH_BOUND, read_tail};
use crate::model::audit::filter::Filter;
use crate::model::audit::record::{AgentBody, AgentChange, Kind, Place, PoolBody, PoolChange};
use crate::model::time::BootOffset;

fn origin() -> Origin {
    Origin { host: "node1".to_owned(), boot_id: "boot".to_owned() }
}

fn stamp(second: u64) -> Stamp {
    BootOffset::between(Duration::from_secs(1_790_000_000), Duration::ZERO)
        .stamp(second * 1_000_000_000)
}

fn agent() -> Body {
    let (version, build) = ("0.1.0".to_owned(), "abc".to_owned());
    Body::Agent(AgentBody {
        change: AgentChange::Started,
        version,
        build,
        pid: 1,
        previous_build: None,
    })
}

fn pool(name: &str) -> Body {
    Body::Pool(PoolBody {
        change: PoolChange::Appeared,
        place: Place { pool: Some(name.to_owned()), ..Place::default() },
        device: "0:44".to_owned(),
        filesystem: "ceph".to_owned(),
        source: "x:/".to_owned(),
        mode: None,
    })
}

fn open(path: &Path) -> AuditFile {
    AuditFile::open(path, origin(), AuditOptions::default()).unwrap()
}

fn sequences(path: &Path) -> Vec<u64> {
    let lines = read_tail(path, usize::MAX, &Filter::default(), SEARCH_BOUND).unwrap();
    lines.iter().map(|line| line.record.sequence).collect()
}

#[test]
fn file_and_directories_have_the_right_modes_and_the_sequence_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("log/guard/audit.jsonl");
    let mut log = open(&path);
    assert_eq!(log.append(stamp(1), agent()).sequence, 1);
    assert_eq!(log.append(stamp(2), agent()).sequence, 2);
    drop(log);
    let mut log = open(&path);
    assert_eq!(log.append(stamp(3), agent()).sequence, 3);
    assert_eq!(sequences(&path), [1, 2, 3]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&path) & !0o640, 0);
    assert_eq!(mode(path.parent().unwrap()) & !0o750, 0);
}

#[test]
fn a_half_written_last_line_is_kept_and_its_sequence_is_not_used_again() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("audit.jsonl");
    open(&path).append(stamp(1), agent());
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"{\"schema\":\"guard-agent.audit/1\",\"sequ").unwrap();
    let mut log = open(&path);
    assert_eq!(log.append(stamp(2), agent()).sequence, 3);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().nth(1), Some("{\"schema\":\"guard-agent.audit/1\",\"sequ"));
    assert_eq!(sequences(&path), [1, 3]);
}

#[test]
fn a_last_line_that_lacks_only_its_line_feed_counts() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("audit.jsonl");
    open(&path).append(stamp(1), agent());
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.trim_end()).unwrap();
    open(&path).append(stamp(2), agent());
    assert_eq!(sequences(&path), [1, 2]);
}

#[test]
fn a_rotated_file_is_left_and_a_new_one_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("audit.jsonl");
    let mut log = open(&path);
    log.append(stamp(1), agent());
    fs::rename(&path, root.path().join("audit.jsonl.1")).unwrap();
    log.append(stamp(2), agent());
    log.flush().unwrap();
    log.append(stamp(3), agent());
    assert_eq!(sequences(&root.path().join("audit.jsonl.1")), [1, 2]);
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
    assert_eq!(sequences(&path), [1, 2, 3]);
}

#[test]
fn a_start_right_after_a_rotation_goes_on_from_the_rotated_file() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("audit.jsonl");
    let mut log = open(&path);
    log.append(stamp(1), agent());
    log.append(stamp(2), agent());
    drop(log);
    fs::rename(&path, root.path().join("audit.jsonl-20260921")).unwrap();
    assert_eq!(open(&path).append(stamp(3), agent()).sequence, 3);
    let options = AuditOptions { sequence_floor: 40, ..AuditOptions::default() };
    let mut log = AuditFile::open(&path, origin(), options).unwrap();
    assert_eq!(log.append(stamp(4), agent()).sequence, 41);
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let error =
        AuditFile::open(Path::new("/dev/null"), origin(), AuditOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "the audit log /dev/null is not a regular file");
}

#[test]
fn history_gives_the_last_lines_that_match_oldest_first() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("audit.jsonl");
    let mut log = open(&path);
    for second in 1..=5 {
        log.append(stamp(second), pool("one"));
        log.append(stamp(second), pool("two"));
    }
    log.append(stamp(6), agent());
    let found = |count, filter: Filter| -> Vec<u64> {
        read_tail(&path, count, &filter, SEARCH_BOUND)
            .unwrap()
            .iter()
            .map(|line| line.record.sequence)
            .collect()
    };
    let two = Filter { pool: Some("two".to_owned()), ..Filter::default() };
    assert_eq!(found(2, two.clone()), [8, 10]);
    assert_eq!(found(9, Filter { kind: Some(Kind::Agent), ..Filter::default() }), [11]);
    assert_eq!(found(9, Filter { since: Some(stamp(5).time), ..two }), [10]);
    assert_eq!(found(0, Filter::default()), [0; 0]);
    assert_eq!(
        read_tail(&root.path().join("none"), 1, &Filter::default(), SEARCH_BOUND).unwrap(),
        []
    );
}
