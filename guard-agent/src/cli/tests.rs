//! The text of a fixed status (golden), exit codes, and the command line.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use guard_common::{Mode, Tier};

use super::*;
use crate::model::audit::record::{LeaseKind, ModeCause};
use crate::model::control::report::*;
use crate::model::events::Name;
use crate::model::hints::Hint;
use crate::model::join::{Config, Daemon, Evidence};
use crate::model::posture::{Gap, Posture, PostureState, Reason};
use crate::model::time::{BootOffset, Time};

fn at(second: u64) -> Time {
    BootOffset::between(Duration::from_secs(1_790_000_000), Duration::ZERO)
        .stamp(second * 1_000_000_000)
        .time
}

fn pool(name: &str, mode: Mode) -> PoolReport {
    PoolReport {
        mode_cause: Some(ModeCause::Policy),
        counters: PoolCountersReport { denied: 1_000_000, allowed: 5, would_deny: 0 },
        ..super::fake::pool(name, mode)
    }
}

fn posture(state: PostureState, reasons: Vec<Reason>) -> Posture {
    let gap = Gap { code: "deaf".to_owned(), detail: "what nobody tells it".to_owned() };
    Posture { state, reasons, tier: Some(Name(Tier::BpfLsm)), gaps: vec![gap] }
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn status() -> StatusReport {
    let mut released = pool("scratch\u{1b}[2J", Mode::Released);
    released.mode_cause = Some(ModeCause::Operator);
    released.release_ends = Some(at(700));
    released.remaining_seconds = Some(600);
    let reason = Reason {
        code: "file-truncate-missing".to_owned(),
        detail: "the kernel has no file_truncate hook".to_owned(),
        fix: "run Linux 6.2 or newer".to_owned(),
    };
    let failed = Reason {
        code: "node-failed".to_owned(),
        detail: "/var/lib/incus is join-failed, /srv/another-incus is join-partial".to_owned(),
        fix: "run `guardctl rollback` and then join again: docs/RUNBOOK.md; `guardctl history` \
              tells how it came here"
            .to_owned(),
    };
    let counters = [("denied_sealed", 0), ("denied_guarded", 1_000_000), ("allowed_released", 5)];
    StatusReport {
        posture: PostureReport {
            posture: posture(PostureState::Degraded, vec![reason, failed]),
            proven_at: Some(at(60)),
        },
        agent: AgentReport {
            version: "0.1.0".to_owned(),
            build: "abc123".to_owned(),
            pid: 700,
            started: at(5),
            layout: 3,
        },
        policy: PolicyReport {
            path: "/etc/guard-agent/policy.toml".to_owned(),
            generation: 2,
            hash: "9f86d081884c7d659a2feaa0c55ad015".to_owned(),
            loaded: at(6),
            rejected: Some(RejectedPolicy {
                at: at(50),
                errors: vec!["policy.toml:3: unknown key `rots`; did you mean `roots`?".to_owned()],
            }),
        },
        hints: vec![Hint {
            code: "unnamed-share".to_owned(),
            what: "root /var/lib/incus: fuse.juicefs at /var/lib/incus/devices/c1/data is not \
                   protected"
                .to_owned(),
            fix: "policy does not name that kind there: add \"fuse.juicefs\" to the root's \
                  filesystems"
                .to_owned(),
        }],
        pools: vec![pool("default", Mode::Guarded), released],
        roots: vec![RootReport {
            path: "/var/lib/incus".to_owned(),
            in_force: true,
            detail: None,
            filesystems: vec!["ceph".to_owned(), "nfs".to_owned()],
            mode: Name(Mode::Guarded),
        }],
        nodes: vec![NodeReport {
            root: "/var/lib/incus".to_owned(),
            state: "join-failed".to_owned(),
            kept: None,
            mode: Name(Mode::Sealed),
            unconfirmed: Vec::new(),
            since: at(40),
            because: Some(
                "cluster.https_address is 10.0.0.2:8443, and there are no raft nodes; no join runs"
                    .to_owned(),
            ),
            evidence: Some(Evidence {
                config: Config::cluster(Some("10.0.0.2:8443"), 0),
                daemon: Daemon::Stopped,
                ..Evidence::none()
            }),
            looked: Some(at(60)),
        }],
        leases: vec![LeaseReport {
            id: "r-1".to_owned(),
            pool: "scratch".to_owned(),
            kind: LeaseKind::Release,
            reason: "decommission".to_owned(),
            uid: 0,
            login_uid: Some(1_000),
            granted: at(100),
            ends: at(700),
            remaining_seconds: 600,
        }],
        counters: counters.map(|(name, count)| (name.to_owned(), count)).into(),
        reconciled: Reconciled { decisions: 1_000_005, emitted: 21, aggregated: 999_984, lost: 0 },
        audit: AuditReport {
            path: "/var/log/guard-agent/audit.jsonl".to_owned(),
            sequence: 42,
            write_failures: 3,
            dropped: 0,
            pending: 0,
        },
        answered_by: AnsweredBy::Agent,
    }
}

fn empty() -> StatusReport {
    let mut status = status();
    status.posture = PostureReport {
        posture: posture(PostureState::Enforcing, Vec::new()),
        proven_at: Some(at(60)),
    };
    status.policy.rejected = None;
    (status.pools, status.roots, status.leases) = (Vec::new(), Vec::new(), Vec::new());
    status.nodes = Vec::new();
    status.hints = Vec::new();
    status.counters = BTreeMap::new();
    (status.reconciled, status.audit.write_failures) = (Reconciled::default(), 0);
    status
}

#[test]
fn a_status_reads_as_the_golden_file_says() {
    let text = format!("{}----\n{}", status::render(&status()), status::render(&empty()));
    assert_eq!(text, include_str!("status.golden"), "the text changed:\n{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "a line is too long:\n{text}");
}

#[test]
fn a_status_is_the_same_after_a_trip_through_json() {
    let json = serde_json::to_string(&status()).unwrap();
    assert_eq!(serde_json::from_str::<StatusReport>(&json).unwrap(), status());
    assert!(json.starts_with(r#"{"posture":{"state":"degraded","reasons":[{"code":"#), "{json}");
}

#[test]
fn the_exit_code_is_the_postures() {
    for (state, code) in [
        (PostureState::Enforcing, 0),
        (PostureState::Degraded, 7),
        (PostureState::AuditOnly, 7),
        (PostureState::Inactive, 4),
    ] {
        assert_eq!(status::exit(state) as u8, code);
    }
}

#[test]
fn every_event_reads_as_the_golden_file_says() {
    let mut text: String = include_str!("../model/audit/golden.jsonl")
        .lines()
        .map(|line| events::render_line(line) + "\n")
        .collect();
    text += &(events::render_line("{\"lagged\":7}") + "\n");
    assert_eq!(text, include_str!("events.golden"), "the text changed:\n{text}");
}

#[test]
fn the_command_line_is_understood() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
    let parse = |line: &str| Cli::try_parse_from(line.split(' '));
    let cli =
        parse("guardctl release default --ttl 1h30m --reason why --json --run-dir /r").unwrap();
    assert!(cli.global.json && cli.global.run_dir == Path::new("/r"));
    let Command::Release(args) = cli.command else { panic!("another command") };
    assert_eq!((args.ttl, args.reason.as_str()), (Some(Duration::from_secs(5_400)), "why"));
    let cli = parse("guardctl events -f -n 5 --kind lease --since 2026-09-21T14:13:20Z").unwrap();
    let Command::Events(args) = cli.command else { panic!("another command") };
    assert_eq!((args.follow, args.lines, args.since), (true, 5, Some(at(0))));
    for wrong in
        ["release default --ttl 10 --reason r", "release default", "events --since soon", "frob"]
    {
        assert!(parse(&format!("guardctl {wrong}")).is_err(), "{wrong}");
    }
}

#[test]
fn no_agent_is_exit_code_five_with_advice() {
    let directory = tempfile::tempdir().unwrap();
    let run_dir = directory.path().display().to_string();
    let cli = Cli::try_parse_from(["guardctl", "lease", "list", "--run-dir", &run_dir]).unwrap();
    let error = run(&cli, &mut Vec::new()).unwrap_err();
    assert_eq!(error.exit(), Exit::Unreachable);
    let mut text = Vec::new();
    explain(&error, &mut text);
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.contains("No such file") && text.contains("fix: is it running? systemctl status"),
        "{text}"
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let error = CliError::Output(io::ErrorKind::BrokenPipe.into());
    assert_eq!(error.exit(), Exit::Ok);
    assert_eq!(CliError::Output(io::ErrorKind::StorageFull.into()).exit(), Exit::Failure);
}
