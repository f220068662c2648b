//! Nodes in all conditions, and their findings.

use std::path::PathBuf;

use super::members::{Member, Token};
use super::*;
use crate::host::doctor::{CheckState, worst};
use crate::model::join::Incarnation;
use crate::model::posture::Posture;
use crate::model::posture::Reason;
use crate::model::rollback::MountPlace;
use crate::model::time::Time;

fn time(text: &str) -> Time {
    Time(text.parse().unwrap())
}

fn posture(state: PostureState) -> Posture {
    let reason =
        Reason { code: "code".to_owned(), detail: "detail".to_owned(), fix: "fix".to_owned() };
    Posture { state, reasons: vec![reason], tier: None, gaps: Vec::new() }
}

/// A fresh node, with nothing to be said against it.
pub(super) fn fit() -> Facts {
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
        address_is_local: Some(true),
        core_address: None,
        version: Version::parse("7.0.2"),
        api_extensions: None,
        cluster: None,
        ceph: None,
        stale: None,
        members: Some(Ok(vec![member("n1", "https://10.0.0.1:8443")])),
        token: None,
        preseed: None,
        now: time("2026-05-01T00:00:00Z"),
    }
}

pub(super) fn leftover() -> Leftover {
    let place = MountPlace { namespace: 9, in_host: false, pid: 77, mountpoint: "/x".to_owned() };
    Leftover { place, fs_type: "ceph".to_owned(), source: "a@b.c=/".to_owned() }
}

fn member(name: &str, url: &str) -> Member {
    Member { server_name: name.to_owned(), url: url.to_owned(), status: "Online".to_owned() }
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
            facts.leftovers = Ok(vec![leftover()]);
        }),
        ("leftover-mounts", CheckState::Fail, |facts| {
            facts.leftovers = Err("no permission".to_owned())
        }),
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
        ("certificates", CheckState::Warn, |facts| {
            facts.certificates.push("cluster.crt".to_owned())
        }),
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
            facts.agent =
                Agent::Guards { posture: posture(PostureState::Inactive), in_force: true };
        }),
        ("posture", CheckState::Fail, |facts| {
            facts.agent =
                Agent::Guards { posture: posture(PostureState::AuditOnly), in_force: true };
        }),
        ("posture", CheckState::Warn, |facts| {
            facts.agent =
                Agent::Guards { posture: posture(PostureState::Degraded), in_force: true };
        }),
        ("token-expired", CheckState::Fail, |facts| {
            facts.token = Some(Ok(token("2026-04-30T23:59:59Z")))
        }),
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
    facts.members = Some(Ok(vec![
        member("n2", "https://10.0.0.9:8443"),
        member("old", "https://10.0.0.2:8443"),
    ]));
    let conflicts = [
        ("name-conflict".to_owned(), CheckState::Fail),
        ("address-conflict".to_owned(), CheckState::Fail),
    ];
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
fn temporary_mounts_are_known_by_name() {
    assert!(is_temporary(Path::new("/tmp/incus_cephfs_123/mount")));
    assert!(!is_temporary(Path::new("/var/lib/incus/storage-pools/shared")));
}

/// A fit node, with a preseed and a list of members from files.
fn from_samples(preseed: &str, members: &str) -> Facts {
    let preseed = super::preseed::parse(preseed).unwrap();
    let token =
        preseed.cluster_token.as_deref().map(|token| super::members::decode_token(token).unwrap());
    Facts {
        server_name: preseed.server_name.clone().unwrap_or_else(|| "host".to_owned()),
        address: preseed.server_address.clone(),
        token: token.map(Ok),
        preseed: Some(Ok(preseed)),
        members: Some(Ok(super::members::parse_members(members).unwrap())),
        ..fit()
    }
}

#[test]
fn an_address_conflict_is_found_however_it_is_written() {
    let (ipv4, ipv6) = (
        include_str!("samples/members-conflict-address.json"),
        include_str!("samples/members-ipv6.json"),
    );
    let conflict = [("address-conflict".to_owned(), CheckState::Fail)];
    for (preseed, members) in [
        (include_str!("samples/preseed-inline-comments.yaml"), ipv4),
        (include_str!("samples/preseed-quoted.yaml"), ipv4),
        (include_str!("samples/preseed-anchor.yaml"), ipv4),
        (include_str!("samples/preseed-json.json"), ipv4),
        (include_str!("samples/cloud-init-write-files.yaml"), ipv4),
        (include_str!("samples/preseed-ipv6.yaml"), ipv6),
    ] {
        assert_eq!(found(&from_samples(preseed, members)), conflict, "{preseed}");
    }
    let folded = from_samples(include_str!("samples/preseed-folded-token.yaml"), ipv6);
    let other = Facts { members: fit().members, ..folded };
    assert_eq!(found(&other), [], "a good token, and no conflict");
    let members = vec![member("old", "https://Biggie2.home:8443")];
    let named =
        Facts { address: Some("biggie2.home".to_owned()), members: Some(Ok(members)), ..fit() };
    assert_eq!(found(&named), conflict);
}

#[test]
fn a_preseed_that_incus_would_refuse_is_told() {
    let fail = |code: &str| [(code.to_owned(), CheckState::Fail)];
    let unreadable = Facts { preseed: Some(Err("it is no YAML".to_owned())), ..fit() };
    assert_eq!(found(&unreadable), fail("preseed"));
    let preseed =
        |text: &str| Facts { preseed: Some(Ok(super::preseed::parse(text).unwrap())), ..fit() };
    assert_eq!(found(&preseed(include_str!("samples/preseed-new-cluster.yaml"))), fail("preseed"));
    assert_eq!(
        found(&preseed("cluster: {cluster_address: 10.0.0.1}")),
        fail("preseed"),
        "no server_address"
    );
    for address in [":8443", "0.0.0.0", "[::]:8443"] {
        let wildcard = Facts { address: Some(address.to_owned()), ..fit() };
        assert_eq!(found(&wildcard), fail("address-wildcard"), "{address}");
    }
}

fn listed(name: &str, url: &str, status: &str) -> Member {
    Member { status: status.to_owned(), ..member(name, url) }
}

fn server(version: &str, api_extensions: usize) -> Server {
    Server { version: Version::parse(version).unwrap(), api_extensions }
}

#[test]
fn an_address_that_a_failed_join_has_set_binds_some_versions() {
    let begun = |set: &str, address: &str, version: Option<&str>| {
        let config = Config::cluster(Some(set), 0);
        let version = version.and_then(Version::parse);
        let facts = Facts {
            config,
            version,
            address: Some(address.to_owned()),
            global_database: Ok(0),
            ..fit()
        };
        let check =
            checks(&facts).into_iter().find(|check| check.code == "cluster-address").unwrap();
        (check.state, check.fix.unwrap().contains("unset cluster.https_address"))
    };
    let (again, unset) = ((CheckState::Warn, false), (CheckState::Fail, true));
    assert_eq!(begun("10.0.0.2:8443", "10.0.0.2", Some("7.0.2")), again, "the same address");
    assert_eq!(begun("[FD42:0::7]:8443", "fd42::7", Some("7.0.2")), again);
    for (version, expected) in [
        (Some("6.0.4"), again),
        (Some("6.14"), again),
        (Some("6.0.5"), unset),
        (Some("6.15"), unset),
        (Some("7.0.2"), unset),
        (None, (CheckState::Warn, true)),
    ] {
        assert_eq!(begun("10.0.0.9:8443", "10.0.0.2", version), expected, "{version:?}");
    }
    assert_eq!(begun("n2.example:8443", "10.0.0.2", Some("7.0.2")), (CheckState::Warn, true));
}

#[test]
fn a_wildcard_in_core_https_address_stops_older_versions() {
    let with = |core: &str, version: &str| {
        let (core_address, version) = (Some(core.to_owned()), Version::parse(version));
        found(&Facts { core_address, version, ..fit() })
    };
    let fail = [("core-address".to_owned(), CheckState::Fail)];
    assert_eq!(with(":8443", "6.0.4"), fail);
    assert_eq!(with("[::]:8443", "6.13"), fail);
    for (core, version) in [
        (":8443", "6.0.5"),
        (":8443", "7.0.2"),
        ("10.0.0.2:8443", "6.0.4"),
        (":9999", "6.0.4"),
        ("10.0.0.9", "7.0.2"),
    ] {
        assert_eq!(with(core, version), [], "{core} {version}");
    }
}

#[test]
fn versions_and_api_extensions_must_be_the_clusters() {
    let with = |own: Option<&str>, extensions, cluster| {
        let version = own.and_then(Version::parse);
        found(&Facts { version, api_extensions: extensions, cluster: Some(cluster), ..fit() })
    };
    let differs = [("version-differs".to_owned(), CheckState::Fail)];
    assert_eq!(with(Some("7.0.2"), None, Ok(server("7.0.2", 540))), []);
    assert_eq!(with(Some("7.0.2"), Some(540), Ok(server("7.0.2", 540))), []);
    assert_eq!(with(Some("7.0.2"), Some(541), Ok(server("7.0.2", 540))), differs);
    assert_eq!(with(Some("6.0.4"), None, Ok(server("7.0.2", 540))), differs);
    let warn = [("version".to_owned(), CheckState::Warn)];
    assert_eq!(with(None, None, Ok(server("7.0.2", 540))), warn);
    assert_eq!(with(Some("7.0.2"), None, Err("no answer".to_owned())), warn);
}

#[test]
fn the_condition_of_the_cluster() {
    let with = |members: Vec<Member>| found(&Facts { members: Some(Ok(members)), ..fit() });
    let n1 = || listed("n1", "https://10.0.0.1:8443", "Online");
    let other = |status: &str| listed("n4", "https://10.0.0.4:8443", status);
    assert_eq!(with(vec![n1(), other("Evacuated")]), []);
    assert_eq!(
        with(vec![n1(), other("Offline")]),
        [("members-offline".to_owned(), CheckState::Warn)]
    );
    assert_eq!(
        with(vec![n1(), other("Blocked")]),
        [("members-blocked".to_owned(), CheckState::Fail)]
    );
    let sample = super::members::parse_members(include_str!("samples/members-3.json")).unwrap();
    assert_eq!(with(sample), [("members-offline".to_owned(), CheckState::Warn)]);
}

#[test]
fn files_of_ceph_and_foreign_addresses() {
    let missing = |is_certain| {
        let what = "/etc/ceph/ceph.conf: No such file".to_owned();
        vec![Missing { pool: "shared".to_owned(), what, is_certain }]
    };
    let with = |ceph| found(&Facts { ceph: Some(ceph), ..fit() });
    assert_eq!(with(Ok(Vec::new())), []);
    assert_eq!(with(Ok(missing(true))), [("ceph".to_owned(), CheckState::Fail)]);
    assert_eq!(with(Ok(missing(false))), [("ceph".to_owned(), CheckState::Warn)]);
    assert_eq!(with(Err("no answer".to_owned())), [("ceph".to_owned(), CheckState::Warn)]);
    let foreign = Facts { address_is_local: Some(false), ..fit() };
    assert_eq!(found(&foreign), [("address-foreign".to_owned(), CheckState::Warn)]);
}
