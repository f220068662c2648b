//! The server end to end, on a socket in a temporary directory, with a daemon that only answers.

use std::collections::BTreeMap;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::cli::client::ANSWER_TIMEOUT;
use crate::cli::client::{Client, ClientError};
use crate::daemon::control::access::Access;
use crate::host::audit_log::{AuditFile, AuditOptions};
use crate::host::paths::SOCKET_NAME;
use crate::model::audit::record::{AgentBody, AgentChange, Body, Origin};
use crate::model::control::protocol::{Reply, Request, Response};
use crate::model::exit::Exit;
use crate::model::time::BootOffset;

struct Fixture {
    directory: TempDir,
    events: broadcast::Sender<Arc<str>>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<std::io::Result<()>>,
}

impl Fixture {
    /// A server whose daemon says that no lease is running, and refuses everything else.
    fn start(adjust: impl FnOnce(&mut ServerOptions)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let audit = directory.path().join("audit.jsonl");
        let mut options = ServerOptions::new(directory.path().to_owned(), audit);
        options.group = None;
        options.access = |_| Access::Change;
        // Any user who runs the tests gets the same number of connections.
        adjust(&mut options);
        options.root_connections = options.connections;
        let server = Server::bind(options).unwrap();
        let (commands, mut inbox) = mpsc::channel::<Command>(4);
        tokio::spawn(async move {
            while let Some(command) = inbox.recv().await {
                let answer = match command.request {
                    Request::Leases => Ok(Reply::Leases(Vec::new())),
                    _ => Err(Refusal::ReasonMissing),
                };
                let _ = command.reply.send(answer);
            }
        });
        let (events, _) = broadcast::channel(4);
        let (stop, stopped) = oneshot::channel();
        let followed = events.clone();
        let server = tokio::spawn(server.run(commands, followed, async { drop(stopped.await) }));
        Self { directory, events, stop: Some(stop), server }
    }

    async fn connect(&self) -> Wire {
        let stream = UnixStream::connect(self.directory.path().join(SOCKET_NAME)).await.unwrap();
        Wire(BufReader::new(stream))
    }

    fn audit(&self) -> AuditFile {
        let origin = Origin { host: "h".to_owned(), boot_id: "b".to_owned() };
        AuditFile::open(&self.directory.path().join("audit.jsonl"), origin, AuditOptions::default())
            .unwrap()
    }
}

fn append(audit: &mut AuditFile) -> Arc<str> {
    let (version, build) = (String::new(), String::new());
    let body =
        AgentBody { change: AgentChange::Started, version, build, pid: 1, previous_build: None };
    let stamp = BootOffset::between(Duration::from_secs(1), Duration::ZERO).stamp(1);
    audit.append(stamp, Body::Agent(body)).line
}

struct Wire(BufReader<UnixStream>);

impl Wire {
    async fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).await.unwrap();
    }

    /// The next line; empty when the server has closed.
    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        line
    }

    async fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\n").as_bytes()).await;
        self.line().await
    }

    async fn refusal(&mut self, line: &str) -> String {
        match serde_json::from_str(&self.ask(line).await).unwrap() {
            Response::Refused(refusal) => refusal.code,
            Response::Ok(reply) => panic!("granted: {reply:?}"),
        }
    }

    fn sequence(line: &str) -> u64 {
        let fields: BTreeMap<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        fields["sequence"].as_u64().unwrap()
    }
}

const LEASES: &str = r#"{"protocol":1,"request":"leases"}"#;
const NO_LEASES: &str = "{\"ok\":{\"leases\":[]}}\n";

#[tokio::test]
async fn requests_are_answered_one_after_another() {
    let fixture = Fixture::start(|_| {});
    let mut wire = fixture.connect().await;
    assert_eq!(wire.ask(LEASES).await, NO_LEASES);
    assert_eq!(wire.refusal(r#"{"protocol":1,"request":"policy-reload"}"#).await, "reason-missing");
    assert_eq!(wire.ask(LEASES).await, NO_LEASES);
}

#[tokio::test]
async fn nonsense_is_refused_and_the_connection_goes_on() {
    let fixture = Fixture::start(|_| {});
    let mut wire = fixture.connect().await;
    for (nonsense, code) in [
        ("", "malformed"),
        ("}{", "malformed"),
        ("\u{0}\u{7f}", "malformed"),
        ("[[[[", "malformed"),
        (r#"{"protocol":1,"request":7}"#, "malformed"),
        (r#"{"request":"leases"}"#, "protocol"),
    ] {
        assert_eq!(wire.refusal(nonsense).await, code);
    }
    assert_eq!(wire.ask(LEASES).await, NO_LEASES);
}

#[tokio::test]
async fn an_endless_line_ends_that_connection_only() {
    let fixture = Fixture::start(|_| {});
    let mut wire = fixture.connect().await;
    wire.send(&vec![b'x'; crate::model::control::protocol::LINE_LIMIT + 1]).await;
    assert!(wire.line().await.contains("line-too-long"));
    let mut rest = Vec::new();
    // Closing with unread bytes may reset the connection.
    let _ = wire.0.read_to_end(&mut rest).await;
    assert_eq!(rest, b"");
    assert_eq!(fixture.connect().await.ask(LEASES).await, NO_LEASES);
}

#[tokio::test]
async fn a_reader_may_read_and_not_change_and_others_may_nothing() {
    let fixture = Fixture::start(|options| options.access = |_| Access::Read);
    let mut wire = fixture.connect().await;
    assert_eq!(wire.ask(LEASES).await, NO_LEASES);
    assert_eq!(wire.refusal(r#"{"protocol":1,"request":"seal","pool":"a"}"#).await, "not-root");
    let fixture = Fixture::start(|options| options.access = |_| Access::Nothing);
    let mut wire = fixture.connect().await;
    assert_eq!(wire.refusal(LEASES).await, "not-reader");
    assert_eq!(
        wire.refusal(r#"{"protocol":1,"request":"events","history":5}"#).await,
        "not-reader"
    );
}

#[tokio::test]
async fn one_connection_too_many_is_turned_away_until_another_ends() {
    let fixture = Fixture::start(|options| options.connections = 1);
    let mut first = fixture.connect().await;
    assert_eq!(first.ask(LEASES).await, NO_LEASES);
    assert!(fixture.connect().await.line().await.contains("too-many-connections"));
    drop(first);
    // The server notices the end of the first one at its own time.
    loop {
        let mut next = fixture.connect().await;
        let _ = next.0.get_mut().write_all(format!("{LEASES}\n").as_bytes()).await;
        let mut line = String::new();
        if next.0.read_line(&mut line).await.is_ok() && line == NO_LEASES {
            break;
        }
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let fixture = Fixture::start(|options| options.idle = Duration::from_millis(10));
    let mut wire = fixture.connect().await;
    // Half a request is none. The server may be faster than this write and than this read.
    let _ = wire.0.get_mut().write_all(b"{\"protocol\":1,").await;
    let mut line = String::new();
    let _ = wire.0.read_line(&mut line).await;
    assert_eq!(line, "");
}

#[tokio::test]
async fn events_come_from_history_then_live_and_none_twice() {
    let fixture = Fixture::start(|_| {});
    let mut audit = fixture.audit();
    let lines: Vec<Arc<str>> = (0..3).map(|_| append(&mut audit)).collect();
    let mut wire = fixture.connect().await;
    let reply = wire.ask(r#"{"protocol":1,"request":"events","follow":true,"history":2}"#).await;
    assert_eq!(reply, "{\"ok\":{\"events\":{\"lines\":2,\"follow\":true}}}\n");
    assert_eq!([Wire::sequence(&wire.line().await), Wire::sequence(&wire.line().await)], [2, 3]);
    // A line that was in the history already, as it comes when it was written just then.
    fixture.events.send(Arc::clone(&lines[2])).unwrap();
    fixture.events.send(append(&mut audit)).unwrap();
    assert_eq!(Wire::sequence(&wire.line().await), 4);
}

#[tokio::test]
async fn a_slow_follower_is_told_how_much_it_missed() {
    let fixture = Fixture::start(|_| {});
    let mut audit = fixture.audit();
    let mut wire = fixture.connect().await;
    wire.ask(r#"{"protocol":1,"request":"events","follow":true}"#).await;
    // More than the channel holds, without letting the server's task run in between.
    for _ in 0..6 {
        fixture.events.send(append(&mut audit)).unwrap();
    }
    assert_eq!(wire.line().await, "{\"lagged\":2}\n");
    assert_eq!(Wire::sequence(&wire.line().await), 3);
}

#[tokio::test]
async fn the_socket_goes_away_and_followers_are_let_go() {
    let mut fixture = Fixture::start(|_| {});
    let mut wire = fixture.connect().await;
    wire.ask(r#"{"protocol":1,"request":"events","follow":true}"#).await;
    fixture.stop.take().unwrap().send(()).unwrap();
    assert_eq!(wire.line().await, "");
    fixture.server.await.unwrap().unwrap();
    let error = Client::connect(fixture.directory.path(), ANSWER_TIMEOUT).unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }));
    assert_eq!(error.exit(), Exit::Unreachable);
}

#[tokio::test]
async fn the_blocking_client_speaks_with_it() {
    let fixture = Fixture::start(|_| {});
    append(&mut fixture.audit());
    let run_dir = fixture.directory.path().to_owned();
    let client = tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(&run_dir, ANSWER_TIMEOUT).unwrap();
        assert_eq!(client.request(&Request::Leases).unwrap(), Reply::Leases(Vec::new()));
        let refused = client.request(&Request::Seal { pool: "a".to_owned() }).unwrap_err();
        assert_eq!(refused.exit(), Exit::Refused);
        assert_eq!(refused.to_string(), "refused (reason-missing): a lease needs a reason");
        let events = Request::Events { follow: false, history: 9, filter: Default::default() };
        assert_eq!(client.request(&events).unwrap(), Reply::Events { lines: 1, follow: false });
        assert_eq!(Wire::sequence(&client.line().unwrap().unwrap()), 1);
        assert_eq!(client.request(&Request::Leases).unwrap(), Reply::Leases(Vec::new()));
    });
    client.await.unwrap();
}
