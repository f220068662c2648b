//! The state file's text ↔ the state. Pure.
//!
//! A reader of another version must not cost an operator's seal, so it takes what it knows:
//!
//! | In the file | Then |
//! |---|---|
//! | a field that is not known | kept, and written back |
//! | a seal, lease or tier that is not known | not in force by it, kept, and written back; a seal is told |
//! | a newer version | the same: every version has the seals of version 1 |
//! | no state at all (cut, damaged) | an error; `salvage` finds the seals that are left in it |

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::content::{Foreign, Lease, SavedState};

const VERSION: u64 = 1;

/// The file. Seals come first: a file that is cut has them longest.
#[derive(Serialize, Deserialize)]
struct Content {
    version: u64,
    sealed: Vec<Value>,
    /// Counts the saves: tells which of two copies is the newer one.
    #[serde(default)]
    saved: u64,
    boot_id: String,
    #[serde(default)]
    leases: Vec<Value>,
    next_lease: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tier: Option<Value>,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

/// The text of a state.
pub(crate) fn write(state: &SavedState) -> Vec<u8> {
    let value = |of: serde_json::Result<Value>| of.expect("it has string keys and finite numbers");
    let foreign = &state.foreign;
    let seals = state.sealed.iter().map(|pool_id| Value::from(*pool_id));
    let leases = state.leases.iter().map(|lease| value(serde_json::to_value(lease)));
    let tier = state.tier.as_ref().map(|tier| value(serde_json::to_value(tier)));
    let content = Content {
        version: VERSION,
        sealed: seals.chain(foreign.sealed.iter().cloned()).collect(),
        saved: state.saved,
        boot_id: state.boot_id.clone(),
        leases: leases.chain(foreign.leases.iter().cloned()).collect(),
        next_lease: state.next_lease,
        tier: tier.or_else(|| foreign.tier.clone()),
        fields: foreign.fields.clone(),
    };
    serde_json::to_vec_pretty(&content).expect("it has string keys and finite numbers")
}

/// The state of a text, or why there is none in it.
pub(crate) fn read(bytes: &[u8]) -> Result<SavedState, String> {
    let content: Content = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if content.version == 0 {
        return Err("version 0".to_owned());
    }
    let mut foreign = Foreign { fields: content.fields, ..Foreign::default() };
    let mut sealed = BTreeSet::new();
    for value in content.sealed {
        match value.as_u64() {
            Some(pool_id) => {
                sealed.insert(pool_id);
            }
            None => foreign.sealed.push(value),
        }
    }
    let mut leases = Vec::new();
    for value in content.leases {
        match Lease::deserialize(&value) {
            Ok(lease) => leases.push(lease),
            Err(_) => foreign.leases.push(value),
        }
    }
    let tier = match content.tier.map(|value| (serde_json::from_value(value.clone()), value)) {
        Some((Ok(tier), _)) => Some(tier),
        Some((Err(_), value)) => {
            foreign.tier = Some(value);
            None
        }
        None => None,
    };
    let (boot_id, saved, next_lease) = (content.boot_id, content.saved, content.next_lease);
    Ok(SavedState { boot_id, sealed, leases, next_lease, tier, saved, foreign })
}

/// Seals of a form that is not known here, for people.
pub(crate) fn unknown_seals(state: &SavedState) -> Option<String> {
    let unknown = &state.foreign.sealed;
    let list: Vec<String> = unknown.iter().map(Value::to_string).collect();
    (!list.is_empty())
        .then(|| format!("seals of a form that is not known here: {}", list.join(", ")))
}

/// The state of two copies of one file. Of two that differ after the same save one is damaged,
/// and which one cannot be told: then every seal and lease of both holds.
pub(crate) fn merge(file: SavedState, copy: SavedState, boot_id: &str) -> SavedState {
    if file.saved != copy.saved {
        return if file.saved > copy.saved { file } else { copy };
    }
    let (mut first, second) = match (file.boot_id == boot_id, copy.boot_id == boot_id) {
        (false, true) => (copy, file),
        _ => (file, copy),
    };
    first.sealed.extend(second.sealed);
    for lease in second.leases {
        if first.leases.iter().all(|other| other.id != lease.id) {
            first.leases.push(lease);
        }
    }
    first.next_lease = first.next_lease.max(second.next_lease);
    for seal in second.foreign.sealed {
        if !first.foreign.sealed.contains(&seal) {
            first.foreign.sealed.push(seal);
        }
    }
    first
}

/// The seals that can be told in a text that is no state any more. A number at which the text ends
/// may be cut.
pub(crate) fn salvage(bytes: &[u8]) -> BTreeSet<u64> {
    let text = String::from_utf8_lossy(bytes);
    let Some((_, list)) = text.split_once("\"sealed\"").and_then(|(_, rest)| rest.split_once('['))
    else {
        return BTreeSet::new();
    };
    let (list, is_whole) = list.split_once(']').map_or((list, false), |(list, _)| (list, true));
    let mut items: Vec<&str> = list.split(',').collect();
    if !is_whole {
        items.pop();
    }
    items.into_iter().filter_map(|item| item.trim().parse().ok()).collect()
}
