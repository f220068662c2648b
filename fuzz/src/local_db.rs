//! The file `local.db`: SQLite reads it, and this checks the agent's reading of that.

use std::fs;
use std::path::Path;

use guard_agent::host::incus::local_db::{LocalDb, LocalDbError, read};
use guard_agent::model::join::Config;
use guard_agent::model::mounts::Snapshot;

const MAGIC: &[u8] = b"SQLite format 3\0";
const ROWS: usize = 4096;

pub fn check(bytes: &[u8]) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().join("local.db");
    fs::write(&path, bytes).expect("a temporary file can be written");
    let result = read(&path, &Snapshot::default());
    is_untouched(directory.path(), bytes);
    match &result {
        Ok(database) => is_sound(bytes, database),
        Err(error) => {
            assert_eq!(
                matches!(error, LocalDbError::Truncated { .. }),
                bytes.len() < 100,
                "{error:?} of {} bytes",
                bytes.len()
            );
            let absent =
                matches!(error, LocalDbError::Absent { .. } | LocalDbError::OnNetwork { .. });
            assert!(!absent, "{error:?} of a file that is there");
        }
    }
    match Config::from(&result) {
        Config::Read { raft_nodes, .. } => {
            assert!(result.is_ok_and(|database| database.raft_nodes.len() == raft_nodes as usize))
        }
        Config::Unreadable { why } => assert!(result.is_err() && why.contains("local.db"), "{why}"),
        Config::Absent => panic!("the file is there"),
    }
}

fn is_sound(bytes: &[u8], database: &LocalDb) {
    assert!(bytes.starts_with(MAGIC), "what is no database has no rows");
    assert!(database.raft_nodes.len() <= ROWS);
    let addresses = [&database.cluster_address, &database.core_address];
    assert!(addresses.into_iter().flatten().all(|address| !address.is_empty()));
}

/// Reading has written nothing, and left nothing beside the file.
fn is_untouched(directory: &Path, bytes: &[u8]) {
    let files = fs::read_dir(directory).expect("the directory can be listed").count();
    assert_eq!(files, 1, "there are files beside it");
    assert!(
        fs::read(directory.join("local.db")).is_ok_and(|now| now == bytes),
        "it was written to"
    );
}
