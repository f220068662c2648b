//! Reads a policy file. The only part of `policy` that touches the filesystem.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::model::policy::{Policy, PolicyErrors, parse};

/// A policy file is read up to this size.
const MAX_BYTES: u64 = 1 << 20;

/// Reads and validates a policy file.
pub fn load(path: &Path) -> Result<Policy, PolicyErrors> {
    parse(&read(path)?, path)
}

/// Reads the text of a policy file.
pub fn read(path: &Path) -> Result<String, PolicyErrors> {
    text(path).map_err(|(what, hint)| PolicyErrors::whole_file(path.to_owned(), what, hint))
}

fn text(path: &Path) -> Result<String, (String, Option<String>)> {
    let cannot = |error: std::io::Error| (format!("cannot be read: {error}"), None);
    let file = File::open(path).map_err(cannot)?;
    if !file.metadata().map_err(cannot)?.is_file() {
        return Err(("is not a regular file".to_owned(), None));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(("is larger than 1 MiB".to_owned(), Some("is this a policy file?".to_owned())));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count() + 1;
        (
            format!("is not UTF-8 (line {line}, byte {valid})"),
            Some("save the file as UTF-8".to_owned()),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_files_are_clear_errors() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("policy.toml");
        let message = || load(&file).unwrap_err().problems()[0].what.clone();
        assert_eq!(message(), "cannot be read: No such file or directory (os error 2)");
        std::fs::write(&file, b"version = 1\n# caf\xe9").unwrap();
        assert_eq!(message(), "is not UTF-8 (line 2, byte 17)");
        std::fs::write(&file, "#".repeat(1 << 20 | 1)).unwrap();
        assert_eq!(message(), "is larger than 1 MiB");
        assert_eq!(
            load(directory.path()).unwrap_err().to_string(),
            format!("{}: is not a regular file", directory.path().display())
        );
    }
}
