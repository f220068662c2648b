//! Why an agent does not answer: it does not run, a signal has stopped it, or it is busy with
//! something else.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cli::client::ClientError;
use crate::host::paths::LOCK_NAME;

/// An agent that does not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    pub cause: Cause,
    /// The attempt, and its result.
    pub detail: String,
    /// The agent's process, if there is one and it is known.
    pub pid: Option<u32>,
}

/// Kind of the silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    NotRunning,
    /// SIGSTOP and its like.
    StoppedBySignal,
    NoAnswer,
}

impl Silence {
    /// An agent that a signal has stopped: nobody waits for its answer.
    pub fn stopped(pid: u32) -> Self {
        let detail = "it goes on, and answers, when it gets SIGCONT".to_owned();
        Self { cause: Cause::StoppedBySignal, detail, pid: Some(pid) }
    }

    /// The silence that an error on the socket shows, with the agent's process if one is known.
    /// `None`: the agent has answered.
    pub fn of(error: &ClientError, pid: Option<u32>) -> Option<Self> {
        let cause = match (error, pid) {
            // It has so many connections waiting that it takes no more.
            (ClientError::Unreachable { source, .. }, _)
                if source.kind() == ErrorKind::TimedOut =>
            {
                Cause::NoAnswer
            }
            (ClientError::Unreachable { .. }, None) => Cause::NotRunning,
            (
                ClientError::Unreachable { .. } | ClientError::Broken { .. } | ClientError::Closed,
                _,
            ) => Cause::NoAnswer,
            _ => return None,
        };
        Some(Self { cause, detail: crate::model::errors::chain(error), pid })
    }

    /// For people, in a few words.
    pub fn summary(&self) -> String {
        let process = self.pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        match self.cause {
            Cause::NotRunning => "the agent does not run".to_owned(),
            Cause::StoppedBySignal => format!("a signal has stopped the agent{process}"),
            Cause::NoAnswer => format!("the agent{process} does not answer"),
        }
    }

    /// The advice to the operator.
    pub fn fix(&self) -> String {
        match (self.cause, self.pid) {
            (Cause::StoppedBySignal, Some(pid)) => format!("kill -CONT {pid}"),
            (Cause::NotRunning, _) => {
                "systemctl start guard-agent; why it ended: journalctl -u guard-agent".to_owned()
            }
            _ => "ask again, with --timeout 30s; then journalctl -u guard-agent, and systemctl \
                  restart guard-agent (enforcement goes on meanwhile)"
                .to_owned(),
        }
    }
}

/// The process that holds the running agent's lock. Only root may look.
pub fn agent_pid(state_dir: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let inode = fs::metadata(state_dir.join(LOCK_NAME)).ok()?.ino();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let is_agent = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|comm| comm.starts_with("guard-agent"))
    };
    holders(&locks, inode).find(is_agent)
}

/// Whether a signal has stopped a process.
pub fn is_stopped(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| state(&stat) == Some('T'))
}

/// Processes that hold a whole file's lock, by the file's inode (the kernel's device number need
/// not be that of `stat`).
fn holders(locks: &str, inode: u64) -> impl Iterator<Item = u32> {
    locks.lines().filter_map(move |line| {
        let mut words = line.split_whitespace().skip(1);
        let (kind, _, _) = (words.next()?, words.next()?, words.next()?);
        let (pid, file) = (words.next()?.parse().ok()?, words.next()?);
        let found: u64 = file.rsplit(':').next()?.parse().ok()?;
        (kind == "FLOCK" && found == inode).then_some(pid)
    })
}

/// The state letter of `/proc/PID/stat`, whose second field may hold anything.
fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_lock_names_its_holder() {
        let locks = "1: FLOCK  ADVISORY  WRITE 700 fd:01:4711 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 800 fd:01:4711 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 900 fd:01:4711 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 950 00:1a:4712 0 EOF\nnonsense\n";
        assert_eq!(holders(locks, 4711).collect::<Vec<u32>>(), [700]);
        assert_eq!(holders(locks, 4712).collect::<Vec<u32>>(), [950]);
        assert_eq!(holders(locks, 1).count(), 0);
    }

    #[test]
    fn a_name_with_a_bracket_does_not_hide_the_state() {
        assert_eq!(state("7 (guard-agent) T 1 7"), Some('T'));
        assert_eq!(state("7 (a) R (b) S 1 7"), Some('S'));
        assert_eq!(state(""), None);
        assert!(!is_stopped(std::process::id()));
    }

    #[test]
    fn an_answer_is_no_silence() {
        let path = std::path::PathBuf::from("/run/guard-agent/control.sock");
        let gone = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let unreachable = ClientError::Unreachable { path: path.clone(), source: gone() };
        let cause = |error, pid| Silence::of(&error, pid).map(|silence| silence.cause);
        assert_eq!(Silence::of(&unreachable, Some(7)).unwrap().cause, Cause::NoAnswer);
        assert_eq!(cause(unreachable, None), Some(Cause::NotRunning));
        assert_eq!(cause(ClientError::Closed, Some(7)), Some(Cause::NoAnswer));
        let crowded = io::Error::from(ErrorKind::TimedOut);
        let crowded = ClientError::Unreachable { path: path.clone(), source: crowded };
        assert_eq!(cause(crowded, None), Some(Cause::NoAnswer));
        let forbidden = ClientError::Permission { path, source: gone() };
        assert_eq!(cause(forbidden, None), None);
        assert_eq!(cause(ClientError::OtherAnswer { request: "status" }, None), None);
    }
}
