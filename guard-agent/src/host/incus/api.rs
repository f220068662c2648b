//! Asks the daemon over its Unix socket: HTTP/1, a connection for each question, every question
//! under one time-out, the answer bounded.
//!
//! The caller has made sure that the daemon runs (see the module's head). A second check stands
//! behind that: the process at the other end must be one of the daemon's, or PID 1, which opens the
//! socket where it is activated.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::model::incus::answers::Answer;

/// User agent of Incus's members when they ask each other. The daemon answers such a request for
/// this server alone; else it asks every other member of the cluster, and writes a line into its
/// log for each that is offline. (Read in 6.0.4 and 7.3. The event stream takes it for a member's,
/// and looks for that one's certificate.)
const USER_AGENT: &str = "incus-cluster-notifier";
/// Of one answer.
const BODY_LIMIT: usize = 8 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, Error)]
pub(super) enum AskError {
    #[error("connect to {socket}")]
    Connect {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{socket} is served by process {pid}, which is not the daemon: is incus_socket right?")]
    Peer { socket: PathBuf, pid: i32 },
    #[error("ask {path}")]
    Http {
        path: &'static str,
        #[source]
        source: hyper::Error,
    },
    #[error("the answer to {path} is longer than {BODY_LIMIT} bytes, or broke off")]
    Body {
        path: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("no answer to {path} within {} s", .after.as_secs_f32())]
    TimedOut { path: &'static str, after: Duration },
}

/// The daemon's socket.
#[derive(Clone, Debug)]
pub(super) struct Socket {
    pub path: PathBuf,
    /// Processes that may serve it, beside PID 1.
    pub processes: Vec<u32>,
    /// For each question.
    pub timeout: Duration,
}

impl Socket {
    /// Asks for a path.
    pub(super) async fn ask(&self, path: &'static str) -> Result<Answer, AskError> {
        let timed_out = |_| AskError::TimedOut { path, after: self.timeout };
        timeout(self.timeout, self.ask_unbounded(path)).await.map_err(timed_out)?
    }

    /// Connects, and checks the process at the other end.
    pub(super) async fn connect(&self) -> Result<UnixStream, AskError> {
        let failed = |source| AskError::Connect { socket: self.path.clone(), source };
        let stream = UnixStream::connect(&self.path).await.map_err(failed)?;
        let pid = stream.peer_cred().map_err(failed)?.pid().unwrap_or_default();
        if pid == 1 || u32::try_from(pid).is_ok_and(|pid| self.processes.contains(&pid)) {
            Ok(stream)
        } else {
            Err(AskError::Peer { socket: self.path.clone(), pid })
        }
    }

    async fn ask_unbounded(&self, path: &'static str) -> Result<Answer, AskError> {
        let failed = |source| AskError::Http { path, source };
        let stream = self.connect().await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        // Ends with this function.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = hyper::Uri::from_static(path);
        let headers = request.headers_mut();
        headers.insert(header::HOST, header::HeaderValue::from_static("incus"));
        headers.insert(header::USER_AGENT, header::HeaderValue::from_static(USER_AGENT));
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
        let body = body.map_err(|source| AskError::Body { path, source })?;
        Ok(Answer { status, body: body.to_bytes().to_vec() })
    }
}
