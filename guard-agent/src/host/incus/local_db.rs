//! Reads `database/local.db`, the node's own database: its cluster address, and the raft nodes it
//! knows.
//!
//! It writes nothing and creates no file beside the database, in whatever state the database is. It
//! blocks for a moment when Incus writes: call it where that is all right. Incus waits for five
//! seconds for a reader, which needs milliseconds.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};
use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use thiserror::Error;

use crate::host::roots;
use crate::model::address::Address;
use crate::model::join::Config;
use crate::model::mounts::Snapshot;

/// Longest wait for a writer.
const BUSY: Duration = Duration::from_millis(250);
/// Of each table, at most.
const ROWS: usize = 4096;
/// Bytes of a row at most.
const ROW_LIMIT: i32 = 1 << 20;
/// For all of it. It takes milliseconds, but a table may as well be a view that never ends.
const TIME_LIMIT: Duration = Duration::from_secs(2);
/// Instructions of SQLite's machine between two looks at the clock.
const STEPS: i32 = 10_000;
const HEADER: usize = 100;
const MAGIC: &[u8] = b"SQLite format 3\0";

/// The relevant part of its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalDb {
    /// `cluster.https_address`.
    pub cluster_address: Option<String>,
    /// `core.https_address`.
    pub core_address: Option<String>,
    pub raft_nodes: Vec<RaftNode>,
}

impl LocalDb {
    /// This server's name in its cluster.
    pub fn own_name(&self) -> Option<&str> {
        let own = Address::parse(self.cluster_address.as_deref()?);
        let row = self.raft_nodes.iter().find(|row| Address::parse(&row.address) == own)?;
        Some(row.name.as_str()).filter(|name| !name.is_empty())
    }
}

/// A row of `raft_nodes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftNode {
    pub id: i64,
    pub address: String,
    pub name: String,
}

/// Why it could not be read.
#[derive(Debug, Error)]
pub enum LocalDbError {
    #[error("{path} does not exist")]
    Absent { path: PathBuf },
    #[error("{path} lies on a network filesystem, which is not touched")]
    OnNetwork { path: PathBuf },
    #[error("{path} is no regular file")]
    NotFile { path: PathBuf },
    #[error("{path} has {length} bytes: too short for a database")]
    Truncated { path: PathBuf, length: u64 },
    #[error("{path} is no SQLite database")]
    NotDatabase { path: PathBuf },
    #[error("{path} is locked by a writer")]
    Locked { path: PathBuf },
    /// A journal or write-ahead log that only a writer may play back.
    #[error(
        "{path} was left in the middle of a transaction: it can be read once Incus has started and \
         repaired it"
    )]
    Unfinished { path: PathBuf },
    #[error("{path} is damaged")]
    Damaged {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("{path} has another schema than is known here")]
    Schema {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("{path}: table {table} has more than {ROWS} rows")]
    TooLarge { path: PathBuf, table: &'static str },
    #[error("{path} is not read within {} s", TIME_LIMIT.as_secs())]
    TooSlow { path: PathBuf },
    #[error("{operation} {path}")]
    Sqlite {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("{operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Reads the database at `path`. The mount table tells whether it can be touched.
pub fn read(path: &Path, snapshot: &Snapshot) -> Result<LocalDb, LocalDbError> {
    let refused = || LocalDbError::OnNetwork { path: path.to_owned() };
    if roots::is_on_network(path, snapshot) {
        return Err(refused());
    }
    let real = fs::canonicalize(path).map_err(|error| failed("follow", path, error))?;
    // The way there may have changed meanwhile.
    if roots::is_on_network(&real, snapshot) {
        return Err(refused());
    }
    let before = check_header(&real)?;
    let log = beside(&real, "-wal");
    // Without a log there is nothing to share with a writer, and SQLite would create one to share.
    // Then the file is read as it is, and again later if it has changed meanwhile.
    let alone = before.write_ahead && !exists(&log)?;
    let database = read_tables(&real, alone)?;
    if alone && (check_header(&real)? != before || exists(&log)?) {
        return Err(LocalDbError::Locked { path: real });
    }
    Ok(database)
}

/// Distinguishes one state of the file from another.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    write_ahead: bool,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

/// SQLite takes an empty file for an empty database, and follows a header wherever it leads: look
/// first.
fn check_header(path: &Path) -> Result<Version, LocalDbError> {
    let about = fs::symlink_metadata(path).map_err(|error| failed("look at", path, error))?;
    if !about.is_file() {
        return Err(LocalDbError::NotFile { path: path.to_owned() });
    }
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    let mut file = options.open(path).map_err(|error| failed("open", path, error))?;
    let header = read_header(&mut file).map_err(|error| failed("read", path, error))?;
    let Some(header) = header else {
        return Err(LocalDbError::Truncated { path: path.to_owned(), length: about.len() });
    };
    if !header.starts_with(MAGIC) {
        return Err(LocalDbError::NotDatabase { path: path.to_owned() });
    }
    Ok(Version {
        // The file format's read version: 1 with a rollback journal, 2 with a write-ahead log.
        write_ahead: header[19] == 2,
        inode: about.ino(),
        length: about.len(),
        modified: (about.mtime(), about.mtime_nsec()),
    })
}

/// `None`: the file is shorter.
fn read_header(file: &mut File) -> io::Result<Option<[u8; HEADER]>> {
    let mut header = [0; HEADER];
    match file.read_exact(&mut header) {
        Ok(()) => Ok(Some(header)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_tables(path: &Path, alone: bool) -> Result<LocalDb, LocalDbError> {
    let connection = open(path, alone).map_err(|error| explain("open", path, error))?;
    let mut settings = read_settings(&connection).map_err(|error| explain("read", path, error))?;
    let raft_nodes = read_raft_nodes(&connection).map_err(|error| explain("read", path, error))?;
    for (table, rows) in [("config", settings.len()), ("raft_nodes", raft_nodes.len())] {
        if rows > ROWS {
            return Err(LocalDbError::TooLarge { path: path.to_owned(), table });
        }
    }
    let mut value = |key: &str| {
        let at = settings.iter().position(|(name, _)| name == key)?;
        settings.swap_remove(at).1.filter(|value| !value.is_empty())
    };
    Ok(LocalDb {
        cluster_address: value("cluster.https_address"),
        core_address: value("core.https_address"),
        raft_nodes,
    })
}

fn open(path: &Path, alone: bool) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_URI;
    let mut connection = Connection::open_with_flags(uri(path, alone), flags)?;
    connection.busy_timeout(BUSY)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, ROW_LIMIT)?;
    let end = Instant::now() + TIME_LIMIT;
    connection.progress_handler(STEPS, Some(move || Instant::now() > end))?;
    // Both tables as they were at one moment.
    connection.execute_batch("BEGIN")?;
    Ok(connection)
}

/// `readonly_shm`: even a read-only connection would else create the `-shm` file.
fn uri(path: &Path, alone: bool) -> String {
    let mut uri = String::from("file://");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte))
            }
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str(if alone { "?immutable=1" } else { "?readonly_shm=1" });
    uri
}

/// The whole table, not one key of it: a look-up would go through an index, and a damaged index has
/// no rows.
fn read_settings(connection: &Connection) -> rusqlite::Result<Vec<(String, Option<String>)>> {
    let mut statement = connection.prepare("SELECT key, value FROM config NOT INDEXED")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.take(ROWS + 1).collect()
}

fn read_raft_nodes(connection: &Connection) -> rusqlite::Result<Vec<RaftNode>> {
    let mut statement =
        connection.prepare("SELECT id, address, name FROM raft_nodes NOT INDEXED")?;
    let rows = statement.query_map([], |row| {
        Ok(RaftNode { id: row.get(0)?, address: row.get(1)?, name: row.get(2)? })
    })?;
    rows.take(ROWS + 1).collect()
}

fn explain(operation: &'static str, path: &Path, source: rusqlite::Error) -> LocalDbError {
    let path = path.to_owned();
    match &source {
        rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => LocalDbError::Locked { path },
            ErrorCode::DatabaseCorrupt => LocalDbError::Damaged { path, source },
            ErrorCode::NotADatabase => LocalDbError::NotDatabase { path },
            ErrorCode::ReadOnly => LocalDbError::Unfinished { path },
            ErrorCode::CannotOpen if exists(&beside(&path, "-wal")).unwrap_or(false) => {
                LocalDbError::Unfinished { path }
            }
            ErrorCode::OperationInterrupted => LocalDbError::TooSlow { path },
            ErrorCode::Unknown => LocalDbError::Schema { path, source },
            _ => LocalDbError::Sqlite { operation, path, source },
        },
        _ => LocalDbError::Schema { path, source },
    }
}

fn exists(path: &Path) -> Result<bool, LocalDbError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("look at", path, error)),
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> LocalDbError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => LocalDbError::Absent { path },
        _ => LocalDbError::Io { operation, path, source },
    }
}

impl From<&Result<LocalDb, LocalDbError>> for Config {
    fn from(result: &Result<LocalDb, LocalDbError>) -> Self {
        match result {
            Ok(database) => Self::Read {
                cluster_address: database.cluster_address.clone(),
                raft_nodes: u32::try_from(database.raft_nodes.len()).unwrap_or(u32::MAX),
                name: database.own_name().map(str::to_owned),
            },
            Err(LocalDbError::Absent { .. }) => Self::Absent,
            Err(error) => Self::Unreadable { why: crate::model::errors::chain(error) },
        }
    }
}

#[cfg(test)]
#[path = "local_db_tests.rs"]
mod tests;
