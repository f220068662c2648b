//! `guardctl status`: the posture first, then its grounds.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::policy::render_hints;
use super::text::{safe, time};
use super::{history, lease, pools, text};
use crate::model::control::report::{
    AuditReport, PolicyReport, PostureReport, Reconciled, RootReport, StatusReport,
};
use crate::model::exit::Exit;
use crate::model::posture::PostureState;

/// Exit code of `status` for a posture.
pub fn exit(state: PostureState) -> Exit {
    match state {
        PostureState::Enforcing => Exit::Ok,
        PostureState::Degraded | PostureState::AuditOnly => Exit::Degraded,
        PostureState::Inactive => Exit::Inactive,
    }
}

/// A posture's name.
pub fn state_name(state: PostureState) -> &'static str {
    match state {
        PostureState::Enforcing => "enforcing",
        PostureState::Degraded => "degraded",
        PostureState::AuditOnly => "audit-only",
        PostureState::Inactive => "inactive",
    }
}

/// The status as text.
pub fn render(status: &StatusReport) -> String {
    let agent = &status.agent;
    let mut text = posture(&status.posture);
    text += &policy(&status.policy);
    text += &render_hints(&status.hints);
    let (version, build) = (safe(&agent.version), safe(&agent.build));
    line(
        &mut text,
        "agent",
        format!("{version} ({build}), pid {}, since {}", agent.pid, time(agent.started)),
    );
    line(&mut text, "decisions", decisions(&status.reconciled));
    line(&mut text, "audit", audit(&status.audit));
    section(&mut text, "guarded roots", roots(&status.roots));
    section(&mut text, "nodes", history::render_nodes(&status.nodes));
    section(&mut text, "pools", pools::render(&status.pools));
    section(&mut text, "leases", lease::render(&status.leases));
    section(&mut text, "counters", counters(&status.counters));
    text
}

/// Reconciliation of decisions and records.
pub(super) fn decisions(counts: &Reconciled) -> String {
    let Reconciled { decisions, emitted, aggregated, lost } = counts;
    format!("{decisions} = {emitted} emitted + {aggregated} aggregated + {lost} lost")
}

fn posture(report: &PostureReport) -> String {
    let proven = match report.proven_at {
        Some(at) => format!("last proven {}", time(at)),
        None => "never proven".to_owned(),
    };
    let mut text = String::new();
    line(&mut text, "posture", format!("{}, {proven}", state_name(report.posture.state)));
    for reason in &report.posture.reasons {
        text += &text::wrap(&format!("  {}: ", safe(&reason.code)), 4, &safe(&reason.detail));
        text += &text::wrap("    fix: ", 9, &safe(&reason.fix));
    }
    if let Some(tier) = report.posture.tier {
        line(&mut text, "tier", tier.to_string());
    }
    for gap in &report.posture.gaps {
        text += &text::wrap(
            &format!(
                "  not covered ({}): \
                 ",
                safe(&gap.code)
            ),
            4,
            &safe(&gap.detail),
        );
    }
    text
}

fn policy(report: &PolicyReport) -> String {
    let hash: String = report.hash.chars().take(12).collect();
    let mut text = String::new();
    let loaded = time(report.loaded);
    let path = safe(&report.path);
    line(
        &mut text,
        "policy",
        format!(
            "{path}, generation {}, sha256 {}, loaded {loaded}",
            report.generation,
            safe(&hash)
        ),
    );
    if let Some(rejected) = &report.rejected {
        let _ = writeln!(
            text,
            "  the file was edited {} and is wrong; the policy above stays",
            time(rejected.at)
        );
        for error in &rejected.errors {
            text += &text::wrap("    ", 6, &safe(error));
        }
        let _ = writeln!(text, "    fix: correct the file; guardctl policy check");
    }
    text
}

fn audit(report: &AuditReport) -> String {
    let mut text = format!("{}, sequence {}", safe(&report.path), report.sequence);
    for (count, what) in [
        (report.write_failures, "failed writes"),
        (report.dropped, "records dropped"),
        (report.pending as u64, "records waiting"),
    ] {
        if count > 0 {
            let _ = write!(text, ", {count} {what}");
        }
    }
    text
}

fn roots(roots: &[RootReport]) -> String {
    let row = |root: &RootReport| {
        let state = if root.in_force { "in force" } else { "not in force" };
        vec![safe(&root.path), root.mode.to_string(), state.to_owned()]
    };
    let rows: Vec<Vec<String>> = roots.iter().map(row).collect();
    let mut text = String::new();
    for (line, root) in text::table("  ", &rows).lines().zip(roots) {
        let _ = writeln!(text, "{line}");
        text += &text::wrap("    filesystems: ", 6, &safe(&root.filesystems.join(" ")));
        if let Some(detail) = &root.detail {
            text += &text::wrap("    ", 6, &safe(detail));
        }
    }
    text
}

/// The counters that have counted, as a table.
pub(super) fn counters(counters: &BTreeMap<String, u64>) -> String {
    let counted = counters.iter().filter(|(_, count)| **count > 0);
    let rows: Vec<Vec<String>> =
        counted.map(|(name, count)| vec![safe(name), count.to_string()]).collect();
    text::table("  ", &rows)
}

/// A line behind its name, which goes on behind as many blanks.
pub(super) fn line(text: &mut String, name: &str, content: String) {
    text.push_str(&text::wrap(&format!("{name:<10} "), 11, &content));
}

/// A part with its name above it.
pub(super) fn section(text: &mut String, name: &str, content: String) {
    if content.is_empty() {
        let _ = writeln!(text, "\n{name}: none");
    } else {
        let _ = write!(text, "\n{name}\n{content}");
    }
}
