//! The agent's side of the control socket: accepts connections and passes requests to the daemon.
//!
//! It holds no state of the barrier. A client costs at most one bounded connection: lines,
//! connections, waiting and searches are limited, and root has connections of its own.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::task::JoinSet;

use super::connection::{self, Connection};
use super::shared::{Command, ServerOptions, Shared};
use super::socket::{self, Bound, SocketError};
use crate::model::control::refusal::Refusal;

/// Pause after `accept` has failed (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Longest time after the shutdown for requests that are being answered.
const GRACE: Duration = Duration::from_secs(1);
/// Searches of the audit log at the same time.
const SEARCHES: usize = 2;

/// The bound control socket.
#[derive(Debug)]
pub struct Server {
    bound: Bound,
    options: ServerOptions,
}

impl Server {
    /// Puts the socket in its place. Clients wait until [`run`](Self::run).
    pub fn bind(options: ServerOptions) -> Result<Self, SocketError> {
        Ok(Self { bound: socket::bind(&options.run_dir, options.group)?, options })
    }

    /// Serves until `shutdown`. Requests go to `commands`; each line sent to `events` (a record of
    /// the audit log without its line feed) goes to all followers. The socket is removed at the
    /// end.
    pub async fn run(
        self,
        commands: mpsc::Sender<Command>,
        events: broadcast::Sender<Arc<str>>,
        shutdown: impl Future<Output = ()>,
    ) -> std::io::Result<()> {
        let listener = UnixListener::from_std(self.bound.listener.try_clone()?)?;
        let (close, closing) = watch::channel(false);
        let shared = Arc::new(Shared {
            commands,
            events,
            searches: Semaphore::new(SEARCHES),
            closing,
            others: Arc::new(Semaphore::new(self.options.connections)),
            root: Arc::new(Semaphore::new(self.options.root_connections)),
            options: self.options,
        });
        let mut tasks = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                accepted = listener.accept() => accept(accepted, &shared, &mut tasks).await,
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => note_panic(ended),
            }
        }
        drop((listener, self.bound));
        // Nobody listens if no connection is open: that is no failure.
        let _ = close.send(true);
        let drained = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, drained).await.is_err() {
            tasks.shutdown().await;
        }
        Ok(())
    }
}

async fn accept<A>(
    accepted: std::io::Result<(UnixStream, A)>,
    shared: &Arc<Shared>,
    tasks: &mut JoinSet<()>,
) {
    let stream = match accepted {
        Ok((stream, _)) => stream,
        Err(error) => {
            tracing::warn!(%error, "control socket: accept failed");
            return tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    };
    let Ok(credentials) = stream.peer_cred() else { return };
    let (slots, limit) = match credentials.uid() {
        0 => (&shared.root, shared.options.root_connections),
        _ => (&shared.others, shared.options.connections),
    };
    match Arc::clone(slots).try_acquire_owned() {
        Ok(slot) => {
            let shared = Arc::clone(shared);
            tasks.spawn(async move {
                Connection::open(stream, &credentials, shared).await.serve().await;
                drop(slot);
            });
        }
        Err(_) => connection::turn_away(&stream, Refusal::TooManyConnections { limit }),
    }
}

/// A connection's panic ends that connection only.
fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "control socket: a connection ended abnormally");
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
