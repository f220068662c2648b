//! Reads the audit log back: the last lines that someone asked for, from the file that is written
//! and on into rotated ones, compressed or not.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::SystemTime;

use flate2::read::MultiGzDecoder;

use super::rotated;
use super::tail::LinesFromEnd;
use crate::model::audit::filter::Filter;
use crate::model::audit::record::Record;

/// Number of bytes of the log that a search reads at most (of a compressed file: of its content).
pub const SEARCH_BOUND: u64 = 256 * 1024 * 1024;
/// A line of a compressed file that is longer is no record.
const LINE_BOUND: u64 = 1024 * 1024;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A line of the log, without its line feed, with its record.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryLine {
    pub line: String,
    pub record: Record,
}

/// The last `count` lines that pass the filter, oldest first, if they are within the last `bound`
/// bytes. Lines that are no record (torn by a crash) are left out. A log that does not exist yet
/// has no lines.
pub fn read_tail(
    path: &Path,
    count: usize,
    filter: &Filter,
    bound: u64,
) -> io::Result<Vec<HistoryLine>> {
    let mut search = Search { filter, count, left: bound, newest_first: Vec::new() };
    for log in rotated::open_all(path)? {
        if search.is_over() || !may_have(filter, log.modified) {
            break;
        }
        search.read(log.file)?;
    }
    search.newest_first.reverse();
    Ok(search.newest_first)
}

/// Whether a file that was last written then can have a line from after `since`. So can none that
/// is older.
fn may_have(filter: &Filter, modified: SystemTime) -> bool {
    filter.since.is_none_or(|since| modified >= SystemTime::from(since.0))
}

struct Search<'f> {
    filter: &'f Filter,
    count: usize,
    /// Bytes that may still be read.
    left: u64,
    newest_first: Vec<HistoryLine>,
}

impl Search<'_> {
    fn is_over(&self) -> bool {
        self.newest_first.len() >= self.count || self.left == 0
    }

    fn read(&mut self, mut file: File) -> io::Result<()> {
        let mut start = Vec::new();
        (&mut file).take(GZIP.len() as u64).read_to_end(&mut start)?;
        file.seek(SeekFrom::Start(0))?;
        if start == GZIP { self.read_compressed(file) } else { self.read_plain(file) }
    }

    fn read_plain(&mut self, file: File) -> io::Result<()> {
        let length = file.metadata()?.len();
        let mut lines = LinesFromEnd::new(file, self.left)?;
        while self.newest_first.len() < self.count {
            let Some(line) = lines.next_line()? else { break };
            self.newest_first.extend(self.select(line));
        }
        self.left = self.left.saturating_sub(length);
        Ok(())
    }

    /// Only readable from its beginning: its last lines are kept, as many as are wanted. A file
    /// that holds more bytes than may still be read ends the search: the lines behind that point
    /// are newer than those that were seen.
    fn read_compressed(&mut self, file: File) -> io::Result<()> {
        let wanted = self.count - self.newest_first.len();
        let mut kept: VecDeque<HistoryLine> = VecDeque::new();
        let mut content = BufReader::new(MultiGzDecoder::new(BufReader::new(file)));
        loop {
            let mut line = Vec::new();
            match (&mut content).take(LINE_BOUND).read_until(b'\n', &mut line) {
                // A damaged file ends where it cannot be read.
                Ok(0) | Err(_) => break,
                Ok(length) => self.left = self.left.saturating_sub(length as u64),
            }
            if self.left == 0 {
                return Ok(());
            }
            line.pop_if(|last| *last == b'\n');
            if let Some(found) = self.select(line) {
                if kept.len() == wanted {
                    kept.pop_front();
                }
                kept.push_back(found);
            }
        }
        self.newest_first.extend(kept.into_iter().rev());
        Ok(())
    }

    fn select(&self, line: Vec<u8>) -> Option<HistoryLine> {
        let record = self.filter.select(&line)?;
        let line = String::from_utf8(line).expect("serde_json accepted it as UTF-8");
        Some(HistoryLine { line, record })
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
