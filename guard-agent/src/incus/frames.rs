//! A frame of the event stream → what it means for the node. Pure; any bytes give a value or nothing.

use serde_json::Value;

use super::answers::{JOINING, location, shortened};
use crate::join::Event;

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub news: News,
    /// The server it is of; empty if it has no name of its own.
    pub location: String,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Event(Event),
    /// A join has failed, and why.
    JoinFailed {
        error: String,
    },
    /// Something that may matter.
    LookAgain,
}

impl Report {
    /// What it means for the server `own`, if that is known as a member of its cluster: members hear of each other,
    /// and what happens on another one is at most a reason to look. `None`: look again.
    pub fn event(&self, own: Option<&str>) -> Option<Event> {
        let of_another = own.is_some_and(|own| !self.location.is_empty() && self.location != own);
        match &self.news {
            _ if of_another => None,
            News::LookAgain => None,
            News::Event(event) => Some(event.clone()),
            News::JoinFailed { .. } => Some(Event::JoinEnded { succeeded: false }),
        }
    }
}

/// Reads a frame. What is not of interest is nothing.
pub fn decode(frame: &[u8]) -> Option<Report> {
    let frame: Value = serde_json::from_slice(frame).ok()?;
    let metadata = &frame["metadata"];
    let news = match frame["type"].as_str()? {
        "operation" => operation(metadata),
        "lifecycle" => lifecycle(metadata["action"].as_str()?),
        _ => None,
    }?;
    let inner = location(metadata);
    Some(Report { news, location: if inner.is_empty() { location(&frame) } else { inner } })
}

fn operation(operation: &Value) -> Option<News> {
    if operation["description"].as_str() != Some(JOINING) {
        return None;
    }
    let error = || shortened(operation["err"].as_str().unwrap_or_default().to_owned());
    match operation["status_code"].as_i64()? {
        ..200 => Some(News::Event(Event::JoinBegan)),
        200 => Some(News::Event(Event::JoinEnded { succeeded: true })),
        400.. => Some(News::JoinFailed { error: error() }),
        _ => Some(News::LookAgain),
    }
}

fn lifecycle(action: &str) -> Option<News> {
    match action {
        "cluster-member-added" => Some(News::Event(Event::MemberAdded)),
        "cluster-disabled" => Some(News::Event(Event::ClusterDisabled)),
        "cluster-enabled" | "cluster-member-removed" | "cluster-member-updated" | "config-updated" => {
            Some(News::LookAgain)
        }
        "storage-pool-created" | "storage-pool-updated" | "storage-pool-deleted" => Some(News::LookAgain),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn operation(code: i64, err: &str, location: &str) -> String {
        format!(
            r#"{{"type":"operation","timestamp":"2026-08-01T10:00:00.1Z","metadata":{{"id":"5d1c","class":"task","description":"Joining cluster","created_at":"2026-08-01T10:00:00Z","updated_at":"2026-08-01T10:00:00Z","status":"Running","status_code":{code},"resources":null,"metadata":null,"may_cancel":false,"err":"{err}","location":"{location}"}},"location":"{location}","project":""}}"#
        )
    }

    fn lifecycle(action: &str, location: &str) -> String {
        format!(
            r#"{{"type":"lifecycle","timestamp":"2026-08-01T10:00:00.1Z","metadata":{{"action":"{action}","source":"/1.0/cluster/members/node2","requestor":{{"username":"root","protocol":"unix","address":""}}}},"location":"{location}","project":"default"}}"#
        )
    }

    fn event(frame: &str) -> Option<Event> {
        decode(frame.as_bytes())?.event(None)
    }

    #[test]
    fn a_join_from_its_beginning_to_its_end() {
        for code in [103, 105] {
            assert_eq!(event(&operation(code, "", "none")), Some(Event::JoinBegan));
        }
        assert_eq!(event(&operation(200, "", "node2")), Some(Event::JoinEnded { succeeded: true }));
        for code in [400, 401] {
            assert_eq!(event(&operation(code, "", "none")), Some(Event::JoinEnded { succeeded: false }));
        }
        let failed =
            decode(operation(400, "Failed to request to join the cluster", "none").as_bytes()).unwrap();
        assert_eq!(
            failed.news,
            News::JoinFailed { error: "Failed to request to join the cluster".to_owned() }
        );
        let other = operation(103, "", "none").replace("Joining cluster", "Creating instance");
        assert_eq!(decode(other.as_bytes()), None);
    }

    #[test]
    fn lifecycle_of_the_cluster_and_of_pools() {
        assert_eq!(event(&lifecycle("cluster-member-added", "node2")), Some(Event::MemberAdded));
        assert_eq!(event(&lifecycle("cluster-disabled", "")), Some(Event::ClusterDisabled));
        for action in ["storage-pool-created", "storage-pool-updated", "storage-pool-deleted"] {
            assert_eq!(decode(lifecycle(action, "node2").as_bytes()).unwrap().news, News::LookAgain);
        }
        assert_eq!(decode(lifecycle("instance-created", "node2").as_bytes()), None);
    }

    #[test]
    fn news_of_another_member_is_only_a_reason_to_look() {
        for frame in [operation(103, "", "node3"), lifecycle("cluster-disabled", "node3")] {
            let report = decode(frame.as_bytes()).unwrap();
            assert_eq!(report.event(Some("node2")), None);
            assert!(report.event(Some("node3")).is_some());
            assert!(report.event(None).is_some(), "unless this server's own name is known");
        }
        assert_eq!(
            decode(operation(103, "", "none").as_bytes()).unwrap().event(Some("node2")),
            Some(Event::JoinBegan)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_value_or_nothing(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }

        #[test]
        fn any_values_in_the_known_places(kind in "operation|lifecycle", code: i64, text in ".*", list: Vec<i64>) {
            let value = serde_json::json!({
                "type": kind, "location": list,
                "metadata": {"description": JOINING, "status_code": code, "err": list, "action": text, "location": text},
            });
            let _ = decode(value.to_string().as_bytes());
        }
    }
}
