//! Reads the audit log back: the last lines that someone asked for.

use std::fs::File;
use std::io;
use std::path::Path;

use super::filter::Filter;
use super::record::Record;
use super::tail::LinesFromEnd;

/// How far back a search goes at most, in bytes of the log.
pub const SEARCH_BOUND: u64 = 256 * 1024 * 1024;

/// A line of the log, without its line feed, with what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryLine {
    pub line: String,
    pub record: Record,
}

/// The last `count` lines that pass the filter, oldest first. Lines that are no record (torn by a crash)
/// are left out. A log that does not exist yet has no lines.
pub fn read_tail(path: &Path, count: usize, filter: &Filter) -> io::Result<Vec<HistoryLine>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut lines = LinesFromEnd::new(file, SEARCH_BOUND)?;
    let mut found = Vec::new();
    while found.len() < count {
        let Some(line) = lines.next_line()? else { break };
        if let Some(record) = filter.select(&line) {
            let line = String::from_utf8(line).expect("serde_json accepted it as UTF-8");
            found.push(HistoryLine { line, record });
        }
    }
    found.reverse();
    Ok(found)
}
