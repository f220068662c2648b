//! The near end of a guest's runner: commands go in, answers come out, several at a time.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

/// Beyond a command's own limit, for the answer to come.
const GRACE: Duration = Duration::from_secs(60);

/// Outcome of a command in the guest.
#[derive(Clone, Debug)]
pub struct Ended {
    /// 124: its limit came first.
    pub status: i64,
    /// Both streams.
    pub output: String,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<HashMap<u64, Sender<Ended>>>,
    /// The boot that the runner was last seen in, and the number of its starts.
    boot: Mutex<(String, u64)>,
    started: Condvar,
}

/// A connection to the runner of one guest.
#[derive(Debug)]
pub struct Runner {
    writer: Mutex<(UnixStream, u64)>,
    shared: Arc<Shared>,
}

impl Runner {
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connect to {}", socket.display()))?;
        let shared = Arc::new(Shared::default());
        let (reader, heard) = (BufReader::new(stream.try_clone()?), shared.clone());
        thread::Builder::new().name("runner".to_owned()).spawn(move || listen(reader, &heard))?;
        Ok(Self { writer: Mutex::new((stream, 0)), shared })
    }

    /// Starts a command; its end is received later.
    pub fn begin(&self, script: &str, limit: Duration) -> Result<Running> {
        let mut writer = lock(&self.writer);
        writer.1 += 1;
        let id = writer.1;
        let (sender, ended) = mpsc::channel();
        lock(&self.shared.waiting).insert(id, sender);
        let request = json!({"id": id, "script": script, "limit": limit.as_secs()});
        writeln!(writer.0, "{request}").context("hand a command to the guest")?;
        Ok(Running { ended, limit: limit + GRACE })
    }

    /// Number of runner starts in this guest, as far as they were heard.
    pub fn starts(&self) -> u64 {
        lock(&self.shared.boot).1
    }

    /// Waits until the runner has started more often than `before`.
    pub fn wait_started(&self, before: u64, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        let mut boot = lock(&self.shared.boot);
        while boot.1 <= before {
            let left = end.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "the guest did not come up within {} s", limit.as_secs());
            boot = self
                .shared
                .started
                .wait_timeout(boot, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(())
    }
}

/// A command that runs in the guest.
#[derive(Debug)]
pub struct Running {
    ended: Receiver<Ended>,
    limit: Duration,
}

impl Running {
    /// Waits for its end.
    pub fn end(self) -> Result<Ended> {
        match self.ended.recv_timeout(self.limit) {
            Ok(ended) => Ok(ended),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                bail!("the guest started anew, or its machine ended")
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("the guest did not answer within {} s", self.limit.as_secs())
            }
        }
    }
}

/// Hands each answer to the thread that waits for it. Ends with the machine.
fn listen(reader: BufReader<UnixStream>, shared: &Shared) {
    for line in reader.lines() {
        let Ok(line) = line else { break };
        // A guest that lost its power in the middle of a line leaves half of one.
        let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
        if let Some(boot) = message["up"].as_str() {
            lock(&shared.waiting).clear();
            let mut known = lock(&shared.boot);
            *known = (boot.to_owned(), known.1 + 1);
            shared.started.notify_all();
        } else if let Some(sender) =
            message["id"].as_u64().and_then(|id| lock(&shared.waiting).remove(&id))
        {
            let output = message["output"].as_str().unwrap_or_default().to_owned();
            // Nobody waits any more: the test has ended.
            let _ = sender.send(Ended { status: message["status"].as_i64().unwrap_or(-1), output });
        }
    }
    lock(&shared.waiting).clear();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
