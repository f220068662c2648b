//! Watches the mount table: says when it changed, and reads it.
//!
//! The kernel signals a change as priority data on an open mountinfo file (proc_pid_mountinfo(5)).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::host::reactor;
use crate::model::mounts::Snapshot;

/// Bytes asked for at a time. The kernel gives about a page in any case.
const CHUNK: usize = 64 * 1024;

/// An open mount table.
#[derive(Debug)]
pub struct MountWatch {
    table: AsyncFd<File>,
}

impl MountWatch {
    /// Opens a table, `/proc/1/mountinfo` for the host's. Needs a tokio runtime with I/O.
    ///
    /// Changes count from here: open first, then read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let table = reactor::watch(File::open(path)?, Interest::PRIORITY)?;
        Ok(Self { table })
    }

    /// Reads the table as it is.
    pub fn read(&self) -> io::Result<Snapshot> {
        read(self.table.get_ref())
    }

    /// Waits for the next change: a change while the table is read afterwards is a change again.
    /// Cancel-safe: a change that was not delivered is delivered by the next call.
    pub async fn changed(&mut self) -> io::Result<()> {
        self.table.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}

/// Reads a mount table from its start to its end.
pub fn read(table: &File) -> io::Result<Snapshot> {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match table.read_at(&mut chunk, bytes.len() as u64) {
            Ok(0) => return Ok(Snapshot::parse(&bytes)),
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn reads_this_process_own_table() {
        let table = File::open("/proc/self/mountinfo").unwrap();
        let snapshot = read(&table).unwrap();
        assert!(snapshot.mount_of(Path::new("/proc/self")).is_some());
        assert_eq!(snapshot.problems(), []);
        assert_eq!(read(&table).unwrap().entries().len(), snapshot.entries().len());
    }

    #[tokio::test]
    async fn is_silent_while_nothing_changes() {
        let mut watch = MountWatch::open(Path::new("/proc/self/mountinfo")).unwrap();
        let change = tokio::time::timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(change.is_err() || !watch.read().unwrap().entries().is_empty());
    }
}
