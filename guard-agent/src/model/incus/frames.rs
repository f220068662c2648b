//! A frame of the event stream → its meaning for the node. Pure; any bytes give a value or none.

use serde_json::Value;

use super::answers::{JOINING, location, shortened};
use crate::model::join::Event;

/// The content of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameContent {
    pub news: News,
    /// The server that has sent it; empty if it has no name of its own, as none has outside a
    /// cluster. (An operation has a location too, which is the name that its server had when it
    /// began: "none" for a join.)
    pub sender: String,
}

/// The event that a frame tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Event(Event),
    /// A join has failed, and why.
    JoinFailed {
        error: String,
    },
    /// The member of that name was removed from the cluster.
    Removed {
        member: String,
    },
    /// Something that may matter.
    LookAgain,
}

/// The name of this server, to tell its reports from those of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own<'a> {
    /// It is in no cluster: all that it tells is its own.
    Alone,
    /// In a cluster, and nobody has said its name yet.
    Unnamed,
    Named(&'a str),
}

/// The meaning of a report for this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    Event(Event),
    LookAgain,
    /// It is about another member.
    Nothing,
}

impl FrameContent {
    /// The meaning for this server. Members hear of each other; an event on another member counts
    /// only if it is about this server.
    pub fn meaning(&self, own: Own<'_>) -> Meaning {
        match (&self.news, own) {
            (News::Removed { member }, Own::Named(own)) if own == member => {
                Meaning::Event(Event::MemberRemoved)
            }
            (News::Removed { .. }, Own::Named(_)) => Meaning::Nothing,
            // It may be this server: an answer that is under way may be from before.
            (News::Removed { .. }, Own::Unnamed | Own::Alone) => Meaning::Event(Event::EventsLost),
            (_, Own::Named(own)) if own != self.sender => Meaning::Nothing,
            (_, Own::Unnamed) | (News::LookAgain, _) => Meaning::LookAgain,
            (News::Event(event), _) => Meaning::Event(event.clone()),
            (News::JoinFailed { .. }, _) => Meaning::Event(Event::JoinEnded { succeeded: false }),
        }
    }
}

/// Reads a frame. `None` for a frame without interest.
pub fn decode(frame: &[u8]) -> Option<FrameContent> {
    let frame: Value = serde_json::from_slice(frame).ok()?;
    let metadata = &frame["metadata"];
    let news = match frame["type"].as_str()? {
        "operation" => operation(metadata),
        "lifecycle" => lifecycle(metadata),
        _ => None,
    }?;
    Some(FrameContent { news, sender: location(&frame).to_owned() })
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

fn lifecycle(event: &Value) -> Option<News> {
    match event["action"].as_str()? {
        "cluster-member-added" => Some(News::Event(Event::MemberAdded)),
        "cluster-member-removed" => {
            Some(News::Removed { member: member(event["source"].as_str()?)? })
        }
        "cluster-disabled" => Some(News::Event(Event::ClusterDisabled)),
        "cluster-enabled"
        | "cluster-member-renamed"
        | "cluster-member-updated"
        | "config-updated" => Some(News::LookAgain),
        "storage-pool-created" | "storage-pool-updated" | "storage-pool-deleted" => {
            Some(News::LookAgain)
        }
        _ => None,
    }
}

/// The member that an entity's address names. (Incus lets names be host names: nothing in them is
/// escaped.)
fn member(source: &str) -> Option<String> {
    let path = source.split('?').next()?;
    path.strip_prefix("/1.0/cluster/members/").filter(|name| !name.is_empty()).map(str::to_owned)
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

    fn meaning(frame: &str, own: Own<'_>) -> Meaning {
        decode(frame.as_bytes()).map_or(Meaning::Nothing, |report| report.meaning(own))
    }

    fn event(frame: &str) -> Option<Event> {
        match meaning(frame, Own::Alone) {
            Meaning::Event(event) => Some(event),
            Meaning::LookAgain | Meaning::Nothing => None,
        }
    }

    #[test]
    fn a_join_from_its_beginning_to_its_end() {
        for code in [103, 105] {
            assert_eq!(event(&operation(code, "", "none")), Some(Event::JoinBegan));
        }
        assert_eq!(event(&operation(200, "", "node2")), Some(Event::JoinEnded { succeeded: true }));
        for code in [400, 401] {
            assert_eq!(
                event(&operation(code, "", "none")),
                Some(Event::JoinEnded { succeeded: false })
            );
        }
        let failed =
            decode(operation(400, "Failed to request to join the cluster", "none").as_bytes())
                .unwrap();
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
            assert_eq!(
                decode(lifecycle(action, "node2").as_bytes()).unwrap().news,
                News::LookAgain
            );
        }
        assert_eq!(decode(lifecycle("instance-created", "node2").as_bytes()), None);
    }

    #[test]
    fn news_of_another_member_is_none() {
        let node2 = Own::Named("node2");
        // A join's operation keeps the location that its server had before; only its sender counts.
        let forwarded = operation(103, "", "none")
            .replace(r#""location":"none","project""#, r#""location":"node3","project""#);
        for frame in [
            forwarded.as_str(),
            &operation(103, "", "node3"),
            // A joiner that has given up is called "none" again.
            &operation(400, "", "none"),
            &lifecycle("cluster-disabled", "node3"),
            &lifecycle("storage-pool-created", "node3"),
        ] {
            assert_eq!(meaning(frame, node2), Meaning::Nothing, "{frame}");
            assert_eq!(
                meaning(frame, Own::Unnamed),
                Meaning::LookAgain,
                "whose it is is not known: {frame}"
            );
        }
        assert_eq!(meaning(&forwarded, Own::Named("node3")), Meaning::Event(Event::JoinBegan));
        assert_eq!(meaning(&forwarded, Own::Alone), Meaning::Event(Event::JoinBegan));
    }

    #[test]
    fn a_removal_is_of_the_member_that_it_names() {
        // The sender is the member that was asked for it.
        let frame = lifecycle("cluster-member-removed", "node1");
        assert_eq!(meaning(&frame, Own::Named("node2")), Meaning::Event(Event::MemberRemoved));
        for other in [Own::Named("node1"), Own::Named("node3")] {
            assert_eq!(meaning(&frame, other), Meaning::Nothing);
        }
        for nameless in [Own::Unnamed, Own::Alone] {
            assert_eq!(meaning(&frame, nameless), Meaning::Event(Event::EventsLost));
        }
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
