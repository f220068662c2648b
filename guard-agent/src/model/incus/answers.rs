//! Incus's answers → evidence. Pure; any bytes give a value.

use serde::Deserialize;
use serde_json::Value;

use crate::model::address::Address;
use crate::model::join::{Config, JoinOperation, Membership};

/// The description of the operation by which a server joins a cluster.
pub const JOINING: &str = "Joining cluster";
/// Bytes of an unexpected answer that are shown.
const SHOWN: usize = 200;
/// Bytes of an error's text that are kept: it goes into evidence, journal and audit log.
const ERROR_LIMIT: usize = 1000;

/// An HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// The wrapping of every body. Errors have `error` and `error_code`, others `status_code` and
/// `metadata`.
#[derive(Debug, Deserialize)]
struct Envelope {
    #[serde(rename = "type")]
    kind: Option<String>,
    status_code: Option<i64>,
    error_code: Option<i64>,
    error: Option<String>,
    metadata: Option<Value>,
}

/// An answer, understood.
#[derive(Debug, PartialEq)]
enum Content {
    Metadata(Value),
    Error {
        code: i64,
        text: String,
    },
    /// Not one of Incus's.
    Other,
}

impl Answer {
    fn content(&self) -> Content {
        let Ok(envelope) = serde_json::from_slice::<Envelope>(&self.body) else {
            // Any body will do: a server that is starting may not answer in JSON.
            return match self.status {
                503 => Content::Error { code: 503, text: self.shown() },
                _ => Content::Other,
            };
        };
        let failed = envelope.kind.as_deref() == Some("error") || self.status >= 400;
        let code = [envelope.error_code, envelope.status_code]
            .into_iter()
            .flatten()
            .find(|code| *code != 0);
        match envelope.metadata {
            _ if failed => Content::Error {
                code: code.unwrap_or(i64::from(self.status)),
                text: shortened(envelope.error.unwrap_or_default()),
            },
            Some(metadata) if self.status == 200 => Content::Metadata(metadata),
            _ => Content::Other,
        }
    }

    /// Its beginning, for people.
    fn shown(&self) -> String {
        let end = self.body.len().min(SHOWN);
        String::from_utf8_lossy(&self.body[..end]).into_owned()
    }

    fn unexpected(&self) -> String {
        format!("unexpected answer {}: {}", self.status, self.shown())
    }
}

/// An error's text as far as it is kept.
pub(super) fn shortened(mut text: String) -> String {
    if text.len() > ERROR_LIMIT {
        text.truncate(text.floor_char_boundary(ERROR_LIMIT));
        text.push('…');
    }
    text
}

/// Whether an operation "Joining cluster" is among this server's own: the request to the daemon was
/// for those.
pub fn joins(answer: &Answer) -> Result<JoinOperation, String> {
    match answer.content() {
        Content::Metadata(Value::Object(by_status)) => {
            let joins = by_status
                .values()
                .filter_map(Value::as_array)
                .flatten()
                .filter(|operation| operation["description"].as_str() == Some(JOINING));
            // Incus lists ended operations for some seconds.
            let code = |operation: &Value| operation["status_code"].as_i64().unwrap_or_default();
            let codes: Vec<i64> = joins.map(code).collect();
            Ok(match codes.iter().max() {
                _ if codes.iter().any(|code| *code < 200) => JoinOperation::Running,
                Some(400..) => JoinOperation::Failed,
                _ => JoinOperation::None,
            })
        }
        // No operation at all.
        Content::Metadata(Value::Null) => Ok(JoinOperation::None),
        Content::Error { code, text } => Err(format!("{code}: {text}")),
        Content::Metadata(_) | Content::Other => Err(answer.unexpected()),
    }
}

/// The server that an event is of: empty if it has no name of its own.
pub fn location(value: &Value) -> &str {
    value["location"].as_str().filter(|location| *location != "none").unwrap_or_default()
}

/// Looks for this server, by its cluster address, in the list of members; with its name, if it is
/// there.
pub fn members(answer: &Answer, config: &Config) -> (Membership, Option<String>) {
    let membership = match answer.content() {
        Content::Metadata(Value::Array(list)) => return find(&list, config),
        Content::Error { code: 503, .. } => Membership::Starting,
        Content::Error { text, .. } if says_not_clustered(&text) => Membership::NotClustered,
        Content::Error { code, text } => Membership::NoAnswer { why: format!("{code}: {text}") },
        Content::Metadata(_) | Content::Other => Membership::NoAnswer { why: answer.unexpected() },
    };
    (membership, None)
}

fn says_not_clustered(text: &str) -> bool {
    let text = text.to_lowercase();
    text.contains("server is not clustered") || text.contains("server isn't clustered")
}

fn find(list: &[Value], config: &Config) -> (Membership, Option<String>) {
    let Config::Read { cluster_address: Some(own), .. } = config else {
        let why = "a list of members, but no cluster.https_address to look for in it".to_owned();
        return (Membership::NoAnswer { why }, None);
    };
    let own = Address::parse(own);
    let urls: Option<Vec<_>> =
        list.iter().map(|member| Some((member, Address::parse(member["url"].as_str()?)))).collect();
    let Some(urls) = urls else {
        let why = "a list of members without addresses".to_owned();
        return (Membership::NoAnswer { why }, None);
    };
    match urls.iter().find(|(_, url)| *url == own) {
        Some((member, _)) => {
            (Membership::Member, member["server_name"].as_str().map(str::to_owned))
        }
        None => (Membership::NotListed, None),
    }
}

#[cfg(test)]
#[path = "answers_tests.rs"]
mod tests;
