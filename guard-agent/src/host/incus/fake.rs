//! A fake Incus for tests: a Unix socket in a temporary directory that speaks canned HTTP and
//! WebSocket, and the `/proc` and cgroup of its daemon. This process plays the daemon, so that the
//! socket is its own.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures_util::SinkExt as _;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use super::Options;

/// The fake daemon's behaviour on a question.
#[derive(Clone, Debug)]
pub(super) enum Behaviour {
    /// Status and body.
    Says(u16, String),
    Hangs,
    /// Closes in the middle of the body.
    BreaksOff,
    /// A body without an end.
    NeverEnds,
    /// Not HTTP.
    Babbles,
}

/// Channel for events to the client that follows them.
type Follower = Option<mpsc::Sender<Option<String>>>;

/// A node, its files and its daemon.
pub(super) struct Fake {
    pub directory: tempfile::TempDir,
    pub options: Options,
    answers: Arc<Mutex<BTreeMap<&'static str, Behaviour>>>,
    /// Connections that were made.
    pub connections: Arc<Mutex<usize>>,
    streams: Arc<watch::Sender<Follower>>,
    serving: JoinSet<()>,
}

pub(super) fn success(metadata: &str) -> Behaviour {
    let head = r#""type":"sync","status":"Success","status_code":200,"operation":"","error_code":0,"error":"""#;
    Behaviour::Says(200, format!(r#"{{{head},"metadata":{metadata}}}"#))
}

pub(super) fn failure(code: u16, text: &str) -> Behaviour {
    let head = r#""type":"error","status":"","status_code":0,"operation":"""#;
    Behaviour::Says(
        code,
        format!(r#"{{{head},"error_code":{code},"error":"{text}","metadata":null}}"#),
    )
}

pub(super) const OPERATIONS: &str = "/1.0/operations";
pub(super) const MEMBERS: &str = "/1.0/cluster/members";

impl Fake {
    /// A member of a cluster whose daemon does not run.
    pub(super) fn member() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("incus/database")).unwrap();
        let database = rusqlite::Connection::open(root.join("incus/database/local.db")).unwrap();
        let sql = "CREATE TABLE config (id INTEGER PRIMARY KEY, key TEXT UNIQUE, value TEXT);
            CREATE TABLE raft_nodes (id INTEGER PRIMARY KEY, address TEXT, role INTEGER, name TEXT);
            INSERT INTO config (key, value) VALUES ('cluster.https_address', '10.0.2.15:8443');
            INSERT INTO raft_nodes (address, name) VALUES ('10.0.2.15:8443', 'node2');";
        database.execute_batch(sql).unwrap();
        let proc_root = root.join("proc");
        fs::create_dir_all(proc_root.join("1/ns")).unwrap();
        fs::create_dir_all(proc_root.join("sys/kernel/random")).unwrap();
        fs::write(proc_root.join("sys/kernel/random/boot_id"), "b00t\n").unwrap();
        fs::write(proc_root.join("uptime"), "100.50 1.00\n").unwrap();
        fs::write(proc_root.join("1/stat"), stat(1, "systemd", 0, 1)).unwrap();
        symlink("mnt:[1]", proc_root.join("1/ns/mnt")).unwrap();
        let table = format!("30 1 0:30 / {}/cgroup rw - cgroup2 cgroup2 rw\n", root.display());
        fs::write(proc_root.join("1/mountinfo"), table).unwrap();
        let options = Options { proc_root, ..Options::new(&root.join("incus"), "incus.service") };
        let answers = BTreeMap::from([
            (OPERATIONS, success("{}")),
            (
                MEMBERS,
                success(
                    r#"[{"server_name":"node2","url":"https://10.0.2.15:8443","status":"Online"}]"#,
                ),
            ),
        ]);
        Self {
            directory,
            options,
            answers: Arc::new(Mutex::new(answers)),
            connections: Arc::default(),
            streams: Arc::new(watch::Sender::new(None)),
            serving: JoinSet::new(),
        }
    }

    /// Path on which its daemon listens.
    pub(super) fn socket(&self) -> PathBuf {
        self.options.directory.join("unix.socket")
    }

    pub(super) fn path(&self, pid: u32) -> PathBuf {
        self.options.proc_root.join(pid.to_string())
    }

    /// A process that runs the daemon's executable, started at second 50.
    pub(super) fn process(&self, pid: u32, parent: u32, arguments: &[&str]) {
        let path = self.path(pid);
        fs::create_dir_all(path.join("ns")).unwrap();
        fs::create_dir_all(path.join("fd")).unwrap();
        fs::create_dir_all(path.join("net")).unwrap();
        fs::write(path.join("stat"), stat(pid, "incusd", parent, 5_000 + u64::from(pid % 100)))
            .unwrap();
        let cmdline: String = arguments.iter().map(|word| format!("{word}\0")).collect();
        fs::write(path.join("cmdline"), cmdline).unwrap();
        fs::write(
            path.join("environ"),
            format!("INCUS_DIR={}\0", self.options.directory.display()),
        )
        .unwrap();
        fs::write(path.join("net/unix"), "").unwrap();
        symlink("mnt:[1]", path.join("ns/mnt")).unwrap();
    }

    pub(super) fn cgroup(&self, processes: &[u32]) {
        let path = self.cgroup_path();
        fs::create_dir_all(&path).unwrap();
        let text: String = processes.iter().map(|pid| format!("{pid}\n")).collect();
        fs::write(path.join("cgroup.procs"), text).unwrap();
    }

    pub(super) fn cgroup_path(&self) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join("cgroup/system.slice/incus.service")
    }

    /// Process `pid` holds the listening socket.
    pub(super) fn listens(&self, pid: u32) {
        let socket = self.socket();
        let socket = socket.display();
        let line = format!("0000000000000000: 00000002 00000000 00010000 0001 01 777 {socket}\n");
        fs::write(self.path(pid).join("net/unix"), line).unwrap();
        symlink("socket:[777]", self.path(pid).join("fd/5")).unwrap();
    }

    /// Opens the socket, as systemd does: this alone is no running daemon.
    pub(super) fn open_socket(&mut self) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let (answers, connections, streams) =
            (Arc::clone(&self.answers), Arc::clone(&self.connections), Arc::clone(&self.streams));
        self.serving.spawn(async move {
            let mut clients = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                *connections.lock().unwrap() += 1;
                clients.spawn(serve(stream, Arc::clone(&answers), Arc::clone(&streams)));
            }
        });
    }

    /// The daemon runs and serves.
    pub(super) fn start(&mut self) {
        let pid = std::process::id();
        self.process(pid, 1, &["/usr/libexec/incus/incusd", "--group", "incus-admin"]);
        self.listens(pid);
        self.cgroup(&[pid]);
        if !self.socket().exists() {
            self.open_socket();
        }
    }

    /// The daemon's process ends; the socket stays, as systemd's.
    pub(super) fn stop(&self) {
        fs::remove_dir_all(self.path(std::process::id())).unwrap();
        fs::remove_dir_all(self.cgroup_path()).unwrap();
        self.streams.send_replace(None);
    }

    pub(super) fn answer(&self, path: &'static str, behaviour: Behaviour) {
        self.answers.lock().unwrap().insert(path, behaviour);
    }

    /// It is in no cluster any more, or not yet.
    pub(super) fn leave_cluster(&self) {
        let writer = rusqlite::Connection::open(self.options.local_db()).unwrap();
        writer.execute_batch("DELETE FROM raft_nodes").unwrap();
    }

    /// Sends an event as soon as somebody follows; `None` ends the stream.
    pub(super) async fn event(&self, frame: Option<String>) {
        let ends = frame.is_none();
        let follower = self.streams.subscribe().wait_for(Option::is_some).await.unwrap().clone();
        follower.expect("it was waited for").send(frame).await.unwrap();
        if ends {
            self.streams.send_replace(None);
        }
    }
}

fn stat(pid: u32, name: &str, parent: u32, start: u64) -> String {
    format!("{pid} ({name}) S {parent} {}{start} 0 0\n", "0 ".repeat(17))
}

async fn serve(
    mut stream: UnixStream,
    answers: Arc<Mutex<BTreeMap<&'static str, Behaviour>>>,
    streams: Arc<watch::Sender<Follower>>,
) {
    let path = peek_path(&stream).await;
    if path == "/1.0/events" {
        return serve_events(stream, streams).await;
    }
    let mut request = [0; 4096];
    let length = stream.read(&mut request).await.unwrap_or_default();
    let is_member = String::from_utf8_lossy(&request[..length]).contains("incus-cluster-notifier");
    let behaviour = if path == OPERATIONS && !is_member {
        // A client that does not speak as a member is told of the whole cluster: here, of a join on
        // another one.
        success(
            r#"{"running":[{"description":"Joining cluster","status_code":103,"location":"none"}]}"#,
        )
    } else {
        answers
            .lock()
            .unwrap()
            .get(path.as_str())
            .cloned()
            .unwrap_or_else(|| failure(404, "not found"))
    };
    let _ = match behaviour {
        Behaviour::Says(status, body) => {
            let text = format!(
                "HTTP/1.1 {status} X\r\nContent-Length: \
                 {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(text.as_bytes()).await
        }
        Behaviour::Hangs => return std::future::pending().await,
        Behaviour::BreaksOff => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"type\":").await
        }
        Behaviour::NeverEnds => never_ends(&mut stream).await,
        Behaviour::Babbles => stream.write_all(b"\x16\x03\x01 no HTTP\r\n\r\n").await,
    };
}

async fn never_ends(stream: &mut UnixStream) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n").await?;
    loop {
        stream.write_all(&[b' '; 65_536]).await?;
    }
}

/// The path of the request, without its query; nothing is taken from the stream.
async fn peek_path(stream: &UnixStream) -> String {
    let mut bytes = [0; 1024];
    loop {
        stream.readable().await.unwrap();
        let peek = || {
            let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
            Ok(recv(stream.as_raw_fd(), &mut bytes, flags)?)
        };
        let Ok(count) = stream.try_io(Interest::READABLE, peek) else { continue };
        let text = String::from_utf8_lossy(&bytes[..count]);
        if count == 0 || text.contains("\r\n\r\n") {
            let target = text.split(' ').nth(1).unwrap_or_default();
            return target.split('?').next().unwrap_or_default().to_owned();
        }
        tokio::task::yield_now().await;
    }
}

async fn serve_events(stream: UnixStream, streams: Arc<watch::Sender<Follower>>) {
    let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
    let (sender, mut frames) = mpsc::channel(8);
    streams.send_replace(Some(sender));
    while let Some(Some(frame)) = frames.recv().await {
        socket.send(Message::text(frame)).await.unwrap();
    }
}

/// The node's directory, as observations name it.
pub(super) fn directory(fake: &Fake) -> &Path {
    &fake.options.directory
}
