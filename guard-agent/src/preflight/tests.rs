//! Nodes in all conditions, and what is found.

use super::*;
use crate::doctor::{CheckState, worst};
use crate::join::Incarnation;
use crate::posture::Reason;

fn time(text: &str) -> Time {
    Time(text.parse().unwrap())
}

fn posture(state: PostureState) -> Posture {
    let reason = Reason { code: "code".to_owned(), detail: "detail".to_owned(), fix: "fix".to_owned() };
    Posture { state, reasons: vec![reason], tier: None, gaps: Vec::new() }
}

/// A fresh node, with nothing to be said against it.
fn fit() -> Facts {
    Facts {
        root: PathBuf::from("/var/lib/incus"),
        leftovers: Ok(Vec::new()),
        config: Config::cluster(None, 0),
        global_database: Ok(3),
        certificates: vec!["server.crt".to_owned()],
        pool_directories: Ok(Vec::new()),
        daemon: Daemon::Running {
            incarnation: Incarnation { boot_id: "b".to_owned(), pid: 7, start_ticks: 1 },
            age_seconds: 60,
        },
        agent: Agent::Guards { posture: posture(PostureState::Enforcing), in_force: true },
        server_name: "n2".to_owned(),
        address: Some("10.0.0.2".to_owned()),
        members: Some(Ok(vec![member("n1", "https://10.0.0.1:8443")])),
        token: None,
        now: time("2026-05-01T00:00:00Z"),
    }
}

fn member(name: &str, url: &str) -> Member {
    Member { server_name: name.to_owned(), url: url.to_owned(), status: "Offline".to_owned() }
}

fn token(expires: &str) -> Token {
    Token {
        server_name: "n3".to_owned(),
        addresses: vec!["10.0.0.1:8443".to_owned()],
        fingerprint: String::new(),
        expires_at: Some(time(expires)),
    }
}

/// The codes of everything that is not in order.
fn found(facts: &Facts) -> Vec<(String, CheckState)> {
    let checks = checks(facts);
    for check in &checks {
        assert_eq!(check.fix.is_some(), check.state != CheckState::Ok, "{check:?}");
    }
    checks
        .into_iter()
        .filter(|check| check.state != CheckState::Ok)
        .map(|check| (check.code, check.state))
        .collect()
}

#[test]
fn a_fit_node_has_nothing_to_be_said_against_it() {
    assert_eq!(found(&fit()), []);
    let mut fresh = fit();
    fresh.config = Config::Absent;
    fresh.global_database = Ok(0);
    fresh.daemon = Daemon::Stopped;
    fresh.certificates.clear();
    assert_eq!(found(&fresh), []);
    assert_eq!(worst(&checks(&fresh)), CheckState::Ok);
}

#[test]
fn each_finding_by_itself() {
    type Change = fn(&mut Facts);
    let cases: [(&str, CheckState, Change); 18] = [
        ("leftover-mounts", CheckState::Fail, |facts| {
            let place = MountPlace { namespace: 9, in_host: false, pid: 77, mountpoint: "/x".to_owned() };
            facts.leftovers =
                Ok(vec![Leftover { place, fs_type: "ceph".to_owned(), source: "a@b.c=/".to_owned() }]);
        }),
        ("leftover-mounts", CheckState::Fail, |facts| facts.leftovers = Err("no permission".to_owned())),
        ("raft-nodes", CheckState::Fail, |facts| {
            facts.config = Config::cluster(Some("a"), 2);
            facts.global_database = Ok(0);
        }),
        ("cluster-address", CheckState::Warn, |facts| {
            facts.config = Config::cluster(Some("a"), 0);
            facts.global_database = Ok(0);
        }),
        ("local-database", CheckState::Fail, |facts| {
            facts.config = Config::Unreadable { why: "locked".to_owned() };
            facts.global_database = Ok(0);
        }),
        ("global-database", CheckState::Warn, |facts| facts.config = Config::Absent),
        ("certificates", CheckState::Warn, |facts| facts.certificates.push("cluster.crt".to_owned())),
        ("pool-directories", CheckState::Warn, |facts| {
            facts.pool_directories = Ok(vec![("shared".to_owned(), true)]);
        }),
        ("pool-directories", CheckState::Warn, |facts| {
            facts.pool_directories = Ok(vec![("shared".to_owned(), false)]);
        }),
        ("daemon", CheckState::Warn, |facts| facts.daemon = Daemon::Unknown),
        ("agent-unreachable", CheckState::Fail, |facts| {
            facts.agent = Agent::Unreachable("no socket".to_owned())
        }),
        ("root-unguarded", CheckState::Fail, |facts| {
            facts.agent = Agent::Unguarded(posture(PostureState::Enforcing));
        }),
        ("posture", CheckState::Fail, |facts| {
            facts.agent = Agent::Guards { posture: posture(PostureState::Inactive), in_force: true };
        }),
        ("posture", CheckState::Fail, |facts| {
            facts.agent = Agent::Guards { posture: posture(PostureState::AuditOnly), in_force: true };
        }),
        ("posture", CheckState::Warn, |facts| {
            facts.agent = Agent::Guards { posture: posture(PostureState::Degraded), in_force: true };
        }),
        ("token-expired", CheckState::Fail, |facts| facts.token = Some(Ok(token("2026-04-30T23:59:59Z")))),
        ("token", CheckState::Fail, |facts| facts.token = Some(Err("no base64".to_owned()))),
        ("members", CheckState::Warn, |facts| facts.members = None),
    ];
    for (code, state, change) in cases {
        let mut facts = fit();
        change(&mut facts);
        assert_eq!(found(&facts), [(code.to_owned(), state)], "{code}");
    }
}

#[test]
fn conflicts_of_name_and_address() {
    let mut facts = fit();
    facts.members =
        Some(Ok(vec![member("n2", "https://10.0.0.9:8443"), member("old", "https://10.0.0.2:8443")]));
    let conflicts =
        [("name-conflict".to_owned(), CheckState::Fail), ("address-conflict".to_owned(), CheckState::Fail)];
    assert_eq!(found(&facts), conflicts);
    // The token names the node.
    facts.token = Some(Ok(token("2026-06-01T00:00:00Z")));
    assert_eq!(found(&facts), conflicts[1..]);
    facts.address = Some("10.0.0.2:9443".to_owned());
    assert_eq!(found(&facts), []);
    facts.address = None;
    assert_eq!(found(&facts), []);
}

#[test]
fn the_usual_port_is_added() {
    for (written, meant) in [
        ("10.0.0.1", "10.0.0.1:8443"),
        ("10.0.0.1:99", "10.0.0.1:99"),
        ("n1", "n1:8443"),
        ("fd00::1", "[fd00::1]:8443"),
        ("[fd00::1]", "[fd00::1]:8443"),
        ("[fd00::1]:99", "[fd00::1]:99"),
    ] {
        assert_eq!(with_port(written), meant, "{written}");
    }
}

#[test]
fn temporary_mounts_are_known_by_name() {
    assert!(is_temporary(Path::new("/tmp/incus_cephfs_123/mount")));
    assert!(!is_temporary(Path::new("/var/lib/incus/storage-pools/shared")));
}
