//! A line on the control socket: a request as the agent reads it, an answer as `guardctl` reads it,
//! and a line of the audit log as both do.

use guard_agent::model::audit::{Filter, Record};
use guard_agent::model::control::{Refusal, Request, Response};
use serde_json::Value;

pub fn check(line: &[u8]) {
    match Request::parse(line) {
        Ok(request) => is_all_that_was_asked(line, &request),
        Err(refusal) => can_be_sent(refusal),
    }
    if let Ok(response) = serde_json::from_slice::<Response>(line) {
        let text = one_line(response.to_line());
        let again: Response = serde_json::from_str(&text).expect("an answer is read back");
        // A float need not come back to the last digit, but after that it must.
        let third: Response =
            serde_json::from_str(&again.to_line()).expect("an answer is read back");
        assert_eq!(again.to_line(), third.to_line());
    }
    if let Some(record) = Filter::default().select(line) {
        let text = one_line(record.to_line());
        assert_eq!(serde_json::from_str::<Record>(&text).expect("a record is read back"), record);
    }
}

/// Nothing in the line is ignored: a client that asks for more than the agent knows is told so.
fn is_all_that_was_asked(line: &[u8], request: &Request) {
    let printed = one_line(request.to_line());
    assert_eq!(Request::parse(printed.as_bytes()).as_ref(), Ok(request));
    let asked: Value = serde_json::from_slice(line).expect("a request is JSON");
    let understood: Value = serde_json::from_str(&printed).expect("a request is JSON");
    assert_eq!(understood["request"], request.name());
    is_part_of(&asked, &understood);
    assert!(Request::parse(&[line, b"x"].concat()).is_err(), "nothing may stand behind a request");
}

/// A key that is not printed is as good as null.
fn is_part_of(asked: &Value, understood: &Value) {
    match (asked, understood) {
        (Value::Object(asked), Value::Object(understood)) => {
            for (key, value) in asked.iter().filter(|(_, value)| !value.is_null()) {
                let found = understood.get(key);
                is_part_of(
                    value,
                    found.unwrap_or_else(|| panic!("`{key}` was ignored in {understood:?}")),
                );
            }
        }
        // A time in another spelling.
        (Value::String(_), Value::String(_)) => {}
        (asked, understood) => assert_eq!(asked, understood),
    }
}

fn can_be_sent(refusal: Refusal) {
    let report = refusal.report();
    assert!(!report.code.is_empty() && !report.message.is_empty());
    let text = one_line(Response::from(Err(refusal)).to_line());
    let again: Response = serde_json::from_str(&text).expect("a refusal is read back");
    assert_eq!(again, Response::Refused(report));
}

/// Without its line feed, which is the only one.
fn one_line(line: String) -> String {
    let text = line.strip_suffix('\n').expect("a line ends with a line feed");
    assert!(!text.contains('\n'), "{text:?} is more than one line");
    text.to_owned()
}
