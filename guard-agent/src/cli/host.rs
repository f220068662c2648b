//! What `guardctl` does without the agent: checks of the host, and of policy files.
//!
//! The only place of `cli` that touches `doctor` and `policy`: thin calls, mapped to what is shown.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::CliError;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckState {
    Ok,
    Warn,
    Fail,
}

/// One precondition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    /// Stable code.
    pub code: String,
    pub state: CheckState,
    pub found: String,
    pub fix: Option<String>,
}

/// Every precondition on this host.
pub fn checks() -> Result<Vec<Check>, CliError> {
    // MERGE: crate::doctor::checks(&crate::doctor::HostFacts::gather(Path::new("/"))), mapped to Check.
    Err(CliError::NotBuilt { what: "doctor" })
}

/// All problems of a policy text, each with file, line and hint; empty if it is good.
pub fn policy_problems(_text: &str, _file: &Path) -> Result<Vec<String>, CliError> {
    // MERGE: match crate::policy::parse(text, file) { Ok(_) => vec![], Err(errors) => one string an error }.
    Err(CliError::NotBuilt { what: "policy check" })
}

/// What changes from the policy in force to another one, a line each; empty if nothing does. Both are
/// known to be good.
pub fn policy_changes(_old: &str, _new: &str) -> Result<Vec<String>, CliError> {
    // MERGE: crate::policy::diff on both parsed texts.
    Err(CliError::NotBuilt { what: "policy diff" })
}
