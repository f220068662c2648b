//! Looks and observers against a fake Incus.

use super::super::fake::{Behaviour, Fake, MEMBERS, OPERATIONS, directory, failure, success};
use super::*;
use crate::model::join::{Config, JoinOperation, Membership};

const SHORT: Limits = Limits { files: Duration::from_secs(5), answers: Duration::from_millis(300) };
/// No test waits for a timer.
const NEVER: Duration = Duration::from_secs(3_600);

async fn observe(fake: &Fake) -> Seen {
    EvidenceReader::new(Arc::new(fake.options.clone()), SHORT).observe(None).await
}

#[tokio::test]
async fn a_running_member() {
    let mut fake = Fake::member();
    fake.start();
    let seen = observe(&fake).await;
    let config = Config::Read {
        cluster_address: Some("10.0.2.15:8443".to_owned()),
        raft_nodes: 1,
        name: Some("node2".to_owned()),
    };
    assert_eq!(seen.evidence.config, config);
    assert!(matches!(seen.evidence.daemon, Daemon::Running { .. }));
    assert_eq!(seen.evidence.operation, JoinOperation::None);
    assert_eq!(seen.evidence.membership, Membership::Member);
    assert_eq!(seen.name.as_deref(), Some("node2"));
    let once = super::super::observe_once(fake.options.clone(), Duration::from_secs(3)).await;
    assert_eq!(once, seen.evidence);
}

#[tokio::test]
async fn an_idle_socket_is_never_dialled() {
    let mut fake = Fake::member();
    fake.open_socket();
    let stopped = observe(&fake).await.evidence;
    assert_eq!((stopped.daemon, stopped.membership), (Daemon::Stopped, Membership::NotAsked));
    // On its way out: the process is there, and has closed its copy of the socket.
    fake.process(410, 1, &["incusd"]);
    fake.cgroup(&[410]);
    let ending = observe(&fake).await;
    assert!(
        matches!(&ending.evidence.membership, Membership::NoAnswer { why } if why.contains("listens on no"))
    );
    assert_eq!(ending.served_by, None);
    assert_eq!(*fake.connections.lock().unwrap(), 0);
}

#[tokio::test]
async fn a_socket_of_another_process_is_not_believed() {
    let mut fake = Fake::member();
    fake.open_socket();
    fake.process(410, 1, &["incusd"]);
    fake.listens(410);
    fake.cgroup(&[410]);
    let seen = observe(&fake).await;
    let Membership::NoAnswer { why } = &seen.evidence.membership else { panic!("{seen:?}") };
    assert!(why.contains("is not the daemon"), "{why}");
    assert_eq!((seen.evidence.operation, seen.served_by), (JoinOperation::Unknown, None));
}

#[tokio::test]
async fn every_way_not_to_answer() {
    let mut fake = Fake::member();
    fake.start();
    for (behaviour, expected) in [
        (Behaviour::Hangs, "no answer to /1.0/cluster/members"),
        (Behaviour::BreaksOff, "broke off"),
        (Behaviour::NeverEnds, ""),
        (Behaviour::Babbles, "ask /1.0/cluster/members"),
        (failure(500, "Failed to begin transaction"), "Failed to begin transaction"),
    ] {
        fake.answer(MEMBERS, behaviour.clone());
        let began = Instant::now();
        let evidence = observe(&fake).await.evidence;
        let Membership::NoAnswer { why } = &evidence.membership else {
            panic!("{behaviour:?}: {evidence:?}")
        };
        assert!(why.contains(expected), "{behaviour:?}: {why}");
        assert_eq!(evidence.operation, JoinOperation::None, "the other question was answered");
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    fake.answer(MEMBERS, failure(500, "Server is not clustered"));
    assert_eq!(observe(&fake).await.evidence.membership, Membership::NotClustered);
    for path in [OPERATIONS, MEMBERS] {
        fake.answer(path, failure(503, "Daemon is starting up"));
    }
    let starting = observe(&fake).await.evidence;
    assert_eq!(
        (starting.membership, starting.operation),
        (Membership::Starting, JoinOperation::Unknown)
    );
}

struct Observed {
    fake: Fake,
    observer: Observer,
    observations: mpsc::Receiver<(Arc<Path>, Observation)>,
}

impl Observed {
    fn new(fake: Fake) -> Self {
        let (sender, observations) = mpsc::channel(8);
        let observer = Observer::spawn(fake.options.clone(), Epoch(1), NEVER, sender);
        Self { fake, observer, observations }
    }

    async fn next(&mut self) -> Observation {
        let next = tokio::time::timeout(Duration::from_secs(20), self.observations.recv()).await;
        let (of, observation) = next.expect("an observation").expect("the observer runs");
        assert_eq!(&*of, directory(&self.fake));
        observation
    }

    /// The next look that shows it; others before it are passed over.
    async fn until(&mut self, shows: impl Fn(Epoch, &Evidence) -> bool) {
        loop {
            if let Observation::Evidence { asked, evidence } = self.next().await
                && shows(asked, &evidence)
            {
                return;
            }
        }
    }

    async fn next_event(&mut self) -> Event {
        loop {
            if let Observation::Event(event) = self.next().await {
                return event;
            }
        }
    }
}

/// `location`: as the operation knows it, which is the name that its server had before.
fn operation(code: u16, location: &str, sender: &str) -> Option<String> {
    Some(format!(
        r#"{{"type":"operation","metadata":{{"description":"Joining cluster","status_code":{code},"err":"","location":"{location}"}},"location":"{sender}"}}"#
    ))
}

fn removed(member: &str) -> Option<String> {
    Some(format!(
        r#"{{"type":"lifecycle","metadata":{{"action":"cluster-member-removed","source":"/1.0/cluster/members/{member}"}},"location":"node1"}}"#
    ))
}

#[tokio::test]
async fn requests_are_answered_and_the_newest_counts() {
    let mut observed = Observed::new(Fake::member());
    observed.until(|asked, evidence| asked == Epoch(1) && evidence.daemon == Daemon::Stopped).await;
    for epoch in 2..=50 {
        observed.observer.observe(Epoch(epoch), NEVER);
    }
    let Observation::Evidence { asked, .. } = observed.next().await else { panic!("a look") };
    assert_eq!(asked, Epoch(50), "not one look a request");
}

#[tokio::test]
async fn a_daemon_that_starts_and_stops_is_noticed() {
    let mut observed = Observed::new(Fake::member());
    observed.until(|_, evidence| evidence.daemon == Daemon::Stopped).await;
    observed.fake.start();
    observed.until(|_, evidence| evidence.membership == Membership::Member).await;
    observed.fake.stop();
    observed.until(|_, evidence| evidence.daemon == Daemon::Stopped).await;
}

#[tokio::test]
async fn a_change_of_the_database_is_noticed() {
    let mut observed = Observed::new(Fake::member());
    observed.until(|_, _| true).await;
    // The watch was there before the first look.
    observed.fake.leave_cluster();
    let empty =
        |_, evidence: &Evidence| matches!(evidence.config, Config::Read { raft_nodes: 0, .. });
    observed.until(empty).await;
}

#[tokio::test]
async fn a_join_is_told_as_it_happens_and_the_end_of_the_stream_too() {
    let mut fake = Fake::member();
    fake.leave_cluster();
    fake.answer(MEMBERS, failure(500, "Server is not clustered"));
    fake.start();
    let mut observed = Observed::new(fake);
    let unclustered = |_, evidence: &Evidence| evidence.membership == Membership::NotClustered;
    observed.until(unclustered).await;
    observed.fake.event(operation(103, "none", "none")).await;
    assert_eq!(observed.next_event().await, Event::JoinBegan);
    observed.fake.event(operation(400, "none", "node2")).await;
    assert_eq!(observed.next_event().await, Event::JoinEnded { succeeded: false });
    observed.fake.event(None).await;
    assert_eq!(observed.next_event().await, Event::EventsLost);
    // It connects again.
    observed.fake.event(operation(200, "none", "node2")).await;
    assert_eq!(observed.next_event().await, Event::JoinEnded { succeeded: true });
}

#[tokio::test]
async fn news_of_other_members_is_not_told() {
    let mut fake = Fake::member();
    fake.start();
    let mut observed = Observed::new(fake);
    observed.until(|_, evidence| evidence.membership == Membership::Member).await;
    for (location, sender) in [("node3", "node3"), ("none", "node3"), ("none", "none")] {
        observed.fake.event(operation(103, location, sender)).await;
    }
    observed.fake.event(removed("node3")).await;
    observed.fake.event(removed("node2")).await;
    assert_eq!(observed.next_event().await, Event::MemberRemoved, "the first that is about itself");
}

#[tokio::test]
async fn a_stream_is_followed_once_the_daemon_answers() {
    let mut fake = Fake::member();
    for path in [OPERATIONS, MEMBERS] {
        fake.answer(path, failure(503, "Daemon is starting up"));
    }
    fake.start();
    let mut observed = Observed::new(fake);
    observed
        .until(|_, evidence| {
            evidence.membership == Membership::Starting && evidence.stream.is_none()
        })
        .await;
    observed.fake.answer(OPERATIONS, success("{}"));
    observed.observer.observe(Epoch(2), NEVER);
    observed.until(|asked, evidence| asked == Epoch(2) && evidence.stream.is_none()).await;
    observed.until(|_, evidence| evidence.stream.is_some()).await;
}

#[tokio::test]
async fn a_hung_daemon_holds_up_nothing_else_and_dropping_ends_it() {
    let mut fake = Fake::member();
    for path in [OPERATIONS, MEMBERS] {
        fake.answer(path, Behaviour::Hangs);
    }
    fake.start();
    let Observed { fake: _fake, observer, mut observations } = Observed::new(fake);
    // The look hangs for as long as it may; this task goes on, and so does the runtime.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let early = observations.try_recv();
    assert!(early.is_err(), "{early:?}");
    drop(observer);
    assert!(observations.recv().await.is_none(), "its end closes the channel at once");
}

#[tokio::test]
async fn operations_are_told() {
    let mut fake = Fake::member();
    let joining =
        r#"{"running":[{"description":"Joining cluster","status_code":103,"location":"none"}]}"#;
    fake.answer(OPERATIONS, success(joining));
    fake.answer(MEMBERS, failure(500, "Server is not clustered"));
    fake.start();
    assert_eq!(observe(&fake).await.evidence.operation, JoinOperation::Running);
}
