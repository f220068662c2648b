//! An answer of Incus: a line with the HTTP status, a line with the server's own cluster address
//! (empty: none is set), then the body.

use guard_agent::model::incus::answers::{Answer, joins, members};
use guard_agent::model::join::{Config, Evidence, JoinOperation, Membership};

/// Length shown of an unexpected answer.
const SHOWN: usize = 1100;

pub fn check(input: &[u8]) {
    let mut parts = input.splitn(3, |byte| *byte == b'\n');
    let mut line = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (status, address) = (line().parse().unwrap_or(200), line());
    let answer = Answer { status, body: parts.next().unwrap_or_default().to_vec() };
    let cluster_address = Some(address).filter(|address| !address.is_empty());
    let has_address = cluster_address.is_some();
    let config = Config::Read { cluster_address, raft_nodes: 1, name: None };

    let joins = joins(&answer);
    match &joins {
        Ok(operation) => assert!(status == 200 && *operation != JoinOperation::Unknown),
        Err(why) => assert!(!why.is_empty() && why.len() <= SHOWN, "{} bytes are shown", why.len()),
    }
    let (membership, name) = members(&answer, &config);
    match &membership {
        Membership::Member | Membership::NotListed => assert!(status == 200 && has_address),
        Membership::NoAnswer { why } => {
            assert!(!why.is_empty() && why.len() <= SHOWN, "{} bytes are shown", why.len())
        }
        Membership::Starting | Membership::NotClustered => {
            assert_ne!(joins.as_ref(), Ok(&JoinOperation::None))
        }
        Membership::NotAsked => panic!("it was asked"),
    }
    assert!(name.is_none() || membership == Membership::Member);
    let operation = joins.unwrap_or(JoinOperation::Unknown);
    let evidence = Evidence { config, operation, membership, ..Evidence::none() };
    let text = serde_json::to_string(&evidence).expect("evidence has string keys");
    assert_eq!(serde_json::from_str::<Evidence>(&text).expect("evidence is read back"), evidence);
}
