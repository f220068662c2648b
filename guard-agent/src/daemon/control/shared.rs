//! State and types that the control socket's server shares with its connections.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Gid;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};

use super::access::{Access, Peer, reader_group};
use crate::model::control::protocol::{Reply, Request};
use crate::model::control::refusal::Refusal;

/// A request that its sender may make. The owner of the state answers it.
#[derive(Debug)]
pub struct Command {
    pub request: Request,
    pub peer: Peer,
    pub reply: oneshot::Sender<Result<Reply, Refusal>>,
}

/// Options of the control socket.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    pub run_dir: PathBuf,
    /// The audit log, for `events`.
    pub audit: PathBuf,
    /// Group of the socket.
    pub group: Option<Gid>,
    /// The access of a peer. May block.
    pub access: fn(&Peer) -> Access,
    /// Connections of others than root, at the same time.
    pub connections: usize,
    /// Connections of root, at the same time.
    pub root_connections: usize,
    /// A connection that sends no whole request for so long is closed.
    pub idle: Duration,
    /// An answer that takes longer is given up.
    pub answer: Duration,
    /// A client that does not read for so long is cut off.
    pub write: Duration,
}

impl ServerOptions {
    /// The usual limits; readers are the members of the group `guard`.
    pub fn new(run_dir: PathBuf, audit: PathBuf) -> Self {
        Self {
            run_dir,
            audit,
            group: reader_group(),
            access: |peer| Access::of(peer, reader_group()),
            connections: 48,
            root_connections: 16,
            idle: Duration::from_secs(60),
            answer: Duration::from_secs(30),
            write: Duration::from_secs(10),
        }
    }
}

/// Shared by all connections.
#[derive(Debug)]
pub(super) struct Shared {
    pub options: ServerOptions,
    pub commands: mpsc::Sender<Command>,
    pub events: broadcast::Sender<Arc<str>>,
    pub searches: Semaphore,
    pub closing: watch::Receiver<bool>,
    pub others: Arc<Semaphore>,
    pub root: Arc<Semaphore>,
}
