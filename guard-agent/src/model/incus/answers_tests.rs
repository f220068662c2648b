//! Incus's answers, as 6.0.4 was seen to give them while a node joined, and others.

use proptest::prelude::*;

use super::*;

fn answer(status: u16, body: &str) -> Answer {
    Answer { status, body: body.as_bytes().to_vec() }
}

fn success(metadata: &str) -> Answer {
    let head = r#""type":"sync","status":"Success","status_code":200,"operation":"","error_code":0,"error":"""#;
    answer(200, &format!(r#"{{{head},"metadata":{metadata}}}"#))
}

fn failure(code: u16, text: &str) -> Answer {
    let head = r#""type":"error","status":"","status_code":0,"operation":"""#;
    answer(code, &format!(r#"{{{head},"error_code":{code},"error":"{text}","metadata":null}}"#))
}

fn config(address: &str) -> Config {
    Config::cluster(Some(address), 2)
}

fn two_members() -> Answer {
    let member = |role: &str, name: &str, address: &str| {
        format!(
            r#"{{"roles":[{role}],"failure_domain":"default","description":"","config":{{}},"groups":["default"],"server_name":"{name}","url":"https://{address}","database":true,"status":"Online","message":"Fully operational","architecture":"x86_64"}}"#
        )
    };
    success(&format!(
        "[{},{}]",
        member(r#""database-leader","database""#, "node1", "10.0.2.11:8443"),
        member(r#""database-standby""#, "node2", "10.0.2.15:8443")
    ))
}

fn membership(answer: &Answer, config: &Config) -> Membership {
    members(answer, config).0
}

#[test]
fn this_server_is_found_by_its_address() {
    let found = members(&two_members(), &config("10.0.2.15:8443"));
    assert_eq!(found, (Membership::Member, Some("node2".to_owned())));
    assert_eq!(
        membership(&two_members(), &config("10.0.2.15")),
        Membership::Member,
        "the usual port"
    );
    assert_eq!(membership(&two_members(), &config("10.0.2.1:8443")), Membership::NotListed);
    assert_eq!(membership(&two_members(), &config("10.0.2.15:8444")), Membership::NotListed);
    assert_eq!(membership(&success("[]"), &config("10.0.2.15:8443")), Membership::NotListed);
}

#[test]
fn addresses_are_compared_as_they_are_meant() {
    let listed = |url: &str| success(&format!(r#"[{{"server_name":"node2","url":"{url}"}}]"#));
    for (url, own) in [
        ("https://[fd00::1]:8443", "[FD00:0:0::1]:8443"),
        ("https://[fd00::1]:8443", "fd00::1"),
        ("https://Node2.example:8443/", "node2.example"),
    ] {
        assert_eq!(membership(&listed(url), &config(own)), Membership::Member, "{url} {own}");
    }
    assert_eq!(
        membership(&listed("https://[fd00::1]:8443"), &config("[fd00::2]:8443")),
        Membership::NotListed
    );
}

#[test]
fn what_is_no_list_says_what_it_says() {
    let own = config("10.0.2.15:8443");
    for code in [400, 500] {
        assert_eq!(
            membership(&failure(code, "Server is not clustered"), &own),
            Membership::NotClustered
        );
    }
    assert_eq!(membership(&failure(503, "Daemon is starting up"), &own), Membership::Starting);
    assert_eq!(membership(&answer(503, "busy"), &own), Membership::Starting);
    let no_answer = |answer: &Answer, config: &Config| match membership(answer, config) {
        Membership::NoAnswer { why } => why,
        other => panic!("{other:?}"),
    };
    assert!(
        no_answer(&failure(500, "Failed to begin transaction"), &own)
            .contains("Failed to begin transaction")
    );
    assert!(no_answer(&answer(200, "<html>Server is not clustered"), &own).contains("<html>"));
    assert!(no_answer(&success("null"), &own).contains("unexpected"));
    assert!(
        no_answer(&success(r#"[{"server_name":"node2"}]"#), &own).contains("without addresses")
    );
    assert!(
        no_answer(&success(r#"["/1.0/cluster/members/node2"]"#), &own)
            .contains("without addresses")
    );
    let unreadable = Config::Unreadable { why: "locked".to_owned() };
    let none = Config::cluster(None, 0);
    for config in [unreadable, none, Config::Absent] {
        assert!(no_answer(&two_members(), &config).contains("no cluster.https_address"));
    }
}

#[test]
fn an_error_that_is_a_book_is_cut() {
    let book = "ä".repeat(4_000_000);
    let Membership::NoAnswer { why } = membership(&failure(500, &book), &config("10.0.2.15:8443"))
    else {
        panic!("an error is no answer")
    };
    assert!(
        why.starts_with("500: ää") && why.ends_with("ä…") && why.len() < 1100,
        "{} bytes",
        why.len()
    );
    let operations = joins(&failure(500, &book)).unwrap_err();
    assert!(operations.len() < 1100, "{} bytes", operations.len());
}

fn operation(description: &str, code: u16, location: &str) -> String {
    format!(
        r#"{{"id":"a4d215e0-a29f-40df-992f-a7cec9506a6c","class":"task","description":"{description}","created_at":"2026-11-28T12:46:38.36168462Z","updated_at":"2026-11-28T12:46:38.36168462Z","status":"x","status_code":{code},"resources":{{"cluster":null}},"metadata":null,"may_cancel":false,"err":"","location":"{location}"}}"#
    )
}

#[test]
fn a_join_is_seen_among_operations() {
    let other = operation("Creating instance", 103, "none");
    let running =
        success(&format!(r#"{{"running":[{other},{}]}}"#, operation(JOINING, 103, "none")));
    let failed = success(&format!(
        r#"{{"failure":[{}],"running":[{other}]}}"#,
        operation(JOINING, 400, "none")
    ));
    let ended = success(&format!(r#"{{"success":[{}]}}"#, operation(JOINING, 200, "none")));
    let again = success(&format!(
        r#"{{"failure":[{}],"running":[{}]}}"#,
        operation(JOINING, 400, "none"),
        operation(JOINING, 103, "none")
    ));
    assert_eq!(joins(&running), Ok(JoinOperation::Running));
    assert_eq!(joins(&again), Ok(JoinOperation::Running));
    assert_eq!(joins(&failed), Ok(JoinOperation::Failed));
    assert_eq!(joins(&ended), Ok(JoinOperation::None));
    assert_eq!(joins(&success("{}")), Ok(JoinOperation::None));
    for nothing in [failure(503, "Daemon is starting up"), answer(200, "{"), success("[]")] {
        assert!(joins(&nothing).is_err(), "{nothing:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_give_evidence_and_never_membership(status: u16, body: Vec<u8>) {
        let answer = Answer { status, body };
        let membership = membership(&answer, &config("10.0.2.15:8443"));
        prop_assert!(!matches!(membership, Membership::Member | Membership::NotAsked));
        let _ = joins(&answer);
    }
}
