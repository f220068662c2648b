//! The joiner's way into the cluster, and the faults that hit it on the way.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::AsFd as _;
use std::process::Child;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::node::{Node, Role, initialise, log_path, log_tail};
use crate::harness::command;

/// For a step to be reached, on an emulated machine.
const STEP_LIMIT: Duration = Duration::from_secs(120);

/// A moment of a join, by what incusd's debug log says or what is in its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The pool is mounted, the seed has not accepted.
    Mounted,
    /// The seed has accepted; the certificate is written.
    Accepted,
    /// The node is in the raft cluster's list.
    Raft,
    /// Local data moves into the cluster's database.
    Migrating,
}

impl Step {
    /// Line in the log when it is reached.
    fn log_line(self) -> Option<&'static str> {
        match self {
            Self::Mounted => Some("Marked storage pool local status as created"),
            Self::Accepted => None,
            Self::Raft => Some("Joining dqlite raft cluster"),
            Self::Migrating => Some("Migrate local data to cluster database"),
        }
    }
}

/// A join that runs.
#[derive(Debug)]
pub struct Joining {
    child: Child,
    name: String,
}

/// Outcome of a join.
#[derive(Debug)]
pub struct Joined {
    pub success: bool,
    pub text: String,
}

/// Takes a token from the seed, as `incus cluster add`, and returns the preseed of the joiner.
pub fn preseed(seed: &Node, name: &str) -> Result<String> {
    let text = seed.client(&["cluster", "add", name, "--quiet"])?;
    let token = text.lines().last().context("the seed gave no token")?;
    Ok(format!(
        "cluster:\n  enabled: true\n  server_name: {name}\n  server_address: {}:8443\n  \
         cluster_token: {token}\n  member_config: []\n",
        Role::Joiner.address()
    ))
}

/// Starts a join: `incus admin init --preseed`.
pub fn begin(name: &str, preseed: &str) -> Result<Joining> {
    let child = initialise(Role::Joiner, preseed)?;
    Ok(Joining { child, name: name.to_owned() })
}

impl Joining {
    /// Waits for its end.
    pub fn end(self) -> Result<Joined> {
        let output = self.child.wait_with_output().context("wait for incus admin init")?;
        Ok(Joined {
            success: output.status.success(),
            text: command::text(&output).trim().to_owned(),
        })
    }

    /// It must succeed.
    pub fn succeeds(self) -> Result<()> {
        let name = self.name.clone();
        let joined = self.end()?;
        ensure!(joined.success, "{name} did not join: {}\n{}", joined.text, log_tail(Role::Joiner));
        Ok(())
    }

    /// It must fail; returns its output.
    pub fn fails(self) -> Result<String> {
        let name = self.name.clone();
        let joined = self.end()?;
        ensure!(!joined.success, "{name} joined, but had to fail");
        Ok(joined.text)
    }
}

/// Does `act` the moment the joiner reaches `step`. To be called before the join begins.
pub fn at(
    step: Step,
    act: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<JoinHandle<Result<()>>> {
    let mut follow = Follow::new(step)?;
    let follower = move || {
        follow.until_reached()?;
        act()
    };
    thread::Builder::new().name("follow".to_owned()).spawn(follower).context("start a thread")
}

/// Reads the joiner's log from where it ends now, and watches its directory.
struct Follow {
    step: Step,
    log: File,
    text: Vec<u8>,
    /// Of the log and of the directory.
    changes: Inotify,
}

impl Follow {
    fn new(step: Step) -> Result<Self> {
        let path = log_path(Role::Joiner);
        let mut log = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        log.seek(SeekFrom::End(0))?;
        let changes =
            Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context("inotify")?;
        for (path, what) in [
            (path.as_path(), AddWatchFlags::IN_MODIFY),
            (Role::Joiner.directory(), AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO),
        ] {
            changes.add_watch(path, what).with_context(|| format!("watch {}", path.display()))?;
        }
        Ok(Self { step, log, text: Vec::new(), changes })
    }

    fn until_reached(&mut self) -> Result<()> {
        let end = Instant::now() + STEP_LIMIT;
        while !self.is_reached()? {
            let left = PollTimeout::try_from(end.saturating_duration_since(Instant::now()))?;
            let changed = PollFd::new(self.changes.as_fd(), PollFlags::POLLIN);
            if poll(&mut [changed], left).context("wait for a change of the joiner's log")? == 0 {
                bail!("the join did not reach {:?} in {} s", self.step, STEP_LIMIT.as_secs());
            }
            // The next look shows the changes.
            self.changes.read_events().context("read what inotify says")?;
        }
        Ok(())
    }

    fn is_reached(&mut self) -> Result<bool> {
        let Some(line) = self.step.log_line() else {
            // With half of it incusd would not even start again.
            let written = fs::metadata(Role::Joiner.directory().join("cluster.key"));
            return Ok(written.is_ok_and(|key| key.len() > 0));
        };
        let before = self.text.len();
        self.log.read_to_end(&mut self.text)?;
        let from = before.saturating_sub(line.len());
        Ok(self.text[from..].windows(line.len()).any(|window| window == line.as_bytes()))
    }
}
