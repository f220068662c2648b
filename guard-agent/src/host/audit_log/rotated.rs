//! The log's files: the one that is written, and those that logrotate has made of it. Lists and
//! opens them; their content is the part of `history`.
//!
//! Known names: `audit.jsonl.1`, `audit.jsonl-20260921` (`dateext`), each also with `.gz`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Number of rotated files that are looked at, the newest ones.
const ROTATED_FILES: usize = 64;
/// A greater number behind the dot is a date (`dateformat .%Y%m%d`).
const INDEX_LIMIT: u64 = 10_000;

/// One of the log's files.
#[derive(Debug)]
pub struct LogFile {
    pub file: File,
    /// The last write: nothing in it is younger.
    pub modified: SystemTime,
}

/// The log and its rotated files, the newest first. All are open before the first is read, so that
/// a rotation meanwhile changes nothing. A log that does not exist yet has no file of its own.
pub fn open_all(path: &Path) -> io::Result<Vec<LogFile>> {
    let mut files = Vec::new();
    let current = match File::open(path) {
        Ok(file) => {
            let metadata = file.metadata()?;
            files.push(LogFile { modified: metadata.modified()?, file });
            Some(identity(&metadata))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    for rotated in list(path)? {
        // One that was removed since is one that nobody can read any more.
        let file = match File::open(&rotated) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        // Rotated between the two looks: it is in the list already.
        if current != Some(identity(&metadata)) {
            files.push(LogFile { modified: metadata.modified()?, file });
        }
    }
    Ok(files)
}

/// Rotated files of a log, the newest first.
pub fn list(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) =
        (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return Ok(Vec::new());
    };
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let place = entry.file_name().to_str().and_then(|other| place(other.strip_prefix(name)?));
        if let Some(place) = place.filter(|_| metadata.is_file()) {
            found.push((place, metadata.modified()?, entry.path()));
        }
    }
    Ok(sorted(found))
}

/// The suffix of a rotated file, after the log's own name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Position in the rotation, 1 is the newest.
    Index(u64),
    Date,
}

fn place(suffix: &str) -> Option<Place> {
    let suffix = suffix.strip_suffix(".gz").unwrap_or(suffix);
    let rest = suffix.strip_prefix(['.', '-'])?;
    rest.starts_with(|first: char| first.is_ascii_digit()).then(|| match rest.parse() {
        Ok(index) if index < INDEX_LIMIT && suffix.starts_with('.') => Place::Index(index),
        _ => Place::Date,
    })
}

/// Numbers say which is newer. Dates come in any format, so there the last write does.
fn sorted(mut found: Vec<(Place, SystemTime, PathBuf)>) -> Vec<PathBuf> {
    let index = |place: Place| match place {
        Place::Index(index) => Some(index),
        Place::Date => None,
    };
    if found.iter().all(|(place, ..)| index(*place).is_some()) {
        found.sort_by_key(|(place, ..)| index(*place));
    } else {
        found.sort_by(|(_, one, path), (_, other, other_path)| {
            (other, other_path).cmp(&(one, path))
        });
    }
    found.into_iter().take(ROTATED_FILES).map(|(_, _, path)| path).collect()
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_what_logrotate_makes_is_a_rotated_file() {
        for (suffix, expected) in [
            (".1", Some(Place::Index(1))),
            (".12.gz", Some(Place::Index(12))),
            ("-20260921", Some(Place::Date)),
            ("-20260921-1790000000.gz", Some(Place::Date)),
            (".20260921", Some(Place::Date)),
            (".bak", None),
            (".new", None),
            ("", None),
            ("1", None),
        ] {
            assert_eq!(place(suffix), expected, "{suffix}");
        }
    }

    #[test]
    fn numbers_go_before_dates_of_writing() {
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let names = |found: Vec<(Place, SystemTime, PathBuf)>| sorted(found);
        let numbered = [(10, 9), (2, 9), (1, 9)]
            .map(|(index, time)| (Place::Index(index), at(time), index.to_string().into()));
        assert_eq!(names(numbered.to_vec()), ["1", "2", "10"].map(PathBuf::from));
        let dated =
            [("b", 3), ("a", 5), ("c", 3)].map(|(name, time)| (Place::Date, at(time), name.into()));
        assert_eq!(names(dated.to_vec()), ["a", "c", "b"].map(PathBuf::from));
    }
}
