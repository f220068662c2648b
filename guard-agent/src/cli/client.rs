//! `guardctl`'s side of the control socket: blocking, with time-outs.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::sockopt::{PeerCredentials, SendTimeout};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket,
};
use nix::sys::time::TimeVal;

use crate::host::paths::SOCKET_NAME;
use crate::model::control::protocol::{Reply, Request, Response};
use crate::model::control::refusal::RefusalReport;
use crate::model::exit::Exit;

/// The usual limit for an answer: longer than the agent's own.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);
/// Bytes of one answer at most.
const ANSWER_LIMIT: u64 = 64 * 1024 * 1024;

/// Why there is no answer, or no granted one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the agent cannot be reached on {path}")]
    Unreachable { path: PathBuf, source: io::Error },
    #[error("no permission to talk to the agent on {path}")]
    Permission { path: PathBuf, source: io::Error },
    #[error("the connection to the agent broke")]
    Broken { source: io::Error },
    #[error("the agent has closed the connection")]
    Closed,
    #[error("the agent answered with something else than this protocol")]
    Answer { source: serde_json::Error },
    #[error("the agent answered `{request}` with another answer's content")]
    OtherAnswer { request: &'static str },
    #[error("refused ({}): {}", .0.code, .0.message)]
    Refused(RefusalReport),
}

impl ClientError {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Unreachable { .. }
            | Self::Permission { .. }
            | Self::Broken { .. }
            | Self::Closed => Exit::Unreachable,
            Self::Answer { .. } | Self::OtherAnswer { .. } => Exit::Failure,
            Self::Refused(_) => Exit::Refused,
        }
    }

    /// The advice to the operator.
    pub fn fix(&self) -> String {
        match self {
            Self::Unreachable { .. } => {
                "is it running? systemctl status guard-agent (another --run-dir?)".to_owned()
            }
            Self::Permission { .. } => {
                "run it as root, or as a member of the group `guard`".to_owned()
            }
            Self::Broken { .. } | Self::Closed => {
                "systemctl status guard-agent; journalctl -u guard-agent".to_owned()
            }
            Self::Answer { .. } | Self::OtherAnswer { .. } => {
                "use the guardctl that came with the running agent".to_owned()
            }
            Self::Refused(refusal) => refusal.fix.clone(),
        }
    }
}

/// A connection to the agent.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the agent that has its socket in `run_dir`. Connecting, and each wait after it,
    /// has the limit.
    pub fn connect(run_dir: &Path, limit: Duration) -> Result<Self, ClientError> {
        let path = run_dir.join(SOCKET_NAME);
        let stream = dial(&path, limit).map_err(|source| match source.kind() {
            ErrorKind::PermissionDenied => ClientError::Permission { path, source },
            ErrorKind::WouldBlock => ClientError::Unreachable { path, source: no_answer() },
            _ => ClientError::Unreachable { path, source },
        })?;
        let client = Self { stream: BufReader::new(stream) };
        client.wait_at_most(Some(limit))?;
        Ok(client)
    }

    /// The process that listens, if this namespace has a number for it.
    pub fn agent_pid(&self) -> Option<u32> {
        let peer = getsockopt(self.stream.get_ref(), PeerCredentials).ok()?;
        u32::try_from(peer.pid()).ok().filter(|pid| *pid > 0)
    }

    /// Gives each wait another limit; none: for following.
    pub fn wait_at_most(&self, limit: Option<Duration>) -> Result<(), ClientError> {
        let stream = self.stream.get_ref();
        let limited = stream.set_read_timeout(limit).and_then(|()| stream.set_write_timeout(limit));
        limited.map_err(broken)
    }

    /// Asks, and waits for the answer.
    pub fn request(&mut self, request: &Request) -> Result<Reply, ClientError> {
        // An agent that turns a connection away answers first and closes: that answer is read
        // below.
        let sent = self.stream.get_mut().write_all(request.to_line().as_bytes());
        let line = match (self.line(), sent) {
            (Ok(Some(line)), _) => line,
            (Err(error), Ok(())) => return Err(error),
            (Ok(None), Ok(())) => return Err(broken(ErrorKind::UnexpectedEof.into())),
            (_, Err(error)) => return Err(broken(error)),
        };
        match serde_json::from_str(&line).map_err(|source| ClientError::Answer { source })? {
            Response::Ok(reply) => Ok(reply),
            Response::Refused(refusal) => Err(ClientError::Refused(refusal)),
        }
    }

    /// The next line without its line feed; `None` when the agent has closed.
    pub fn line(&mut self) -> Result<Option<String>, ClientError> {
        let mut line = String::new();
        let mut limited = (&mut self.stream).take(ANSWER_LIMIT);
        limited.read_line(&mut line).map_err(broken)?;
        match line.pop() {
            None => Ok(None),
            Some('\n') => Ok(Some(line)),
            Some(_) => Err(broken(ErrorKind::UnexpectedEof.into())),
        }
    }
}

/// As [`UnixStream::connect`], which has no limit: it waits as long as the queue of a stopped agent
/// is full.
fn dial(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let (seconds, microseconds) = (limit.as_secs(), limit.subsec_micros());
    let seconds = seconds.try_into().unwrap_or(i64::MAX);
    setsockopt(&socket, SendTimeout, &TimeVal::new(seconds, microseconds.into()))?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

fn no_answer() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "no answer in time")
}

fn broken(source: io::Error) -> ClientError {
    let source = match source.kind() {
        ErrorKind::WouldBlock => no_answer(),
        _ => source,
    };
    ClientError::Broken { source }
}
