//! A frame of Incus's event stream.

use guard_agent::model::incus::frames::{Meaning, News, Own, decode};
use guard_agent::model::join::Event;
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
    assert_ne!(report.sender, "none");
    assert!(matches!(value["type"].as_str(), Some("operation" | "lifecycle")));
    let here = report.meaning(Own::Named(&report.sender));
    let alone = report.meaning(Own::Alone);
    match &report.news {
        News::LookAgain => assert_eq!((&here, &alone), (&Meaning::LookAgain, &Meaning::LookAgain)),
        News::JoinFailed { error } => {
            assert!(error.len() <= SHOWN, "{} bytes are shown", error.len());
            assert_eq!(here, Meaning::Event(Event::JoinEnded { succeeded: false }));
            assert_eq!(alone, here);
        }
        News::Event(event) => {
            assert_eq!(here, Meaning::Event(event.clone()));
            assert_eq!(alone, here);
        }
        News::Removed { member } => {
            assert!(!member.is_empty());
            assert_eq!(alone, Meaning::Nothing);
            assert_eq!(report.meaning(Own::Named(member)), Meaning::Event(Event::MemberRemoved));
        }
    }
    assert_eq!(report.meaning(Own::Unnamed), Meaning::LookAgain, "it is not known whose it is");
    let other = "another-node-than-this";
    let elsewhere = report.meaning(Own::Named(other));
    let is_removed = matches!(&report.news, News::Removed { member } if member == other);
    assert!(elsewhere == Meaning::Nothing || is_removed || report.sender == other);
}
