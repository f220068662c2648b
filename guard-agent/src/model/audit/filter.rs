//! Which lines of the audit log someone asked for. Pure.

use serde::{Deserialize, Serialize};

use super::record::{Kind, Record};
use crate::model::time::Time;

/// The properties that a line must have. `None` matches every line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// A pool's name, mountpoint or id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Nothing from before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

impl Filter {
    /// The record of a line, if the line is one and is asked for.
    pub fn select(&self, line: &[u8]) -> Option<Record> {
        let record = serde_json::from_slice(line).ok()?;
        self.matches(&record).then_some(record)
    }

    /// Whether a record is asked for.
    pub fn matches(&self, record: &Record) -> bool {
        self.kind.is_none_or(|kind| kind == record.kind)
            && self.since.is_none_or(|since| record.time >= since)
            && self.pool.as_deref().is_none_or(|pool| is_about(record, pool))
    }
}

fn is_about(record: &Record, pool: &str) -> bool {
    record.body.place().is_some_and(|place| {
        [&place.pool, &place.pool_id, &place.mountpoint]
            .into_iter()
            .flatten()
            .any(|name| name == pool)
    })
}
