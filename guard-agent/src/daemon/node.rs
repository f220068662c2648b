//! One node: its state machine, its journal, and its observer.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::clock::now;
use crate::host::durable;
use crate::host::incus;
use crate::host::incus::Observer;
use crate::model::join::journal::file_name;
use crate::model::join::{
    Effect, Event, Evidence, Journal, Machine, NodeMode, NodeRefusal, NodeState, Transition,
};
use crate::model::policy::Root;
use crate::model::time::Time;

/// Intervals between looks at a node without any reason: while its state may change soon, and else.
const OFTEN: Duration = Duration::from_secs(2);
const SELDOM: Duration = Duration::from_secs(10);

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) actor_set: u32,
    pub(super) options: incus::Options,
    machine: Option<Machine>,
    pub(super) journal: Journal,
    file: PathBuf,
    pub(super) observer: Option<Observer>,
    /// The last look, and when it arrived.
    pub(super) seen: Option<(Time, Evidence)>,
    /// Why the journal on disk is not current, if it is not. Then nothing is weakened.
    pub(super) unwritten: Option<String>,
    /// Whether the journal is to be written as soon as the kernel's maps hold the stronger mode.
    pub(super) writes_later: bool,
}

impl Node {
    /// Reads the journal of a root, whose pools were found with these modes in the kernel. The
    /// second value names a problem with the journal.
    pub(super) fn open(
        directory: &Path,
        root: &Root,
        options: incus::Options,
        found: &BTreeMap<u64, NodeMode>,
    ) -> (Self, Option<String>) {
        let name = root.path().display().to_string();
        let file = directory.join(file_name(&name));
        let read = match fs::read(&file) {
            Ok(bytes) => Journal::parse(&bytes, &name).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        let (journal, problem) = match read {
            Ok(journal) => (journal, None),
            Err(why) => {
                // A journal that cannot be understood proves nothing: sealed until evidence says
                // otherwise.
                let aside = match durable::set_aside(&file) {
                    Ok(aside) => format!("kept as {}", aside.display()),
                    Err(error) => format!("it could not be put aside: {error}"),
                };
                (None, Some(format!("{}: {why}; {aside}", file.display())))
            }
        };
        let machine = journal.as_ref().map_or_else(Machine::unknown, |journal| {
            Machine::restored(journal.state.clone(), journal.memory.clone(), found)
        });
        let journal = match journal {
            Some(mut journal) => {
                journal.state = machine.state().clone();
                journal
            }
            None => Journal::new(name, machine.state().clone(), now().time),
        };
        let node = Self {
            actor_set: root.actor_set(),
            options,
            machine: Some(machine),
            journal,
            file,
            observer: None,
            seen: None,
            unwritten: None,
            writes_later: false,
        };
        (node, problem)
    }

    pub(super) fn machine(&self) -> &Machine {
        self.machine.as_ref().expect("the machine is only away while it takes a step")
    }

    /// State of the node.
    pub(super) fn state(&self) -> &NodeState {
        self.machine().state()
    }

    /// Whether a rollback may begin in this state.
    pub(super) fn may_roll_back(&self) -> Result<(), crate::model::join::NodeRefusal> {
        self.machine().may_roll_back()
    }

    /// Interval between looks without a reason.
    pub(super) fn every(&self) -> Duration {
        match self.state() {
            NodeState::Standalone
            | NodeState::Joined { .. }
            | NodeState::Left
            | NodeState::Released => SELDOM,
            _ => OFTEN,
        }
    }

    /// Takes an event. Its changes are in the journal; the effects say when to write it.
    pub(super) fn step(&mut self, event: Event) -> (Vec<Effect>, Result<(), NodeRefusal>) {
        let mut effects = Vec::new();
        let machine = self.machine.take().expect("the machine is only away while it takes a step");
        let (machine, result) = machine.step(event, &mut effects);
        self.journal.memory.clone_from(machine.memory());
        self.machine = Some(machine);
        for effect in &effects {
            if let Effect::Transition { from, to, because } = effect {
                let (from, to, because) = (from.clone(), to.clone(), because.clone());
                self.journal.note(Transition { time: now().time, from, to, because });
            }
        }
        (effects, result)
    }

    /// Replaces the journal's file.
    pub(super) fn write(&mut self) {
        self.writes_later = false;
        let written = match self.file.parent().map_or(Ok(()), fs::create_dir_all) {
            Ok(()) => durable::replace(&self.file, self.journal.to_text().as_bytes()),
            Err(error) => Err(("create the directory of", error)),
        };
        self.unwritten =
            written.err().map(|(what, error)| format!("{what} {}: {error}", self.file.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::join::{Config, Daemon, JoinOperation};

    fn node(directory: &Path) -> (Node, Option<String>) {
        let text = "version = 1\n[[root]]\npreset = \"incus\"\n";
        let policy = crate::model::policy::parse(text, Path::new("policy.toml")).unwrap();
        let root = &policy.roots()[0];
        Node::open(
            directory,
            root,
            incus::Options::new(root.path(), "incus.service"),
            &BTreeMap::new(),
        )
    }

    /// Carries the effects out as far as the journal goes.
    fn told(node: &mut Node, event: Event) {
        let (effects, result) = node.step(event);
        assert_eq!(result, Ok(()));
        for effect in effects {
            if effect == Effect::Persist {
                node.write();
            }
        }
    }

    fn observed(node: &mut Node, cluster_address: Option<&str>) {
        let evidence = Evidence {
            config: Config::cluster(cluster_address, 0),
            daemon: Daemon::Stopped,
            operation: JoinOperation::None,
            ..Evidence::none()
        };
        let asked = node.machine().epoch();
        told(node, Event::Observed { asked, evidence });
    }

    #[test]
    fn what_is_written_is_the_state_after_the_step() {
        let directory = tempfile::tempdir().unwrap();
        let (mut first, problem) = node(directory.path());
        assert_eq!((first.state().name(), problem), ("unknown", None));
        observed(&mut first, None);
        assert_eq!(node(directory.path()).0.state().mode(), NodeMode::Policy);
        told(&mut first, Event::JoinBegan);
        assert_eq!(node(directory.path()).0.state().name(), "joining");
        observed(&mut first, Some("10.0.0.1:8443"));
        let (second, _) = node(directory.path());
        assert_eq!(second.state(), &NodeState::JoinFailed);
        let states: Vec<&str> =
            second.journal.history.iter().map(|change| change.to.name()).collect();
        assert_eq!(states, ["standalone", "joining", "join-failed"]);
    }

    #[test]
    fn a_damaged_journal_speaks_for_nothing_and_is_kept_aside() {
        let directory = tempfile::tempdir().unwrap();
        let (mut first, _) = node(directory.path());
        observed(&mut first, None);
        fs::write(&first.file, "{\"version\":1,\"ro").unwrap();
        let (second, problem) = node(directory.path());
        assert_eq!((second.state().name(), second.machine().mode()), ("unknown", NodeMode::Sealed));
        assert!(problem.unwrap().contains(".unreadable"));
    }

    #[test]
    fn a_write_that_fails_is_told_and_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("nodes");
        fs::write(&place, "").unwrap();
        let (mut first, _) = node(&place);
        observed(&mut first, None);
        assert!(first.unwritten.as_ref().unwrap().contains("nodes"), "{:?}", first.unwritten);
        fs::remove_file(&place).unwrap();
        first.write();
        assert_eq!(first.unwritten, None);
        assert_eq!(node(&place).0.state().mode(), NodeMode::Policy);
    }
}
