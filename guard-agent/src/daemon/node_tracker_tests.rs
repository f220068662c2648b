//! Nodes over a state directory of each test's own.

use std::fs;

use super::*;
use crate::model::join::{Config, Daemon, Evidence, JoinOperation};
use crate::model::policy::parse;

const INCUS: &str = "version = 1\n[[root]]\npreset = \"incus\"\n";
const ROOT: &str = "/var/lib/incus";

fn policy(text: &str) -> Policy {
    parse(text, Path::new("policy.toml")).unwrap()
}

fn tracker(state_dir: &Path) -> NodeTracker {
    let (rollbacks, _) = Rollbacks::new(PathBuf::from("/nonexistent"));
    let (mut tracker, _) = NodeTracker::new(state_dir, rollbacks);
    assert_eq!(tracker.follow(&policy(INCUS), |_| BTreeMap::new()), None);
    tracker
}

/// Tells the node that it is in no cluster.
fn standalone(tracker: &mut NodeTracker) -> NodeOutcome {
    let evidence = Evidence {
        config: Config::cluster(None, 0),
        daemon: Daemon::Stopped,
        operation: JoinOperation::None,
        ..Evidence::none()
    };
    let asked = tracker.of(Path::new(ROOT)).unwrap().machine().epoch();
    tracker.observed(Path::new(ROOT), Observation::Evidence { asked, evidence })
}

fn mode(tracker: &NodeTracker) -> NodeMode {
    tracker.modes().values().next().unwrap().mode
}

#[test]
fn a_node_is_sealed_until_evidence_says_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let mut tracker = tracker(directory.path());
    assert_eq!(mode(&tracker), NodeMode::Sealed);
    let told = standalone(&mut tracker);
    assert!(told.changed && told.result.is_ok() && !told.rolls_back);
    assert_eq!(told.changes.len(), 1);
    assert_eq!((told.changes[0].to.name(), mode(&tracker)), ("standalone", NodeMode::Policy));
    assert!(!standalone(&mut tracker).changed, "the same again changes nothing");
}

#[test]
fn nothing_is_weakened_before_its_journal_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let mut tracker = tracker(directory.path());
    let in_the_way = directory.path().join(paths::NODES_NAME);
    fs::write(&in_the_way, "").unwrap();
    let told = standalone(&mut tracker);
    assert!(!told.changed && tracker.unwritten().is_some());
    assert_eq!(mode(&tracker), NodeMode::Sealed);
    assert!(!tracker.retry(), "it still cannot be written");
    fs::remove_file(&in_the_way).unwrap();
    assert!(tracker.retry() && tracker.unwritten().is_none());
    assert_eq!(mode(&tracker), NodeMode::Policy);
}

#[test]
fn what_strengthens_is_in_the_maps_before_the_journal_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let mut tracker = tracker(directory.path());
    standalone(&mut tracker);
    let told = tracker.tell(Path::new(ROOT), Event::JoinBegan);
    assert!(told.changed && mode(&tracker) != NodeMode::Policy);
    let mode_on_disk = || mode(&self::tracker(directory.path()));
    assert_eq!(mode_on_disk(), NodeMode::Policy);
    tracker.write_later();
    assert_eq!(mode_on_disk(), mode(&tracker));
}

#[test]
fn a_root_that_is_followed_no_longer_has_the_policys_mode() {
    let directory = tempfile::tempdir().unwrap();
    let mut tracker = tracker(directory.path());
    let other = policy(&format!("{INCUS}join = \"none\"\n"));
    assert_eq!(tracker.follow(&other, |_| BTreeMap::new()), None);
    assert!(tracker.modes().is_empty() && tracker.of(Path::new(ROOT)).is_none());
    let told = tracker.tell(Path::new(ROOT), Event::JoinBegan);
    assert!(!told.changed && told.result.is_ok(), "it is nobody's business any more");
}

#[test]
fn a_damaged_journal_is_told_and_seals() {
    let directory = tempfile::tempdir().unwrap();
    standalone(&mut tracker(directory.path()));
    let nodes = directory.path().join(paths::NODES_NAME);
    let file = fs::read_dir(&nodes).unwrap().next().unwrap().unwrap().path();
    fs::write(&file, "{\"version\":1,\"ro").unwrap();
    let (rollbacks, _) = Rollbacks::new(PathBuf::from("/nonexistent"));
    let (mut tracker, _) = NodeTracker::new(directory.path(), rollbacks);
    let problem = tracker.follow(&policy(INCUS), |_| BTreeMap::new());
    assert!(problem.unwrap().contains(".unreadable"));
    assert_eq!(mode(&tracker), NodeMode::Sealed);
}
