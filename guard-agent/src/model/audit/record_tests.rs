//! The schema's golden file: one line a kind. A difference there is a change of the public schema.

use std::time::Duration;

use guard_common::{Hook, IncidentKey, IncidentValue, Mode, Operation, Reason, Tier, Verdict};

use super::*;
use crate::model::events::{Decision, DecisionPath, Name, Summary};
use crate::model::posture;
use crate::model::time::BootOffset;

fn offset() -> BootOffset {
    BootOffset::between(Duration::from_secs(1_790_000_000), Duration::ZERO)
}

fn place() -> Place {
    Place {
        pool_id: Some(pool_id_text(0xc0ffee)),
        pool: Some("default".to_owned()),
        mountpoint: Some("/var/lib/incus/storage-pools/default".to_owned()),
        generation: Some(3),
    }
}

fn decision() -> Body {
    let decision = Decision {
        boot_ns: 5_000_000_123,
        start_boot_ns: 4_000_000_000,
        generation: Some(3),
        pool_id: Some(0xc0ffee),
        cgroup_id: 4_711,
        parent_ino: 1_099_511_627_776,
        target_ino: 1_099_511_627_777,
        incident_count: 1,
        hook: Hook::PathUnlink,
        operation: Operation::Unlink,
        verdict: Verdict::Denied,
        reason: Reason::Sealed,
        mode: Some(Mode::Sealed),
        pid: 812,
        tgid: 812,
        ppid: 800,
        uid: 0,
        euid: 0,
        login_uid: Some(1_000),
        mnt_ns: 4_026_531_841,
        mount_ns: Some(4_026_531_841),
        mount_id: Some(77),
        dev: 44,
        tier: Tier::BpfLsm,
        kernel_thread: false,
        comm: "rm".to_owned(),
        path: DecisionPath::from_leaf_first(b"caf\xe9.txt\0images\0", false),
    };
    Body::Decision(Box::new(DecisionBody::new(&decision, offset(), place())))
}

fn incident() -> Body {
    let mut comm = [0; 16];
    comm[..2].copy_from_slice(b"rm");
    let summary = Summary {
        key: IncidentKey {
            generation: 3,
            start_boot_ns: 4_000_000_000,
            tgid: 812,
            dev: 44,
            reason: Reason::Sealed as u32,
            verdict: Verdict::Denied as u32,
        },
        value: IncidentValue {
            count: 1_000_000,
            emitted: 16,
            lost: 4,
            first_boot_ns: 5_000_000_123,
            last_boot_ns: 9_000_000_456,
            pool_id: 0xc0ffee,
            uid: 0,
            login_uid: u32::MAX,
            comm: [0, 8].map(|at| u64::from_ne_bytes(comm[at..at + 8].try_into().unwrap())),
        },
        ended: true,
    };
    Body::Incident(Box::new(IncidentBody::new(&summary, offset(), place())))
}

fn one_a_kind() -> Vec<Body> {
    let ends = offset().stamp(600_000_000_000).time;
    let reason = posture::Reason {
        code: "bpf-not-in-lsm-list".to_owned(),
        detail: "active: capability,yama".to_owned(),
        fix: "add bpf to lsm= on the kernel command line".to_owned(),
    };
    vec![
        decision(),
        incident(),
        Body::Pool(PoolBody {
            change: PoolChange::Appeared,
            place: place(),
            device: device_text(44),
            filesystem: "ceph".to_owned(),
            source: "admin@fsid.cephfs=/".to_owned(),
            mode: Some(Name(Mode::Guarded)),
        }),
        Body::Mode(ModeBody {
            place: place(),
            from: Some(Name(Mode::Guarded)),
            to: Name(Mode::Sealed),
            cause: ModeCause::Operator,
            uid: Some(0),
            login_uid: Some(1_000),
        }),
        Body::Lease(LeaseBody {
            change: LeaseChange::Granted,
            id: "r-1".to_owned(),
            lease_kind: LeaseKind::Release,
            place: place(),
            ttl_seconds: 600,
            ends,
            reason: "decommission".to_owned(),
            uid: 0,
            login_uid: None,
        }),
        Body::Policy(PolicyBody {
            change: PolicyChange::Rejected,
            path: "/etc/guard-agent/policy.toml".to_owned(),
            generation: 2,
            hash: "9f86d081".to_owned(),
            errors: vec!["policy.toml:3: unknown key `rots`".to_owned()],
        }),
        Body::Posture(PostureBody {
            from: Some(posture::PostureState::Enforcing),
            posture: posture::Posture {
                state: posture::PostureState::Inactive,
                reasons: vec![reason],
                tier: None,
                gaps: Vec::new(),
            },
        }),
        Body::Agent(AgentBody {
            change: AgentChange::Upgraded,
            version: "0.1.0".to_owned(),
            build: "abc123".to_owned(),
            pid: 700,
            previous_build: Some("def456".to_owned()),
        }),
        Body::Node(NodeBody {
            root: "/var/lib/incus".to_owned(),
            from: "joining".to_owned(),
            to: "join-failed".to_owned(),
            mode: Name(Mode::Sealed),
            because:
                "cluster.https_address is 10.0.0.2:8443, and there are no raft nodes; no join runs"
                    .to_owned(),
        }),
    ]
}

fn records() -> Vec<Record> {
    let origin = Origin { host: "node1".to_owned(), boot_id: "7f9c-boot".to_owned() };
    let stamp = offset().stamp(9_000_000_456);
    one_a_kind()
        .into_iter()
        .zip(1..)
        .map(|(body, sequence)| Record::new(&origin, sequence, stamp, body))
        .collect()
}

#[test]
fn every_kind_is_written_as_the_golden_file_says() {
    let lines: String = records().iter().map(Record::to_line).collect();
    assert_eq!(lines, include_str!("golden.jsonl"), "the schema changed:\n{lines}");
}

#[test]
fn every_kind_is_read_back() {
    for record in records() {
        let read: Record = serde_json::from_str(&record.to_line()).unwrap();
        assert_eq!(read, record);
        assert_eq!(read.kind, read.body.kind());
    }
}

#[test]
fn device_numbers_are_those_of_mountinfo() {
    assert_eq!(device_text(guard_common::policy::kernel_dev(259, 70_000)), "259:70000");
}
