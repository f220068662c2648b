//! The node's database, in every state that it can be found in.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;

use super::*;

const SCHEMA: &str = "CREATE TABLE schema (id INTEGER PRIMARY KEY, version INTEGER);
    CREATE TABLE config (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, key VARCHAR(255) NOT NULL, value TEXT, UNIQUE (key));
    CREATE TABLE raft_nodes (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, address TEXT NOT NULL,
        role INTEGER NOT NULL DEFAULT 0, name TEXT NOT NULL default \"\", UNIQUE (address));";
const JOINED: &str = "INSERT INTO config (key, value) VALUES ('cluster.https_address', '10.0.2.15:8443'),
        ('core.https_address', '10.0.2.15:8443'), ('storage.images_volume', NULL);
    INSERT INTO raft_nodes (address, name) VALUES ('10.0.2.11:8443', 'node1'), ('10.0.2.15:8443', 'node2');";

struct Place {
    directory: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn empty() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("local 50%?.db");
        Self { directory, path }
    }

    fn with(sql: &str) -> Self {
        let place = Self::empty();
        place.writer().execute_batch(sql).unwrap();
        place
    }

    fn joined() -> Self {
        Self::with(&format!("{SCHEMA}{JOINED}"))
    }

    fn writer(&self) -> Connection {
        Connection::open(&self.path).unwrap()
    }

    fn files(&self) -> BTreeSet<PathBuf> {
        fs::read_dir(self.directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Reads; nothing is made, removed or written by that.
    fn read(&self) -> Result<LocalDb, LocalDbError> {
        // Readers' marks are in the shared memory, which the writer of the same process has opened
        // for both.
        let bytes = |path: &PathBuf| {
            if path.to_string_lossy().ends_with("-shm") { None } else { fs::read(path).ok() }
        };
        let content =
            || self.files().into_iter().map(|path| (bytes(&path), path)).collect::<Vec<_>>();
        let before = content();
        let result = read(&self.path, &Snapshot::default());
        assert!(content() == before, "the files stay as they were");
        result
    }

    fn damage(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(&self.path).unwrap();
        change(&mut bytes);
        fs::write(&self.path, bytes).unwrap();
    }
}

#[test]
fn a_member_and_a_standalone_server() {
    let database = Place::joined().read().unwrap();
    assert_eq!(database.cluster_address.as_deref(), Some("10.0.2.15:8443"));
    assert_eq!(database.core_address.as_deref(), Some("10.0.2.15:8443"));
    let node = |id, address: &str, name: &str| RaftNode {
        id,
        address: address.to_owned(),
        name: name.to_owned(),
    };
    assert_eq!(
        database.raft_nodes,
        [node(1, "10.0.2.11:8443", "node1"), node(2, "10.0.2.15:8443", "node2")]
    );
    let config = Config::from(&Ok(database));
    let expected = Config::Read {
        cluster_address: Some("10.0.2.15:8443".to_owned()),
        raft_nodes: 2,
        name: Some("node2".to_owned()),
    };
    assert_eq!(config, expected);

    let standalone = Place::with(&format!(
        "{SCHEMA} INSERT INTO config (key, value) VALUES ('cluster.https_address', '');"
    ));
    assert_eq!(Config::from(&standalone.read()), Config::cluster(None, 0));
}

#[test]
fn more_columns_and_tables_are_no_obstacle_and_missing_ones_are() {
    let place = Place::joined();
    place
        .writer()
        .execute_batch("ALTER TABLE raft_nodes ADD COLUMN zone TEXT; CREATE TABLE future (x);")
        .unwrap();
    assert_eq!(place.read().unwrap().raft_nodes.len(), 2);
    place.writer().execute_batch("ALTER TABLE raft_nodes RENAME COLUMN address TO url").unwrap();
    assert!(matches!(place.read(), Err(LocalDbError::Schema { .. })));
    place.writer().execute_batch("DROP TABLE raft_nodes").unwrap();
    assert!(matches!(place.read(), Err(LocalDbError::Schema { .. })));
    let error = Config::from(&place.read());
    assert!(
        matches!(&error, Config::Unreadable { why } if why.contains("no such table: raft_nodes")),
        "{error:?}"
    );
}

#[test]
fn tables_that_never_end_are_given_up() {
    let numbers = "WITH RECURSIVE n(key, value) AS (SELECT 1, 1 UNION ALL SELECT key + 1, 1 FROM \
                   n)";
    let silent = format!("CREATE VIEW config AS {numbers} SELECT key, value FROM n WHERE key < 0;");
    let slow = Place::with(&silent).read();
    assert!(matches!(slow, Err(LocalDbError::TooSlow { .. })), "{slow:?}");
    let wide = "CREATE VIEW config AS SELECT 'a' AS key, hex(zeroblob(400000000)) AS value;";
    let refused = Place::with(wide).read();
    assert!(matches!(refused, Err(LocalDbError::Sqlite { .. })), "{refused:?}");
}

#[test]
fn absence_is_told_from_everything_else() {
    let place = Place::empty();
    assert!(matches!(place.read(), Err(LocalDbError::Absent { .. })));
    assert_eq!(Config::from(&place.read()), Config::Absent);
    fs::write(&place.path, "").unwrap();
    assert!(matches!(place.read(), Err(LocalDbError::Truncated { length: 0, .. })));
    fs::write(&place.path, [b'x'; 4096]).unwrap();
    assert!(matches!(place.read(), Err(LocalDbError::NotDatabase { .. })));
    fs::remove_file(&place.path).unwrap();
    fs::create_dir(&place.path).unwrap();
    assert!(matches!(place.read(), Err(LocalDbError::NotFile { .. })));
    fs::remove_dir(&place.path).unwrap();
    nix::unistd::mkfifo(&place.path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let nobody_writes = read(&place.path, &Snapshot::default());
    assert!(
        matches!(nobody_writes, Err(LocalDbError::NotFile { .. })),
        "and it does not wait for a writer"
    );
}

#[test]
fn damage_is_never_an_empty_table() {
    let truncated = Place::joined();
    truncated.damage(|bytes| bytes.truncate(bytes.len() - 4096));
    assert!(
        matches!(truncated.read(), Err(LocalDbError::Damaged { .. })),
        "{:?}",
        truncated.read()
    );
    let length = fs::metadata(&Place::joined().path).unwrap().len();
    for page in 0..usize::try_from(length / 4096).unwrap() {
        let place = Place::joined();
        place.damage(|bytes| bytes[page * 4096..][..4096].fill(0));
        match place.read() {
            // A page that is not looked at: an index, another table.
            Ok(database) => {
                assert_eq!(
                    (database.raft_nodes.len(), database.cluster_address.is_some()),
                    (2, true)
                )
            }
            Err(LocalDbError::Damaged { .. } | LocalDbError::NotDatabase { .. }) => {}
            Err(error) => panic!("page {page}: {error:?}"),
        }
    }
}

#[test]
fn a_writer_at_work() {
    let place = Place::joined();
    let writer = place.writer();
    writer.execute_batch("BEGIN IMMEDIATE; DELETE FROM raft_nodes").unwrap();
    assert_eq!(place.read().unwrap().raft_nodes.len(), 2, "before it commits");
    writer.execute_batch("COMMIT; BEGIN EXCLUSIVE").unwrap();
    assert!(matches!(place.read(), Err(LocalDbError::Locked { .. })));
    writer.execute_batch("COMMIT").unwrap();
    assert_eq!(place.read().unwrap().raft_nodes.len(), 0);
}

#[test]
fn a_transaction_that_a_crash_has_cut_off() {
    let place = Place::joined();
    let writer = place.writer();
    // Small enough a cache that pages reach the file before the commit.
    writer
        .execute_batch("PRAGMA cache_size = 1; BEGIN IMMEDIATE; DELETE FROM raft_nodes;")
        .unwrap();
    let filler = "INSERT INTO config (key, value) VALUES (hex(randomblob(100)), \
                  hex(randomblob(3000)))";
    for _ in 0..50 {
        writer.execute_batch(filler).unwrap();
    }
    let journal = beside(&place.path, "-journal");
    let crashed = Place::empty();
    fs::copy(&place.path, &crashed.path).unwrap();
    fs::copy(&journal, beside(&crashed.path, "-journal")).unwrap();
    assert!(matches!(crashed.read(), Err(LocalDbError::Unfinished { .. })), "{:?}", crashed.read());
    let repaired: u32 = crashed
        .writer()
        .query_row("SELECT count(*) FROM raft_nodes", [], |row| row.get(0))
        .unwrap();
    assert_eq!(
        (repaired, crashed.read().unwrap().raft_nodes.len()),
        (2, 2),
        "once a writer has opened it"
    );
}

#[test]
fn a_write_ahead_log() {
    let place = Place::joined();
    let writer = place.writer();
    writer.execute_batch("PRAGMA journal_mode = WAL; DELETE FROM raft_nodes WHERE id = 1").unwrap();
    assert_eq!(place.read().unwrap().raft_nodes.len(), 1, "what is only in the log is seen");
    let crashed = Place::empty();
    fs::copy(&place.path, &crashed.path).unwrap();
    fs::copy(beside(&place.path, "-wal"), beside(&crashed.path, "-wal")).unwrap();
    assert!(matches!(crashed.read(), Err(LocalDbError::Unfinished { .. })), "{:?}", crashed.read());
    drop(writer);
    assert_eq!(place.files().len(), 1, "the last writer removes the log");
    assert_eq!(place.read().unwrap().raft_nodes.len(), 1);
}

#[test]
fn links_are_followed_and_network_filesystems_are_not_touched() {
    let place = Place::joined();
    let link = place.directory.path().join("link");
    symlink(&place.path, &link).unwrap();
    assert_eq!(read(&link, &Snapshot::default()).unwrap().raft_nodes.len(), 2);
    let real = place.directory.path().canonicalize().unwrap();
    let table = format!(
        "27 1 254:0 / / rw - ext4 /dev/vda rw\n78 27 0:43 / {} rw - ceph m:/ \
         rw\n",
        real.display()
    );
    let snapshot = Snapshot::parse(table.as_bytes());
    assert!(matches!(read(&real.join("local.db"), &snapshot), Err(LocalDbError::OnNetwork { .. })));
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(&place.path, elsewhere.path().join("link")).unwrap();
    assert!(matches!(
        read(&elsewhere.path().join("link"), &snapshot),
        Err(LocalDbError::OnNetwork { .. })
    ));
}
