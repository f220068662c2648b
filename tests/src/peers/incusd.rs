//! The socket of an Incus daemon, in small: gives the answers that a test has laid down, and sends
//! a test's events to all followers. Its orders come line by line on standard input; each is
//! confirmed with a line.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, Cursor, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

const EVENTS: &str = "/1.0/events";
/// Longest wait of an event for a follower.
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers by path; `null` lets the asker wait for ever.
type Answers = BTreeMap<String, Value>;

#[derive(Default)]
struct Daemon {
    answers: Mutex<Answers>,
    followers: Mutex<Vec<WebSocket<Replayed>>>,
    followed: Condvar,
}

/// Serves until standard input ends. The first line holds the first answers: before it nothing
/// listens.
pub fn serve(socket: &Path) -> Result<()> {
    let daemon = Arc::new(Daemon::default());
    let mut orders = io::stdin().lock().lines();
    daemon.take(&orders.next().context("no first order")??)?;
    let _ = fs::remove_file(socket);
    let listener =
        UnixListener::bind(socket).with_context(|| format!("bind {}", socket.display()))?;
    let accepting = Arc::clone(&daemon);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let daemon = Arc::clone(&accepting);
            thread::spawn(move || daemon.serve(stream));
        }
    });
    confirm()?;
    for order in orders {
        daemon.take(&order?)?;
        confirm()?;
    }
    Ok(())
}

fn confirm() -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(b"done\n")?;
    out.flush()
}

fn locked<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>> {
    mutex.lock().map_err(|_| anyhow!("a thread has panicked"))
}

impl Daemon {
    fn take(&self, order: &str) -> Result<()> {
        let mut order: Value =
            serde_json::from_str(order).with_context(|| format!("parse {order}"))?;
        if let Value::Object(answers) = order["answers"].take() {
            *locked(&self.answers)? = answers.into_iter().collect();
        }
        match order["event"].take() {
            Value::Null => Ok(()),
            event => self.send(&event.to_string()),
        }
    }

    /// Sends an event to all followers, and waits for the first one.
    fn send(&self, event: &str) -> Result<()> {
        let mut followers = locked(&self.followers)?;
        loop {
            let mut reached = Vec::new();
            for mut follower in followers.drain(..) {
                if follower.send(Message::text(event)).is_ok() {
                    reached.push(follower);
                }
            }
            *followers = reached;
            if !followers.is_empty() {
                return Ok(());
            }
            let (guard, waited) = self
                .followed
                .wait_timeout(followers, PATIENCE)
                .map_err(|_| anyhow!("a thread has panicked"))?;
            followers = guard;
            if waited.timed_out() {
                bail!("nobody follows the events");
            }
        }
    }

    fn serve(&self, stream: UnixStream) {
        // The client may go at any time.
        let _ = self.answer(stream);
    }

    fn answer(&self, mut stream: UnixStream) -> Result<()> {
        let head = read_head(&mut stream)?;
        let text = String::from_utf8_lossy(&head).into_owned();
        let target = text.split(' ').nth(1).unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default();
        let answer = locked(&self.answers)?.get(path).cloned();
        match answer {
            Some(Value::Null) => loop {
                thread::park();
            },
            Some(answer) => respond(&mut stream, &answer),
            None if path == EVENTS => {
                let replayed = Replayed { head: Cursor::new(head), stream };
                let follower = tungstenite::accept(replayed).map_err(|error| anyhow!("{error}"))?;
                locked(&self.followers)?.push(follower);
                self.followed.notify_all();
                Ok(())
            }
            None => respond(
                &mut stream,
                &json!({"type": "error", "error": "Not Found", "error_code": 404}),
            ),
        }
    }
}

fn respond(stream: &mut UnixStream, answer: &Value) -> Result<()> {
    let status = match answer["error_code"].as_u64() {
        Some(0) | None => 200,
        Some(code) => code,
    };
    let body = answer.to_string();
    write!(
        stream,
        "HTTP/1.1 {status} Fake\r\nContent-Type: application/json\r\nContent-Length: \
         {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(())
}

/// A request's lines up to the empty one.
fn read_head(stream: &mut UnixStream) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 16 * 1024 || stream.read(&mut byte)? == 0 {
            bail!("no request");
        }
        head.push(byte[0]);
    }
    Ok(head)
}

/// A stream of which something was read already, which is read again first.
#[derive(Debug)]
struct Replayed {
    head: Cursor<Vec<u8>>,
    stream: UnixStream,
}

impl Read for Replayed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.head.read(buffer)? {
            0 => self.stream.read(buffer),
            read => Ok(read),
        }
    }
}

impl Write for Replayed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
