//! A frame of Incus's event stream.

use guard_agent::incus::frames::{News, decode};
use guard_agent::join::Event;
use serde_json::Value;

/// Bytes of an error's text.
const SHOWN: usize = 1100;

pub fn check(frame: &[u8]) {
    let report = decode(frame);
    let Ok(value) = serde_json::from_slice::<Value>(frame) else {
        assert_eq!(report, None, "what is not JSON says nothing");
        return;
    };
    assert_eq!(decode(value.to_string().as_bytes()), report, "spelling does not matter");
    assert_eq!(decode(&[frame, b"x"].concat()), None, "nothing may stand behind a frame");
    let Some(report) = report else { return };
    assert_ne!(report.location, "none");
    assert!(matches!(value["type"].as_str(), Some("operation" | "lifecycle")));
    let here = report.event(Some(&report.location));
    assert_eq!(report.event(None), here, "an unknown name is taken for this server's");
    match &report.news {
        News::LookAgain => assert_eq!(here, None),
        News::JoinFailed { error } => {
            assert!(error.len() <= SHOWN, "{} bytes are shown", error.len());
            assert_eq!(here, Some(Event::JoinEnded { succeeded: false }));
        }
        News::Event(event) => assert_eq!(here.as_ref(), Some(event)),
    }
    let elsewhere = report.event(Some("another-node-than-this"));
    assert_eq!(elsewhere.is_some(), report.location.is_empty() && here.is_some());
}
