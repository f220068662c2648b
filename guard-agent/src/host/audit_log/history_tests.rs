//! A log with rotated files, plain and compressed.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;
use crate::model::audit::Kind;
use crate::model::audit::record::{AgentBody, AgentChange, Body, Origin};
use crate::model::time::BootOffset;

fn line(sequence: u64) -> String {
    let origin = Origin { host: "h".to_owned(), boot_id: "b".to_owned() };
    let (version, build) = ("0".to_owned(), "b".to_owned());
    let body =
        AgentBody { change: AgentChange::Started, version, build, pid: 1, previous_build: None };
    let offset = BootOffset::between(Duration::from_secs(1_790_000_000), Duration::ZERO);
    Record::new(&origin, sequence, offset.stamp(sequence * 1_000_000_000), Body::Agent(body))
        .to_line()
}

fn lines(sequences: std::ops::Range<u64>) -> String {
    sequences.map(line).collect()
}

fn compressed(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// Ten lines a file: 30 to 39 in the log, 20 to 29 in `.1`, the older ones compressed.
fn log() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    fs::write(&path, lines(30..40)).unwrap();
    fs::write(directory.path().join("audit.jsonl.1"), lines(20..30)).unwrap();
    fs::write(directory.path().join("audit.jsonl.2.gz"), compressed(&lines(10..20))).unwrap();
    fs::write(directory.path().join("audit.jsonl.3.gz"), compressed(&lines(0..10))).unwrap();
    fs::write(directory.path().join("audit.jsonl.bak"), lines(0..40)).unwrap();
    (directory, path)
}

fn sequences(path: &Path, count: usize, filter: &Filter, bound: u64) -> Vec<u64> {
    let found = read_tail(path, count, filter, bound).unwrap();
    found.iter().map(|line| line.record.sequence).collect()
}

#[test]
fn reading_goes_on_into_rotated_files() {
    let (_directory, path) = log();
    let all = Filter::default();
    for count in [0, 1, 10, 11, 25, 40, 100] {
        let expected: Vec<u64> = (40_u64.saturating_sub(count)..40).collect();
        assert_eq!(
            sequences(&path, usize::try_from(count).unwrap(), &all, SEARCH_BOUND),
            expected,
            "{count}"
        );
    }
    let nothing = Filter { kind: Some(Kind::Lease), ..Filter::default() };
    assert!(sequences(&path, 100, &nothing, SEARCH_BOUND).is_empty());
}

#[test]
fn a_log_right_after_its_rotation_has_history() {
    let (_directory, path) = log();
    fs::remove_file(&path).unwrap();
    assert_eq!(sequences(&path, 3, &Filter::default(), SEARCH_BOUND), [27, 28, 29]);
    fs::write(&path, "").unwrap();
    assert_eq!(sequences(&path, 3, &Filter::default(), SEARCH_BOUND), [27, 28, 29]);
}

#[test]
fn dated_files_are_in_the_order_of_their_last_write() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let write = |name: &str, bytes: &[u8], second: u64| {
        let file = File::create(directory.path().join(name)).unwrap();
        (&file).write_all(bytes).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(second)).unwrap();
    };
    write("audit.jsonl", lines(20..30).as_bytes(), 1_790_000_030);
    write("audit.jsonl-20260922", lines(10..20).as_bytes(), 1_790_000_020);
    write("audit.jsonl-20260921.gz", &compressed(&lines(0..10)), 1_790_000_010);
    let all: Vec<u64> = (0..30).collect();
    assert_eq!(sequences(&path, 100, &Filter::default(), SEARCH_BOUND), all);
    // A file that was last written before has nothing from after it.
    let since = Some(serde_json::from_str("\"2026-09-21T14:13:35Z\"").unwrap());
    let filter = Filter { since, ..Filter::default() };
    assert_eq!(sequences(&path, 100, &filter, SEARCH_BOUND), all[15..]);
}

#[test]
fn a_search_has_a_bound_and_no_hole() {
    let (_directory, path) = log();
    let all = Filter::default();
    let length = lines(30..40).len() as u64;
    // Half of the second file; half of the third, compressed one, whose end could only be had with
    // the rest.
    assert_eq!(sequences(&path, 100, &all, length * 3 / 2), (26..40).collect::<Vec<u64>>());
    assert_eq!(sequences(&path, 100, &all, length * 5 / 2), (20..40).collect::<Vec<u64>>());
}

#[test]
fn a_damaged_file_gives_what_can_be_read_of_it() {
    let (directory, path) = log();
    let file = directory.path().join("audit.jsonl.2.gz");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let found = sequences(&path, 100, &Filter::default(), SEARCH_BOUND);
    assert!(found.ends_with(&(20..40).collect::<Vec<u64>>()), "{found:?}");
    assert!(found.starts_with(&(0..10).collect::<Vec<u64>>()), "{found:?}");
    fs::write(&file, [&GZIP[..], &[0; 100]].concat()).unwrap();
    assert_eq!(sequences(&path, 100, &Filter::default(), SEARCH_BOUND).len(), 30);
}
