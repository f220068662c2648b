//! The text of a fixed answer without an agent (golden), exit codes, and the command line as a
//! whole.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser;
use guard_common::{Mode, Tier};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr};

use super::*;
use crate::cli::offline::{Cause, Counters, LastPosture, OfflinePosture, Responder};
use crate::cli::{Cli, run};
use crate::model::audit::record::Record;
use crate::model::control::report::{AnsweredBy, PoolCountersReport, PoolReport, Reconciled};
use crate::model::events::Name;
use crate::model::posture::PostureState;
use crate::model::time::{BootOffset, Time};

fn at(second: u64) -> Time {
    BootOffset::between(Duration::from_secs(1_790_000_000), Duration::ZERO)
        .stamp(second * 1_000_000_000)
        .time
}

fn pool() -> PoolReport {
    PoolReport {
        name: "default".to_owned(),
        pool_id: "0000000000c0ffee".to_owned(),
        device: "0:44".to_owned(),
        filesystem: "ceph".to_owned(),
        source: "admin@fsid.cephfs=/".to_owned(),
        mountpoints: vec!["/var/lib/incus/storage-pools/default".to_owned()],
        root: None,
        mode: Name(Mode::Guarded),
        mode_cause: None,
        generation: 3,
        release_ends: None,
        remaining_seconds: None,
        counters: PoolCountersReport { denied: 7, allowed: 5, would_deny: 0 },
        answered_by: AnsweredBy::PinsAndFiles,
    }
}

fn load(tier: Tier) -> Load {
    let hooks = ["path_unlink", "path_rmdir"].map(str::to_owned).to_vec();
    Load { tier: Name(tier), identity: "c0ffee".to_owned(), linked: hooks, unlinked: Vec::new() }
}

fn report() -> OfflineReport {
    let silence = Silence {
        cause: Cause::NotRunning,
        detail:
            "the agent cannot be reached on /run/guard-agent/control.sock: Connection refused (os \
             error 111)"
                .to_owned(),
        pid: None,
    };
    let last = LastPosture {
        state: PostureState::Degraded,
        tier: Some(Name(Tier::BpfLsm)),
        reasons: vec!["node-failed".to_owned(), "policy-rejected".to_owned()],
    };
    let log = include_str!("../../model/audit/golden.jsonl");
    let records: Vec<Record> =
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let find = |kind: &str| {
        records.iter().find(|record| format!("{:?}", record.kind) == kind).unwrap().clone()
    };
    let crate::model::audit::Body::Agent(agent) = find("Agent").body else {
        panic!("no record of the agent")
    };
    let crate::model::audit::Body::Policy(policy) = find("Policy").body else {
        panic!("no record of a policy")
    };
    OfflineReport {
        posture: OfflinePosture {
            state: "unproven",
            agent: silence,
            last: Some(Known { time: at(60), what: last }),
        },
        in_force: Some(InForce { loads: vec![load(Tier::BpfLsm)], ..InForce::default() }),
        agent: Some(Known { time: at(5), what: agent }),
        policy: Some(Known { time: at(6), what: policy }),
        pools: Some(vec![pool()]),
        leases: Some(Vec::new()),
        nodes: Some(vec![NodeOnFile {
            root: "/var/lib/incus".to_owned(),
            state: "join-failed".to_owned(),
            since: at(40),
            because: Some(
                "cluster.https_address is 10.0.0.2:8443, and there are no raft nodes".to_owned(),
            ),
        }]),
        counters: Some(Counters {
            reconciled: Reconciled { decisions: 7, emitted: 7, aggregated: 0, lost: 0 },
            by_name: BTreeMap::from([
                ("denied_guarded".to_owned(), 7),
                ("denied_sealed".to_owned(), 0),
            ]),
        }),
        events: vec![find("Posture"), find("Agent")],
        unknown: Vec::new(),
        time: at(90),
        answered_by: AnsweredBy::PinsAndFiles,
    }
}

/// The report that a member of the group `guard` gets about a stopped agent.
fn reader_report() -> OfflineReport {
    let unknown = |what: &str, path: &str| Unknown {
        what: what.to_owned(),
        why: format!("{path}: Permission denied (os error 13)"),
        needs_root: true,
    };
    OfflineReport {
        posture: OfflinePosture { state: "unproven", agent: Silence::stopped(700), last: None },
        in_force: None,
        pools: None,
        leases: None,
        nodes: None,
        counters: None,
        unknown: vec![
            unknown("what is in force", "/sys/fs/bpf/guard-agent"),
            unknown("pools, modes and counters", "/sys/fs/bpf/guard-agent/maps"),
        ],
        ..report()
    }
}

#[test]
fn an_answer_without_an_agent_reads_as_the_golden_file_says() {
    let text = format!("{}----\n{}", render(&report()), render(&reader_report()));
    assert_eq!(text, include_str!("offline.golden"), "the text changed:\n{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "a line is too long:\n{text}");
}

#[test]
fn json_says_who_has_answered_and_proves_nothing() {
    let json = serde_json::to_value(report()).unwrap();
    assert_eq!(
        (&json["answered_by"], &json["posture"]["state"]),
        (&"pins-and-files".into(), &"unproven".into())
    );
    assert_eq!(json["posture"]["agent"]["cause"], "not-running");
    assert_eq!(json["posture"]["last"]["state"], "degraded");
    assert_eq!(json["in_force"]["loads"][0]["tier"], "bpf-lsm");
    assert_eq!(json["pools"][0]["answered_by"], "pins-and-files");
    assert!(json["pools"][0]["root"].is_null());
    let json = serde_json::to_value(reader_report()).unwrap();
    assert!(json["pools"].is_null() && json["unknown"][0]["needs_root"] == true, "{json}");
}

#[test]
fn what_holds_without_the_agent_is_told_tier_by_tier() {
    let mut found = InForce { loads: vec![load(Tier::FmodRet)], ..InForce::default() };
    assert!(in_force(&found).contains("tier fmod-ret are pinned and attached to 2 hooks"));
    found.loads[0].unlinked = vec!["sb_delete".to_owned()];
    assert!(in_force(&found).contains("no longer to sb_delete"));
    let responders = vec![Responder { pid: 712, is_stopped: false }];
    let told = in_force(&InForce { responders, ..InForce::default() });
    assert!(told.contains("process 712 answers; it goes on without the agent"), "{told}");
    let told = in_force(&InForce { read_only_mounts: 2, ..InForce::default() });
    assert!(told.contains("2 mounts") && told.contains("no process answers"), "{told}");
    assert!(in_force(&InForce::default()).starts_with("nothing:"));
}

/// Runs a command line against places below a directory.
fn guardctl(directory: &Path, words: &str) -> (Exit, String) {
    let at = |name: &str| directory.join(name).display().to_string();
    let line = format!(
        "guardctl --run-dir {} --timeout 1s {words} --pin-dir {} --state-dir {} --audit {}",
        directory.display(),
        at("pins"),
        at("state"),
        at("audit.jsonl")
    );
    let cli = Cli::try_parse_from(line.split(' ')).unwrap();
    let mut out = Vec::new();
    let exit = run(&cli, &mut out).unwrap();
    (exit, String::from_utf8(out).unwrap())
}

#[test]
fn nothing_in_force_is_told_as_such() {
    let directory = tempfile::tempdir().unwrap();
    let (exit, text) = guardctl(directory.path(), "status");
    assert_eq!(exit, Exit::Inactive, "{text}");
    assert!(text.starts_with("posture    unproven: the agent does not run\n"), "{text}");
    assert!(text.contains("in force   nothing:"), "{text}");
    let (exit, text) = guardctl(directory.path(), "pools");
    assert_eq!((exit, text.as_str()), (Exit::Unreachable, ""));
}

#[test]
fn events_come_from_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let log = include_str!("../../model/audit/golden.jsonl");
    std::fs::write(directory.path().join("audit.jsonl"), log).unwrap();
    let (exit, text) = guardctl(directory.path(), "events -n 2 --json");
    assert_eq!(exit, Exit::Unreachable);
    let last: Vec<&str> = log.lines().collect();
    assert_eq!(text.lines().collect::<Vec<&str>>(), last[last.len() - 2..]);
}

#[test]
fn a_queue_that_is_full_holds_nobody_up() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join(crate::host::paths::SOCKET_NAME);
    let kind = (AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC);
    let listener = nix::sys::socket::socket(kind.0, kind.1, kind.2, None).unwrap();
    nix::sys::socket::bind(listener.as_raw_fd(), &UnixAddr::new(&socket).unwrap()).unwrap();
    nix::sys::socket::listen(&listener, Backlog::new(1).unwrap()).unwrap();
    // A client beyond the queue waits: without a limit, for ever.
    let limit = Duration::from_millis(50);
    let connected: Vec<_> =
        std::iter::from_fn(|| Client::connect(directory.path(), limit).ok()).take(20).collect();
    assert!(connected.len() < 20, "the queue has no end");
    let (exit, text) = guardctl(directory.path(), "status");
    assert!(matches!(exit, Exit::Unreachable | Exit::Inactive), "{text}");
    assert!(text.starts_with("posture    unproven: the agent does not answer\n"), "{text}");
}

#[test]
fn an_agent_that_takes_no_connection_is_waited_for_no_longer_than_the_limit() {
    let directory = tempfile::tempdir().unwrap();
    // It accepts nothing, and its queue is never emptied.
    let _listener =
        UnixListener::bind(directory.path().join(crate::host::paths::SOCKET_NAME)).unwrap();
    for words in ["status", "pools", "events"] {
        let began = Instant::now();
        let (exit, text) = guardctl(directory.path(), words);
        assert!(matches!(exit, Exit::Unreachable | Exit::Inactive), "{text}");
        assert!(began.elapsed() < Duration::from_secs(10), "{words} took {:?}", began.elapsed());
        assert!(words != "status" || text.contains("does not answer"), "{text}");
    }
}
