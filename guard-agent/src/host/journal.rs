//! The agent's log in journald's own protocol: priorities, and every value as a field of its own.
//!
//! Never waits. A journald that is stopped or overloaded leaves the socket full; lines that are
//! lost then are counted, and the count is told with the next line that gets through.
//! (tracing-journald and libsystemd send on a blocking socket, which would stop the one thread that
//! owns the agent's state.) Pure but for the socket.

use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::stat::fstat;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

const SOCKET: &str = "/run/systemd/journal/socket";
/// In bytes. With this and the next limit a datagram stays below the socket's buffer (208 KiB by
/// default), beyond which it would not be sent at all.
const LONGEST_VALUE: usize = 16 * 1024;
const MOST_FIELDS: usize = 10;

/// Sends each event to journald.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    identifier: &'static str,
    /// The process on whose behalf this one logs: its unit shows the lines too.
    object: Option<u32>,
    lost: AtomicU64,
}

impl Journal {
    /// If standard error is the journal's stream: systemd says in `JOURNAL_STREAM` which one it is.
    /// With a log of its own (`StandardError=file:`), or in a terminal, it is not.
    pub(super) fn of_standard_error(identifier: &'static str, object: Option<u32>) -> Option<Self> {
        let stream = std::env::var("JOURNAL_STREAM").ok()?;
        let stat = fstat(io::stderr()).ok()?;
        if stream != format!("{}:{}", stat.st_dev, stat.st_ino) {
            return None;
        }
        Self::open(Path::new(SOCKET), identifier, object).ok()
    }

    fn open(path: &Path, identifier: &'static str, object: Option<u32>) -> io::Result<Self> {
        // Without journald's socket the log goes to standard error.
        std::fs::metadata(path)?;
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path: path.to_owned(), identifier, object, lost: AtomicU64::new(0) })
    }

    fn send(&self, entry: &Entry) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let mut notice = Entry::new(Level::WARN);
            let _ = write!(
                notice.message,
                "{lost} lines of the log are lost: journald did not take them"
            );
            if self.try_send(&notice).is_err() {
                self.lost.fetch_add(lost + 1, Ordering::Relaxed);
                return;
            }
        }
        if self.try_send(entry).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn try_send(&self, entry: &Entry) -> io::Result<()> {
        let bytes = entry.encode(self.identifier, self.object);
        self.socket.send_to(&bytes, &self.path).map(drop)
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::new(*event.metadata().level());
        event.record(&mut entry);
        self.send(&entry);
    }
}

/// One line of the log.
#[derive(Debug)]
struct Entry {
    priority: u8,
    message: String,
    /// Names as in the program, and values.
    fields: Vec<(&'static str, String)>,
}

impl Entry {
    fn new(level: Level) -> Self {
        // As sd-daemon(3) has them; `journalctl -p err` shows failures, `-p notice` nothing of the
        // everyday.
        let priority = match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        Self { priority, message: String::new(), fields: Vec::new() }
    }

    fn field(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            // Fields of the bridge from the crate `log`: its own places in the source.
            name if name.starts_with("log.") => {}
            name => self.fields.push((name, value)),
        }
    }

    /// The message shows the values too, for people: `journalctl` prints nothing else.
    fn encode(&self, identifier: &str, object: Option<u32>) -> Vec<u8> {
        let mut message = self.message.clone();
        for (name, value) in &self.fields {
            let _ = write!(message, " {name}={value}");
        }
        let mut bytes = Vec::with_capacity(512);
        put(&mut bytes, "PRIORITY", &self.priority.to_string());
        put(&mut bytes, "SYSLOG_IDENTIFIER", identifier);
        if let Some(object) = object {
            put(&mut bytes, "OBJECT_PID", &object.to_string());
        }
        put(&mut bytes, "MESSAGE", &message);
        for (name, value) in self.fields.iter().take(MOST_FIELDS) {
            put(&mut bytes, &format!("GUARD_{}", name.to_ascii_uppercase()), value);
        }
        bytes
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, format!("{value:?}"));
    }
}

/// `NAME=value`, or where the value has lines: the name, its length as 64 bits, and the value.
fn put(bytes: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value[..value.floor_char_boundary(LONGEST_VALUE)];
    let name = name.bytes().map(|byte| if byte.is_ascii_alphanumeric() { byte } else { b'_' });
    bytes.extend(name);
    if value.contains('\n') {
        bytes.push(b'\n');
        bytes.extend((value.len() as u64).to_le_bytes());
    } else {
        bytes.push(b'=');
    }
    bytes.extend(value.as_bytes());
    bytes.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn journald() -> (tempfile::TempDir, UnixDatagram, Journal) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        journald.set_nonblocking(true).unwrap();
        let journal = Journal::open(&path, "guard-agent", None).unwrap();
        (directory, journald, journal)
    }

    fn received(journald: &UnixDatagram) -> Option<String> {
        let mut buffer = vec![0; 300_000];
        let size = journald.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..size]).into_owned())
    }

    #[test]
    fn an_event_has_a_priority_a_message_and_its_values_as_fields() {
        let (_directory, journald, journal) = journald();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), || {
            tracing::error!(file = "/etc/x", count = 3, "policy rejected");
            tracing::info!("up");
        });
        let text = "PRIORITY=3\nSYSLOG_IDENTIFIER=guard-agent\nMESSAGE=policy rejected file=/etc/x \
                    count=3\nGUARD_FILE=/etc/x\nGUARD_COUNT=3\n";
        assert_eq!(received(&journald).as_deref(), Some(text));
        assert!(received(&journald).unwrap().starts_with("PRIORITY=6\n"));
    }

    #[test]
    fn a_value_with_lines_is_counted_and_a_long_one_is_cut() {
        let mut bytes = Vec::new();
        put(&mut bytes, "A.b", "x\ny");
        assert_eq!(bytes, b"A_b\n\x03\0\0\0\0\0\0\0x\ny\n");
        bytes.clear();
        put(&mut bytes, "A", &"ä".repeat(LONGEST_VALUE));
        assert!(bytes.len() <= LONGEST_VALUE + 3 && std::str::from_utf8(&bytes).is_ok());
    }

    /// A journald that is stopped (SIGSTOP) must not hold up the owner of the state.
    #[test]
    fn a_journald_that_does_not_read_is_not_waited_for_and_hears_what_it_missed() {
        let (_directory, journald, journal) = journald();
        let begun = Instant::now();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), || {
            (0..20_000).for_each(|number| tracing::info!(number, "line"));
            assert!(begun.elapsed() < Duration::from_secs(60));
            let taken = std::iter::from_fn(|| received(&journald)).count();
            assert!(taken < 20_000, "the queue never fills");
            tracing::info!("again");
            let notice = received(&journald).unwrap();
            assert!(
                notice.contains(&format!("MESSAGE={} lines of the log are lost", 20_000 - taken)),
                "{notice}"
            );
            assert!(received(&journald).unwrap().contains("MESSAGE=again\n"));
        });
    }
}
