//! One finding, and its fix.

use serde::{Deserialize, Serialize};

/// Result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckState {
    Ok,
    /// It may work, or works in part.
    Warn,
    /// Nothing is enforced until this is fixed.
    Fail,
}

/// One precondition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// For people.
    pub name: String,
    pub state: CheckState,
    /// The finding.
    pub found: String,
    /// The next step; `None` if there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fix: Option<String>,
    /// Stable: for scripts, and the code of the posture's reason.
    pub code: String,
    /// The kernel's own words, where it has refused something: for a closer look.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub log: Option<String>,
}

impl Check {
    pub(crate) fn new(
        code: &str,
        name: &str,
        state: CheckState,
        found: impl Into<String>,
        fix: Option<String>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            state,
            found: found.into(),
            fix,
            code: code.to_owned(),
            log: None,
        }
    }

    pub(crate) fn ok(code: &str, name: &str, found: impl Into<String>) -> Self {
        Self::new(code, name, CheckState::Ok, found, None)
    }

    pub(crate) fn warn(
        code: &str,
        name: &str,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::new(code, name, CheckState::Warn, found, Some(fix.into()))
    }

    pub(crate) fn fail(
        code: &str,
        name: &str,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::new(code, name, CheckState::Fail, found, Some(fix.into()))
    }
}
