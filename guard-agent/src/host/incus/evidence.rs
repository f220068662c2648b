//! One look at a node: process and `local.db`, then, only if the daemon runs and listens, its
//! answers. Every part has its own time-out and reports its own gaps.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::api::Socket;
use super::process::{self, Listener, Sighting};
use super::{Options, local_db};
use crate::host::mount_table;
use crate::host::process::ticks_per_second;
use crate::host::roots;
use crate::model::errors::chain;
use crate::model::incus::answers;
use crate::model::join::{Config, Daemon, Evidence, JoinOperation, Membership};
use crate::model::mounts::Snapshot;

/// `recursion=1` gives the objects, not their names.
const OPERATIONS: &str = "/1.0/operations?recursion=1&all-projects=true";
const MEMBERS: &str = "/1.0/cluster/members?recursion=1";

/// Time-outs of the parts of a look: files once, answers twice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// For reading files.
    pub files: Duration,
    /// For the daemon's answers.
    pub answers: Duration,
}

impl Limits {
    pub(super) const USUAL: Self =
        Self { files: Duration::from_secs(2), answers: Duration::from_secs(3) };

    /// A look within `total`.
    pub(super) fn within(total: Duration) -> Self {
        Self { files: total / 3, answers: total / 3 }
    }
}

/// Result of a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub evidence: Evidence,
    /// This server's name in its cluster, if anything says it.
    pub name: Option<String>,
    /// The daemon whose event stream may be followed, once it answers.
    pub served_by: Option<Served>,
}

/// A daemon's socket, and the processes that may serve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Served {
    pub socket: PathBuf,
    pub processes: Vec<u32>,
}

/// Looks at nodes. At most one reading of each kind hangs, however often it is asked.
#[derive(Clone, Debug)]
pub(super) struct EvidenceReader {
    options: Arc<Options>,
    limits: Limits,
    reading_processes: Arc<Semaphore>,
    reading_database: Arc<Semaphore>,
}

/// Looks once, within `total`: for the start, before anything is decided.
pub async fn observe_once(options: Options, total: Duration) -> Evidence {
    EvidenceReader::new(Arc::new(options), Limits::within(total)).observe(None).await.evidence
}

impl EvidenceReader {
    pub(super) fn new(options: Arc<Options>, limits: Limits) -> Self {
        let one = || Arc::new(Semaphore::new(1));
        Self { options, limits, reading_processes: one(), reading_database: one() }
    }

    /// The socket of those processes' daemon, with the limit on its answers.
    pub(super) fn socket(&self, served: Served) -> Socket {
        Socket { path: served.socket, processes: served.processes, timeout: self.limits.answers }
    }

    /// Looks at everything. Where `local.db` cannot be read now, this server's address is the one
    /// that was `known`.
    pub(super) async fn observe(&self, known: Option<&Config>) -> Seen {
        let (sighting, config) = tokio::join!(self.sighting(), self.config());
        let unasked = |why: Option<String>, sighting: Sighting| Seen {
            evidence: Evidence {
                config: config.clone(),
                daemon: sighting.daemon,
                operation: JoinOperation::Unknown,
                membership: why.map_or(Membership::NotAsked, |why| Membership::NoAnswer { why }),
                unanswered_seconds: 0,
                stream: None,
            },
            name: config.own_name(),
            served_by: None,
        };
        match (&sighting.daemon, &sighting.listener) {
            (Daemon::Running { incarnation, .. }, Listener::NotDaemon) => {
                let pid = incarnation.pid;
                let why = match &self.options.socket {
                    Some(socket) => format!(
                        "process {pid} does not listen on {}: it is starting or ending, or \
                         incus_socket is another",
                        socket.display()
                    ),
                    None => {
                        format!("process {pid} listens on no unix.socket: it is starting or ending")
                    }
                };
                unasked(Some(why), sighting)
            }
            (Daemon::Running { .. }, Listener::Daemon(socket)) => {
                let served =
                    Served { socket: socket.clone(), processes: sighting.processes.clone() };
                self.ask(served, sighting, config, known).await
            }
            (Daemon::Running { .. }, Listener::Unknown) => {
                unasked(Some("its sockets cannot be looked at".to_owned()), sighting)
            }
            (Daemon::Stopped | Daemon::Unknown, _) => unasked(None, sighting),
        }
    }

    async fn ask(
        &self,
        served: Served,
        sighting: Sighting,
        config: Config,
        known: Option<&Config>,
    ) -> Seen {
        let socket = self.socket(served.clone());
        // One after the other: a join that ended before the first answer shows in the second.
        let joins = socket.ask(OPERATIONS).await;
        let members = socket.ask(MEMBERS).await;
        let joins = joins.map_err(|error| chain(&error)).and_then(|answer| answers::joins(&answer));
        if let Err(why) = &joins {
            let directory = self.options.directory.display();
            tracing::debug!(%directory, why, "operations could not be listed");
        }
        let own = match (&config, known) {
            (Config::Unreadable { .. }, Some(known)) => known,
            _ => &config,
        };
        let (membership, listed) = match members {
            Ok(answer) => answers::members(&answer, own),
            Err(error) => (Membership::NoAnswer { why: chain(&error) }, None),
        };
        Seen {
            name: listed.or_else(|| own.own_name()),
            // A daemon that is starting refuses the event stream, with a line in its log.
            served_by: joins.is_ok().then_some(served),
            evidence: Evidence {
                config,
                daemon: sighting.daemon,
                operation: joins.unwrap_or(JoinOperation::Unknown),
                membership,
                unanswered_seconds: 0,
                stream: None,
            },
        }
    }

    async fn sighting(&self) -> Sighting {
        let options = Arc::clone(&self.options);
        let read = move || {
            let snapshot = snapshot(&options)?;
            Ok(process::sight(&options, &snapshot, ticks_per_second()))
        };
        self.read(&self.reading_processes, read).await.unwrap_or_else(|why| {
            tracing::debug!(directory = %self.options.directory.display(), why, "the daemon's \
                                                                                 process could not \
                                                                                 be looked for");
            Sighting::unknown()
        })
    }

    async fn config(&self) -> Config {
        let options = Arc::clone(&self.options);
        let read = move || {
            let snapshot = snapshot(&options)?;
            Ok(Config::from(&local_db::read(&options.local_db(), &snapshot)))
        };
        let read = self.read(&self.reading_database, read).await;
        read.unwrap_or_else(|why| Config::Unreadable { why })
    }

    /// The processes of the unit that run: see [`process::pulse`].
    pub(super) async fn pulse(&self, known: Option<u32>) -> Option<Vec<(u32, u64)>> {
        let options = Arc::clone(&self.options);
        let read = move || Ok(process::pulse(&options, &snapshot(&options)?, known));
        self.read(&self.reading_processes, read).await.ok()
    }

    /// Whether looking at a path may block; so it is, if that cannot be told.
    pub(super) async fn is_on_network(&self, path: &Path) -> bool {
        let (options, path) = (Arc::clone(&self.options), path.to_owned());
        let read = move || Ok(roots::is_on_network(&path, &snapshot(&options)?));
        self.read(&self.reading_database, read).await.unwrap_or(true)
    }

    /// Reads where that may block, but waits for it no longer than it may take; and not at all
    /// while an earlier reading still hangs.
    async fn read<T: Send + 'static>(
        &self,
        one: &Arc<Semaphore>,
        read: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, String> {
        let limited = async {
            let Ok(permit) = Arc::clone(one).acquire_owned().await else {
                return Err("closed".to_owned());
            };
            let read = tokio::task::spawn_blocking(move || {
                let result = read();
                drop(permit);
                result
            });
            read.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
        };
        let hangs =
            |_| Err(format!("reading takes longer than {} s", self.limits.files.as_secs_f32()));
        timeout(self.limits.files, limited).await.unwrap_or_else(hangs)
    }
}

fn snapshot(options: &Options) -> std::io::Result<Snapshot> {
    mount_table::open(options.proc_root.join("1/mountinfo"))
}
