//! The differences between two policies, for people and for JSON.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::Policy;

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Which setting, e.g. `root /var/lib/incus: default_mode`.
    pub what: String,
    /// Before; `None` if it was not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// After; `None` if it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

/// The differences of two policies in effect: comments, order and spelling do not count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PolicyDiff {
    pub changes: Vec<Change>,
}

impl PolicyDiff {
    /// Whether both policies have the same effect.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// Compares two policies.
pub fn diff(before: &Policy, after: &Policy) -> PolicyDiff {
    let mut changes = Vec::new();
    for root in before.roots() {
        let other = after.roots().iter().find(|other| other.path == root.path);
        compare(
            &format!("root {}", root.path.display()),
            value(Some(root)),
            value(other),
            &mut changes,
        );
    }
    for root in after.roots() {
        if before.roots().iter().all(|other| other.path != root.path) {
            compare(
                &format!("root {}", root.path.display()),
                None,
                value(Some(root)),
                &mut changes,
            );
        }
    }
    if let (Some(Value::Object(old)), Some(Value::Object(new))) =
        (value(Some(before)), value(Some(after)))
    {
        // Roots are compared by path above; filesystems follow from them; the hash is of the text.
        for key in
            old.keys().filter(|key| !["roots", "filesystems", "hash"].contains(&key.as_str()))
        {
            compare(key, old.get(key).cloned(), new.get(key).cloned(), &mut changes);
        }
    }
    PolicyDiff { changes }
}

fn value<T: Serialize>(part: Option<&T>) -> Option<Value> {
    part.and_then(|part| serde_json::to_value(part).ok())
}

fn compare(what: &str, before: Option<Value>, after: Option<Value>, changes: &mut Vec<Change>) {
    match (&before, &after) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            for key in old.keys() {
                compare(
                    &format!("{what}: {key}"),
                    old.get(key).cloned(),
                    new.get(key).cloned(),
                    changes,
                );
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            let gone = old.iter().filter(|item| !new.contains(item));
            changes.extend(gone.map(|item| change(what, Some(item.clone()), None)));
            let came = new.iter().filter(|item| !old.contains(item));
            changes.extend(came.map(|item| change(what, None, Some(item.clone()))));
        }
        _ if before == after => {}
        _ => changes.push(change(what, before, after)),
    }
}

fn change(what: &str, before: Option<Value>, after: Option<Value>) -> Change {
    Change { what: what.to_owned(), before, after }
}

impl fmt::Display for PolicyDiff {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return writeln!(out, "no difference in effect");
        }
        for Change { what, before, after } in &self.changes {
            match (before, after) {
                (Some(before), Some(after)) => writeln!(out, "~ {what}: {before} -> {after}")?,
                (Some(before), None) => writeln!(out, "- {what}: {before}")?,
                (None, Some(after)) => writeln!(out, "+ {what}: {after}")?,
                (None, None) => {}
            }
        }
        Ok(())
    }
}
