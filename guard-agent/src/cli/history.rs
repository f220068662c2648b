//! `guardctl history`, and the text about nodes in `guardctl status`.

use std::io::Write;

use super::error::CliError;
use super::global::{Global, expect_reply, write_json};
use super::text;
use super::text::{safe, time};
use crate::model::control::report::{NodeHistory, NodeReport};
use crate::model::control::{Reply, Request};
use crate::model::exit::Exit;
use crate::model::join::{Config, Daemon, Evidence, JoinOperation, Membership};

#[derive(Debug, clap::Args)]
pub struct HistoryArgs {
    /// The node's guarded root. Default: all nodes.
    #[arg(long, value_name = "DIR")]
    pub root: Option<String>,
    /// Show only the newest N transitions of each node.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    pub lines: usize,
}

/// Shows the history of nodes.
pub fn run(global: &Global, args: &HistoryArgs, out: &mut impl Write) -> Result<Exit, CliError> {
    let request = Request::History { root: args.root.clone() };
    let mut histories = expect_reply!(global, request, Reply::History(histories) => histories);
    for history in &mut histories {
        let surplus = history.transitions.len().saturating_sub(args.lines);
        history.transitions.drain(..surplus);
    }
    if global.json {
        write_json(out, &histories)?;
    } else if histories.is_empty() {
        writeln!(out, "no node is followed")?;
    } else {
        out.write_all(render_histories(&histories).as_bytes())?;
    }
    Ok(Exit::Ok)
}

fn render_histories(histories: &[NodeHistory]) -> String {
    let mut shown = String::new();
    for history in histories {
        let (root, state) = (safe(&history.root), safe(&history.state));
        shown.push_str(&format!("{root}: {state} since {}\n", time(history.since)));
        for transition in &history.transitions {
            let (from, to) = (safe(&transition.from), safe(&transition.to));
            let because = safe(&transition.because);
            let content = format!("{from} -> {to}: {because}");
            shown.push_str(&text::wrap(&format!("  {}  ", time(transition.time)), 4, &content));
        }
    }
    shown
}

/// The nodes as a table, each with its last look; empty if there are none.
pub fn render_nodes(nodes: &[NodeReport]) -> String {
    let mut shown = String::new();
    for node in nodes {
        let kept =
            node.kept.as_ref().map(|kept| format!(" (was {})", safe(kept))).unwrap_or_default();
        let row =
            vec![safe(&node.root), format!("{}{kept}", safe(&node.state)), node.mode.to_string()];
        shown.push_str(&text::table("  ", &[row]));
        if !node.unconfirmed.is_empty() {
            let pools =
                node.unconfirmed.iter().map(|pool| safe(pool)).collect::<Vec<_>>().join(", ");
            let content =
                format!("not guarded before a look at local.db has spoken for them: {pools}");
            shown.push_str(&text::wrap("    ", 6, &content));
        }
        if let Some(because) = &node.because {
            shown.push_str(&text::wrap(
                &format!(
                    "    since {}: \
                     ",
                    time(node.since)
                ),
                6,
                &safe(because),
            ));
        }
        if let (Some(evidence), Some(looked)) = (&node.evidence, node.looked) {
            let content = safe(&describe(evidence));
            shown.push_str(&text::wrap(&format!("    seen {}: ", time(looked)), 6, &content));
        }
    }
    shown
}

fn describe(evidence: &Evidence) -> String {
    let config = match &evidence.config {
        Config::Unreadable { why } => format!("local.db unreadable ({why})"),
        Config::Absent => "no local.db".to_owned(),
        Config::Read { cluster_address, raft_nodes, .. } => {
            let address = cluster_address.as_deref().unwrap_or("none");
            format!("cluster address {address}, {raft_nodes} raft nodes")
        }
    };
    let daemon = match &evidence.daemon {
        Daemon::Unknown => "daemon unknown".to_owned(),
        Daemon::Stopped => "daemon stopped".to_owned(),
        Daemon::Running { incarnation, age_seconds } => {
            format!("daemon running (pid {}, for {age_seconds} s)", incarnation.pid)
        }
    };
    let operation = match evidence.operation {
        JoinOperation::Unknown => "joins unknown",
        JoinOperation::None => "no join runs",
        JoinOperation::Running => "a join runs",
        JoinOperation::Failed => "a join has just failed",
    };
    let membership = match &evidence.membership {
        Membership::NotAsked => "membership not asked".to_owned(),
        Membership::Starting => "daemon starting, or waiting for an upgrade".to_owned(),
        Membership::NoAnswer { why } => format!("no answer ({why})"),
        Membership::NotClustered => "not clustered".to_owned(),
        Membership::NotListed => "not a member".to_owned(),
        Membership::Member => "member".to_owned(),
    };
    let silence = match evidence.unanswered_seconds {
        0 => None,
        seconds => Some(format!("for {seconds} s")),
    };
    let parts = [config, daemon, operation.to_owned(), membership].into_iter().chain(silence);
    parts.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use guard_common::Mode;

    use super::*;
    use crate::model::events::Name;

    #[test]
    fn a_node_is_shown_with_its_evidence() {
        let moment = serde_json::from_str("\"2026-01-02T03:04:05Z\"").unwrap();
        let node = NodeReport {
            root: "/var/lib/incus".to_owned(),
            state: "unconfirmed".to_owned(),
            kept: Some("joined".to_owned()),
            mode: Name(Mode::Guarded),
            unconfirmed: vec!["new".to_owned()],
            since: moment,
            because: Some("there are 2 raft nodes; the daemon does not run".to_owned()),
            evidence: Some(Evidence {
                config: Config::cluster(Some("10.0.0.2:8443"), 2),
                daemon: Daemon::Stopped,
                unanswered_seconds: 7,
                ..Evidence::none()
            }),
            looked: Some(moment),
        };
        let shown = render_nodes(&[node]);
        assert!(shown.contains("unconfirmed (was joined)") && shown.contains("guarded"), "{shown}");
        assert!(
            shown.contains("not guarded before a look at local.db has spoken for them: new\n"),
            "{shown}"
        );
        assert!(shown.contains("cluster address 10.0.0.2:8443, 2 raft nodes;"), "{shown}");
        assert!(shown.contains("membership not asked; for 7 s"), "{shown}");
        assert_eq!(render_nodes(&[]), "");
    }
}
