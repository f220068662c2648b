//! A node's journal, which survives its agent: the state, and its history. Text ↔ value only; the
//! file is the daemon's.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Memory, NodeState};
use crate::model::time::Time;

const VERSION: u32 = 1;
/// Transitions that are remembered.
const HISTORY: usize = 100;

/// One node's journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    version: u32,
    /// The node's guarded root.
    pub root: String,
    pub state: NodeState,
    /// When the node came into the state.
    pub since: Time,
    /// Owners of its pools.
    #[serde(default)]
    pub memory: Memory,
    /// The newest last.
    pub history: Vec<Transition>,
    /// Fields of a later version, kept as they are: a downgrade is no loss of evidence.
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// The node went from one state to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    pub time: Time,
    pub from: NodeState,
    pub to: NodeState,
    /// The evidence that drove it.
    pub because: String,
}

impl Journal {
    /// Of a node that nothing was written of.
    pub fn new(root: String, state: NodeState, since: Time) -> Self {
        let (memory, history, others) = (Memory::default(), Vec::new(), Map::new());
        Self { version: VERSION, root, state, since, memory, history, others }
    }

    /// Adds a transition; the oldest one goes if there are too many.
    pub fn note(&mut self, transition: Transition) {
        self.state = transition.to.clone();
        self.since = transition.time;
        self.history.push(transition);
        if self.history.len() > HISTORY {
            self.history.remove(0);
        }
    }

    /// The last transition's evidence.
    pub fn because(&self) -> Option<&str> {
        self.history.last().map(|transition| transition.because.as_str())
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let mut text =
            serde_json::to_string_pretty(self).expect("a journal has string keys and no floats");
        text.push('\n');
        text
    }

    /// Reads the text of a journal. An error names the problem.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let journal: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if journal.version != VERSION {
            return Err(format!("version {} is not known here", journal.version));
        }
        Ok(journal)
    }

    /// Reads the text of the journal of a root. An error names the problem.
    pub fn parse(text: &[u8], root: &str) -> Result<Self, String> {
        let journal = Self::read(text)?;
        if journal.root != root {
            return Err(format!("it is the journal of {}", journal.root));
        }
        Ok(journal)
    }
}

/// Name of a root's journal below the state directory's `nodes`: no two roots share one.
pub fn file_name(root: &str) -> String {
    let mut name = String::new();
    for byte in root.trim_start_matches('/').bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' => name.push(char::from(byte)),
            b'/' => name.push('-'),
            other => name.push_str(&format!("%{other:02x}")),
        }
    }
    name.push_str(".json");
    name
}

#[cfg(test)]
mod tests {
    use super::super::{Incarnation, JoinSeen, Kept};
    use super::*;

    fn time(second: usize) -> Time {
        serde_json::from_str(&format!("\"2026-01-02T03:04:{:02}Z\"", second % 60)).unwrap()
    }

    #[test]
    fn every_state_comes_back_from_its_text() {
        let confirmed_by = Incarnation { boot_id: "b".to_owned(), pid: 7, start_ticks: 9 };
        for state in [
            NodeState::Unknown { kept: Kept::Nothing },
            NodeState::Unconfirmed { confirmed_by: Some(confirmed_by.clone()), held: false },
            NodeState::Unconfirmed { confirmed_by: None, held: true },
            NodeState::Left,
            NodeState::Unknown { kept: Kept::Standalone },
            NodeState::Standalone,
            NodeState::Joining { seen: JoinSeen::Prepared },
            NodeState::Joining { seen: JoinSeen::Running },
            NodeState::Joined { confirmed_by },
            NodeState::JoinFailed,
            NodeState::JoinPartial,
            NodeState::RollingBack,
            NodeState::Released,
        ] {
            let mut journal =
                Journal::new("/var/lib/incus".to_owned(), NodeState::Standalone, time(1));
            journal.note(Transition {
                time: time(2),
                from: NodeState::Standalone,
                to: state,
                because: "x".to_owned(),
            });
            assert_eq!(Journal::parse(journal.to_text().as_bytes(), "/var/lib/incus"), Ok(journal));
        }
    }

    #[test]
    fn only_the_newest_transitions_are_remembered() {
        let mut journal = Journal::new("/a".to_owned(), NodeState::Standalone, time(0));
        for second in 0..HISTORY + 5 {
            let (from, to) = (NodeState::Standalone, NodeState::JoinFailed);
            journal.note(Transition { time: time(second), from, to, because: second.to_string() });
        }
        assert_eq!(journal.history.len(), HISTORY);
        assert_eq!(journal.history[0].because, "5");
        assert_eq!(journal.because(), Some("104"));
    }

    #[test]
    fn damage_and_strangers_are_told() {
        let journal = Journal::new("/a".to_owned(), NodeState::Standalone, time(0));
        let text = journal.to_text();
        assert!(Journal::parse(text.as_bytes(), "/b").unwrap_err().contains("journal of /a"));
        let newer = text.replace("\"version\": 1", "\"version\": 2");
        assert!(Journal::parse(newer.as_bytes(), "/a").unwrap_err().contains("version 2"));
        for length in 0..text.len() - 2 {
            assert!(Journal::parse(&text.as_bytes()[..length], "/a").is_err());
        }
    }

    #[test]
    fn fields_of_a_later_version_are_kept() {
        let mut journal = Journal::new("/a".to_owned(), NodeState::Standalone, time(0));
        journal.note(Transition {
            time: time(1),
            from: NodeState::Standalone,
            to: NodeState::JoinFailed,
            because: "x".to_owned(),
        });
        let mut later: Value = serde_json::from_str(&journal.to_text()).unwrap();
        later["members"] = 3.into();
        later["history"][0]["about"] = "n1".into();
        let read = Journal::parse(later.to_string().as_bytes(), "/a").unwrap();
        assert_eq!((&read.state, read.because()), (&NodeState::JoinFailed, Some("x")));
        let written: Value = serde_json::from_str(&read.to_text()).unwrap();
        assert_eq!(written["members"], later["members"]);
    }

    #[test]
    fn names_of_journals_are_told_apart() {
        assert_eq!(file_name("/var/lib/incus"), "var-lib-incus.json");
        assert_eq!(file_name("/var/lib-incus"), "var-lib%2dincus.json");
        assert_ne!(file_name("/a/b"), file_name("/a-b"));
        assert_ne!(file_name("/a%2db"), file_name("/a-b"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_journal_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = Journal::parse(&bytes, "/a");
        }
    }
}
