//! The audit log as a file: appends whole lines, resumes its sequence, survives rotation and full
//! disks.
//!
//! No line is ever changed. It blocks: a daemon calls it from where blocking is all right.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::{Gid, geteuid};
use serde::Deserialize;

use super::queue::LineQueue;
use super::rotated;
use super::tail::LinesFromEnd;
use crate::model::audit::record::{Body, Origin, Record};
use crate::model::control::report::AuditReport;
use crate::model::time::Stamp;

/// Number of bytes from the end in which the last sequence is looked for.
const RESUME_BOUND: u64 = 1024 * 1024;
/// Number of rotated files that are searched for the last sequence.
const ROTATED_FILES: usize = 16;

/// Why the audit log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("cannot create the directory {path}")]
    CreateDirectory { path: PathBuf, source: io::Error },
    #[error("cannot open the audit log {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("the audit log {path} is not a regular file")]
    NotRegular { path: PathBuf },
    #[error("cannot read the end of the audit log {path}")]
    Resume { path: PathBuf, source: io::Error },
}

/// Settings of the log.
#[derive(Clone, Copy, Debug)]
pub struct AuditOptions {
    /// Records that wait at most while the file cannot be written.
    pub pending_capacity: usize,
    /// The sequence is greater than this even if no file says so (all of it was rotated away).
    pub sequence_floor: u64,
    /// The group whose members may read the log; none: only root may.
    pub readers: Option<Gid>,
}

impl Default for AuditOptions {
    fn default() -> Self {
        Self { pending_capacity: 4_096, sequence_floor: 0, readers: None }
    }
}

/// A record that was taken: written, waiting, or dropped with its sequence used up.
#[derive(Clone, Debug)]
pub struct Appended {
    pub sequence: u64,
    /// The line without its line feed, for readers that follow.
    pub line: Arc<str>,
}

/// The open audit log.
#[derive(Debug)]
pub struct AuditFile {
    path: PathBuf,
    origin: Origin,
    opened: Opened,
    queue: LineQueue,
    last_sequence: u64,
    readers: Option<Gid>,
}

#[derive(Debug)]
struct Opened {
    file: File,
    device: u64,
    inode: u64,
}

impl AuditFile {
    /// Opens or creates the log (mode 0640, its directories 0750, of the readers' group) and
    /// resumes after its last record.
    pub fn open(path: &Path, origin: Origin, options: AuditOptions) -> Result<Self, AuditError> {
        let opened = Opened::open(path, options.readers)?;
        let end = End::read(&opened.file).map_err(|source| resume_error(path, source))?;
        let mut last_sequence = end.last_sequence;
        if end.is_empty {
            last_sequence =
                last_rotated_sequence(path).map_err(|source| resume_error(path, source))?;
        }
        Ok(Self {
            path: path.to_owned(),
            origin,
            opened,
            queue: LineQueue::new(options.pending_capacity, end.torn),
            last_sequence: last_sequence.max(options.sequence_floor),
            readers: options.readers,
        })
    }

    /// Takes a record and writes it, if the file can be written; otherwise it waits.
    pub fn append(&mut self, stamp: Stamp, body: Body) -> Appended {
        self.last_sequence += 1;
        let line = Record::new(&self.origin, self.last_sequence, stamp, body).to_line();
        let appended = Appended { sequence: self.last_sequence, line: line.trim_end().into() };
        self.queue.push(line);
        self.drain();
        appended
    }

    /// Writes the waiting records. If the file was moved or deleted, goes on in a new one. Call it
    /// regularly.
    pub fn flush(&mut self) -> Result<(), AuditError> {
        if !self.opened.is_at(&self.path) {
            self.opened = Opened::open(&self.path, self.readers)?;
            let end =
                End::read(&self.opened.file).map_err(|source| resume_error(&self.path, source))?;
            self.queue.reset_torn(end.torn);
        }
        self.drain();
        Ok(())
    }

    /// The state of the log.
    pub fn status(&self) -> AuditReport {
        AuditReport {
            path: self.path.display().to_string(),
            sequence: self.last_sequence,
            write_failures: self.queue.write_failures(),
            dropped: self.queue.dropped(),
            pending: self.queue.waiting(),
        }
    }

    fn drain(&mut self) {
        if let Err(error) = self.queue.drain(&mut self.opened.file) {
            let failures = self.queue.write_failures();
            if failures.is_power_of_two() {
                tracing::warn!(path = %self.path.display(), %error, failures, "audit log: write \
                                                                               failed");
            }
        }
    }
}

impl Opened {
    fn open(path: &Path, readers: Option<Gid>) -> Result<Self, AuditError> {
        let open_error = |source| AuditError::Open { path: path.to_owned(), source };
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty())
        {
            DirBuilder::new().recursive(true).mode(0o750).create(directory).map_err(|source| {
                AuditError::CreateDirectory { path: directory.to_owned(), source }
            })?;
            let found = fs::metadata(directory);
            give_to(readers, directory, 0o750, found, |group| chown(directory, None, Some(group)));
        }
        // Reading as well: the end is looked at, and opening a FIFO does not block.
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .append(true)
            .create(true)
            .mode(0o640)
            .open(path)
            .map_err(open_error)?;
        let metadata = file.metadata().map_err(open_error)?;
        if !metadata.is_file() {
            return Err(AuditError::NotRegular { path: path.to_owned() });
        }
        let found = file.metadata();
        give_to(readers, path, 0o640, found, |group| fchown(&file, None, Some(group)));
        Ok(Self { file, device: metadata.dev(), inode: metadata.ino() })
    }

    fn is_at(&self, path: &Path) -> bool {
        fs::metadata(path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode))
    }
}

/// Gives a file or directory of ours to the group of readers. It is ours if it belongs to root, in
/// root's group, with just this mode. One that somebody has set up otherwise is theirs. A log that
/// the group cannot read is better than none, so a failure is logged and no more.
fn give_to(
    readers: Option<Gid>,
    path: &Path,
    mode: u32,
    found: io::Result<fs::Metadata>,
    change: impl FnOnce(u32) -> io::Result<()>,
) {
    let Some(group) = readers.filter(|_| geteuid().is_root()) else { return };
    let changed = found.and_then(|found| {
        let is_ours = found.uid() == 0 && found.gid() == 0 && found.mode() & 0o7777 == mode;
        if is_ours { change(group.as_raw()) } else { Ok(()) }
    });
    if let Err(error) = changed {
        tracing::warn!(path = %path.display(), group = group.as_raw(), %error, "audit log: not \
                                                                                given to its \
                                                                                readers");
    }
}

fn resume_error(path: &Path, source: io::Error) -> AuditError {
    AuditError::Resume { path: path.to_owned(), source }
}

/// State of the end of a log.
struct End {
    is_empty: bool,
    /// The last line has no line feed.
    torn: bool,
    /// 0 if no line is a record. A torn line that cannot be read has used one up.
    last_sequence: u64,
}

impl End {
    fn read(file: &File) -> io::Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            sequence: u64,
        }
        let mut lines = LinesFromEnd::new(file, RESUME_BOUND)?;
        let mut end = Self { is_empty: file.metadata()?.len() == 0, torn: false, last_sequence: 0 };
        let mut torn_away = 0;
        let mut is_last = true;
        while let Some(line) = lines.next_line()? {
            end.torn |= is_last && !line.is_empty();
            if let Ok(head) = serde_json::from_slice::<Head>(&line) {
                end.last_sequence = head.sequence.saturating_add(torn_away);
                break;
            }
            torn_away = u64::from(is_last && !line.is_empty());
            is_last = false;
        }
        Ok(end)
    }
}

/// The last sequence of the newest rotated files, for a start right after a rotation. A compressed
/// file has no lines to read here.
fn last_rotated_sequence(path: &Path) -> io::Result<u64> {
    let mut last = 0;
    for rotated in rotated::list(path)?.iter().take(ROTATED_FILES) {
        last = last.max(End::read(&File::open(rotated)?)?.last_sequence);
    }
    Ok(last)
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
