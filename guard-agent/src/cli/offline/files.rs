//! Contents of the agent's files: leases, journals of nodes, and the end of the audit log.

use std::fs;
use std::io;

use super::places::{Places, Why};
use super::report::{Known, LastPosture, NodeOnFile};
use crate::host::audit_log::history::read_tail;
use crate::host::paths::NODES_NAME;
use crate::host::state_file;
use crate::model::audit::record::{AgentBody, Body, PolicyBody, Record};
use crate::model::audit::{Filter, Kind};
use crate::model::control::report::LeaseReport;
use crate::model::join::Journal;

/// Bytes of the log's end that are searched: the search has to be quick.
const SEARCH_BOUND: u64 = 8 * 1024 * 1024;
/// Lines of the log that are shown.
const LINES: usize = 5;

/// This boot; empty where nothing tells it, which is no boot's.
pub(super) fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// The leases that run.
pub(super) fn leases(
    places: &Places,
    boot_id: &str,
    now_boot_ns: u64,
) -> Result<Vec<LeaseReport>, Why> {
    let leases = state_file::read_leases(&places.state_dir, boot_id, now_boot_ns);
    Ok(leases
        .map_err(|error| Why::of(&error))?
        .iter()
        .map(|lease| LeaseReport::of(lease, now_boot_ns))
        .collect())
}

/// The nodes' journals. One that cannot be understood stands for a sealed node, and is told as
/// such.
pub(super) fn nodes(places: &Places) -> Result<Vec<NodeOnFile>, Why> {
    let directory = places.state_dir.join(NODES_NAME);
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Why::io(&directory))?,
    };
    let mut nodes = Vec::new();
    for entry in entries {
        let path = entry.map_err(Why::io(&directory))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = fs::read(&path).map_err(Why::io(&path))?;
        let journal = Journal::read(&text)
            .map_err(|why| Why::io(&path)(io::Error::new(io::ErrorKind::InvalidData, why)))?;
        nodes.push(NodeOnFile {
            because: journal.because().map(str::to_owned),
            state: journal.state.name().to_owned(),
            since: journal.since,
            root: journal.root,
        });
    }
    nodes.sort_by(|one, other| one.root.cmp(&other.root));
    Ok(nodes)
}

/// Contents of the end of the audit log.
#[derive(Debug, Default)]
pub(super) struct LogEnd {
    pub last: Vec<Record>,
    pub posture: Option<Known<LastPosture>>,
    pub agent: Option<Known<AgentBody>>,
    pub policy: Option<Known<PolicyBody>>,
}

/// Reads the end of the audit log.
pub(super) fn log(places: &Places) -> Result<LogEnd, Why> {
    let read = |count, kind| -> Result<Vec<Record>, Why> {
        let filter = Filter { kind, ..Filter::default() };
        let lines = read_tail(&places.audit, count, &filter, SEARCH_BOUND)
            .map_err(Why::io(&places.audit))?;
        Ok(lines.into_iter().map(|line| line.record).collect())
    };
    let mut end = LogEnd { last: read(LINES, None)?, ..LogEnd::default() };
    for kind in [Kind::Posture, Kind::Agent, Kind::Policy] {
        for Record { time, body, .. } in read(1, Some(kind))? {
            match body {
                Body::Posture(body) => {
                    let posture = body.posture;
                    let reasons = posture.reasons.into_iter().map(|reason| reason.code).collect();
                    let what = LastPosture { state: posture.state, tier: posture.tier, reasons };
                    end.posture = Some(Known { time, what });
                }
                Body::Agent(what) => end.agent = Some(Known { time, what }),
                Body::Policy(what) => end.policy = Some(Known { time, what }),
                _ => {}
            }
        }
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::join::NodeState;

    fn places(directory: &Path) -> Places {
        let at = |name: &str| directory.join(name);
        Places { pin_dir: at("pins"), state_dir: at("state"), audit: at("audit.jsonl") }
    }

    #[test]
    fn a_host_without_files_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let places = places(directory.path());
        assert!(leases(&places, "boot", 0).unwrap().is_empty());
        assert!(nodes(&places).unwrap().is_empty());
        let end = log(&places).unwrap();
        assert!(end.last.is_empty() && end.posture.is_none() && end.agent.is_none());
    }

    #[test]
    fn the_logs_end_and_the_journals_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let places = places(directory.path());
        fs::write(&places.audit, include_str!("../../model/audit/golden.jsonl")).unwrap();
        let end = log(&places).unwrap();
        assert_eq!(end.last.len(), LINES);
        assert_eq!(end.posture.unwrap().what.reasons, ["bpf-not-in-lsm-list"]);
        assert_eq!(end.agent.unwrap().what.pid, 700);
        assert!(end.policy.is_some());

        let moment = serde_json::from_str("\"2026-01-02T03:04:05Z\"").unwrap();
        let journal = Journal::new("/var/lib/incus".to_owned(), NodeState::JoinFailed, moment);
        let nodes_dir = places.state_dir.join(NODES_NAME);
        fs::create_dir_all(&nodes_dir).unwrap();
        fs::write(nodes_dir.join("var-lib-incus.json"), journal.to_text()).unwrap();
        fs::write(nodes_dir.join("var-lib-incus.json.unreadable"), "{").unwrap();
        let found = nodes(&places).unwrap();
        assert_eq!(
            (found[0].root.as_str(), found[0].state.as_str()),
            ("/var/lib/incus", "join-failed")
        );
        fs::write(nodes_dir.join("other.json"), "{").unwrap();
        assert!(nodes(&places).unwrap_err().to_string().contains("other.json"));
    }
}
