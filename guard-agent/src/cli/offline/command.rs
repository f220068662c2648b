//! `status`, `pools` and `events` without an agent that answers: the agent is asked first, for a
//! limited time; then pins and files are shown.
//!
//! Standard output has the answer, standard error names its source. The exit code stays that of an
//! agent that cannot be reached: monitoring must not take files for a proof. Only if nothing at all
//! is in force, for certain, `status` ends as it does for an agent that says so.

use std::io::Write;
use std::time::Duration;

use crate::cli::client::{Client, ClientError};
use crate::cli::error::CliError;
use crate::cli::events::EventsArgs;
use crate::cli::global::{Global, write_json};
use crate::cli::offline;
use crate::cli::offline::{
    InForce, Known, Load, NodeOnFile, OfflineReport, Places, Silence, Unknown,
};
use crate::cli::status::{counters, decisions, line, section, state_name};
use crate::cli::text::{safe, time};
use crate::cli::{events, lease, pools as pool_table, text};
use crate::host::audit_log::history::{SEARCH_BOUND, read_tail};
use crate::model::audit::Filter;
use crate::model::audit::record::{AgentBody, AgentChange, PolicyBody, PolicyChange};
use crate::model::control::protocol::HISTORY_LIMIT;
use crate::model::control::{Reply, Request};
use crate::model::exit::Exit;

/// Longest time for an agent to answer a request that can be answered without it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection to an agent that answers, or why there is none.
pub(in crate::cli) enum Reached {
    Agent(Client),
    Silence(Silence),
}

/// An agent's answer, or why there is none.
pub(in crate::cli) enum Answer {
    Agent(Reply),
    Silence(Silence),
}

/// Asks the agent, and waits for a short while only.
pub(in crate::cli) fn ask(
    global: &Global,
    places: &Places,
    request: &Request,
) -> Result<Answer, CliError> {
    let mut client = match connect(global, places)? {
        Reached::Agent(client) => client,
        Reached::Silence(silence) => return Ok(Answer::Silence(silence)),
    };
    match client.request(request) {
        Ok(reply) => Ok(Answer::Agent(reply)),
        Err(error) => silence(error, client.agent_pid()).map(Answer::Silence),
    }
}

/// A connection whose agent has answered something small: no events at all.
pub(in crate::cli) fn reach(global: &Global, places: &Places) -> Result<Reached, CliError> {
    let nothing = Request::Events { follow: false, history: 0, filter: Filter::default() };
    match connect(global, places)? {
        Reached::Agent(mut client) => match client.request(&nothing) {
            Ok(_) => Ok(Reached::Agent(client)),
            Err(error) => silence(error, client.agent_pid()).map(Reached::Silence),
        },
        silent @ Reached::Silence(_) => Ok(silent),
    }
}

fn connect(global: &Global, places: &Places) -> Result<Reached, CliError> {
    match Client::connect(&global.run_dir, global.timeout.unwrap_or(ANSWER_TIMEOUT)) {
        Ok(client) => match client.agent_pid().filter(|pid| offline::is_stopped(*pid)) {
            Some(pid) => Ok(Reached::Silence(Silence::stopped(pid))),
            None => Ok(Reached::Agent(client)),
        },
        Err(error) => {
            let pid = offline::agent_pid(&places.state_dir);
            let silence = silence(error, pid)?;
            // One that was stopped long ago takes no connections any more.
            let stopped = pid.filter(|pid| offline::is_stopped(*pid)).map(Silence::stopped);
            Ok(Reached::Silence(stopped.unwrap_or(silence)))
        }
    }
}

fn silence(error: ClientError, pid: Option<u32>) -> Result<Silence, CliError> {
    Silence::of(&error, pid).ok_or_else(|| error.into())
}

/// Shows the known facts, and that none of them is proven.
pub(in crate::cli) fn status(
    global: &Global,
    places: &Places,
    silence: Silence,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let report = offline::report(places, silence);
    if global.json {
        write_json(out, &report)?;
    } else {
        out.write_all(render(&report).as_bytes())?;
    }
    let is_nothing = report.in_force.as_ref().is_some_and(InForce::is_nothing);
    Ok(if is_nothing { Exit::Inactive } else { Exit::Unreachable })
}

/// The pools in the kernel's map.
pub(in crate::cli) fn pools(
    global: &Global,
    places: &Places,
    silence: &Silence,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    match offline::pools(places) {
        Ok(pools) => {
            announce(silence, "these pools are read from the pinned map and the mount table");
            pool_table::show(global, &pools, out)?;
        }
        Err(unknown) => announce(silence, &told(&unknown)),
    }
    Ok(Exit::Unreachable)
}

/// History, from the log's files.
pub(in crate::cli) fn events(
    global: &Global,
    args: &EventsArgs,
    filter: Filter,
    silence: &Silence,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let log = &args.places.audit;
    match read_tail(log, args.lines.min(HISTORY_LIMIT), &filter, SEARCH_BOUND) {
        Ok(lines) => {
            announce(silence, &format!("these events are read from {}", log.display()));
            for entry in lines {
                let line = if global.json { entry.line } else { events::render(&entry.record) };
                writeln!(out, "{line}")?;
            }
        }
        Err(error) => {
            let who = match error.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    " (root and members of the group `guard` may read it)"
                }
                _ => "",
            };
            announce(silence, &format!("{} cannot be read: {error}{who}", log.display()));
        }
    }
    if args.follow {
        announce(silence, "later events are shown only while an agent runs");
    }
    Ok(Exit::Unreachable)
}

/// Reports on standard error the agent's silence, its fix, and a note such as the answer's source.
fn announce(silence: &Silence, what: &str) {
    let told = format!("guardctl: {}; {}", safe(&silence.summary()), safe(what));
    eprint!("{}{}", text::wrap("", 2, &told), text::wrap("  fix: ", 7, &safe(&silence.fix())));
}

fn told(unknown: &Unknown) -> String {
    let root = if unknown.needs_root { " (needs root: pins and state are root's)" } else { "" };
    format!("{} cannot be told: {}{root}", unknown.what, unknown.why)
}

/// The report as text.
pub fn render(report: &OfflineReport) -> String {
    let mut text = String::new();
    let silence = &report.posture.agent;
    line(&mut text, "posture", format!("unproven: {}", safe(&silence.summary())));
    text += &text::wrap("  ", 4, &safe(&silence.detail));
    text += &text::wrap("    fix: ", 9, &safe(&silence.fix()));
    if let Some(Known { time: at, what: last }) = &report.posture.last {
        let codes = match last.reasons.as_slice() {
            [] => String::new(),
            codes => format!(" ({})", safe(&codes.join(", "))),
        };
        let tier = last.tier.map_or(String::new(), |tier| format!(", tier {tier}"));
        let content = format!("{}{codes}{tier}, since {}", state_name(last.state), time(*at));
        text += &text::wrap("  last recorded: ", 4, &content);
    }
    line(
        &mut text,
        "in force",
        report.in_force.as_ref().map_or("not known (below)".to_owned(), in_force),
    );
    if let Some(policy) = &report.policy {
        line(&mut text, "policy", last_policy(policy));
    }
    if let Some(agent) = &report.agent {
        line(&mut text, "agent", last_agent(agent));
    }
    if let Some(counters) = &report.counters {
        line(&mut text, "decisions", decisions(&counters.reconciled));
    }
    line(
        &mut text,
        "answered",
        format!("by pins and files, {}, not by an agent", time(report.time)),
    );
    if let Some(pools) = &report.pools {
        section(&mut text, "pools", pool_table::render(pools));
    }
    if let Some(nodes) = &report.nodes {
        section(&mut text, "nodes", nodes_on_file(nodes));
    }
    if let Some(leases) = &report.leases {
        section(&mut text, "leases", lease::render(leases));
    }
    if let Some(found) = &report.counters {
        section(&mut text, "counters", counters(&found.by_name));
    }
    let last: String =
        report.events.iter().map(|record| text::wrap("  ", 4, &events::render(record))).collect();
    section(&mut text, "last events", last);
    section(&mut text, "not known", not_known(report));
    text
}

fn in_force(in_force: &InForce) -> String {
    if in_force.is_nothing() {
        return "nothing: no programs are pinned, and no process answers; deletions are not denied"
            .to_owned();
    }
    let mut parts: Vec<String> = in_force.loads.iter().map(load).collect();
    for responder in &in_force.responders {
        let state = if responder.is_stopped {
            "a signal has stopped it: processes that open a directory of a pool wait"
        } else {
            "it goes on without the agent"
        };
        parts.push(format!("tier fanotify: process {} answers; {state}", responder.pid));
    }
    if in_force.read_only_mounts > 0 {
        let count = in_force.read_only_mounts;
        parts.push(format!("tier fanotify: {count} mounts are recorded as read-only (sealed)"));
        if in_force.responders.is_empty() {
            parts.push("no process answers: guarded pools are open".to_owned());
        }
    }
    parts.join("; ")
}

fn load(load: &Load) -> String {
    let (tier, linked) = (load.tier, load.linked.len());
    if load.unlinked.is_empty() {
        return format!(
            "programs of tier {tier} are pinned and attached to {linked} hooks: they decide \
             without the agent"
        );
    }
    let missing = load.unlinked.join(", ");
    format!("programs of tier {tier} are attached to {linked} hooks, and no longer to {missing}")
}

fn last_policy(Known { time: at, what }: &Known<PolicyBody>) -> String {
    let hash: String = what.hash.chars().take(12).collect();
    let policy = format!("generation {}, sha256 {}", what.generation, safe(&hash));
    let path = safe(&what.path);
    match what.change {
        PolicyChange::Loaded => format!("{path}, {policy}, loaded {}", time(*at)),
        PolicyChange::Rejected => {
            let first = what.errors.first().map(|error| safe(error)).unwrap_or_default();
            format!("{policy}; {path} was rejected {}: {first}", time(*at))
        }
    }
}

fn last_agent(Known { time: at, what }: &Known<AgentBody>) -> String {
    let did = match what.change {
        AgentChange::Started => "started",
        AgentChange::Stopped => "stopped",
        AgentChange::Adopted => "started (adopted)",
        AgentChange::Upgraded => "started (upgraded)",
    };
    format!(
        "{} ({}), pid {}, {did} {}",
        safe(&what.version),
        safe(&what.build),
        what.pid,
        time(*at)
    )
}

fn nodes_on_file(nodes: &[NodeOnFile]) -> String {
    let mut shown = String::new();
    for node in nodes {
        shown += &text::wrap("  ", 4, &format!("{}  {}", safe(&node.root), safe(&node.state)));
        let because = node.because.as_deref().unwrap_or("nothing was seen since");
        shown += &text::wrap(&format!("    since {}: ", time(node.since)), 6, &safe(because));
    }
    shown
}

/// Facts that only an agent knows, and facts that could not be read.
fn not_known(report: &OfflineReport) -> String {
    let mut shown = String::new();
    for unknown in &report.unknown {
        shown += &text::wrap("  ", 4, &safe(&told(unknown)));
    }
    for always in [
        "whether the programs still answer: the canary is the agent's",
        "whether edits of the policy, new mounts and joins since then are in the maps; a mount \
         that is not is denied to everyone below a guarded root (tiers bpf-lsm and fmod-ret)",
    ] {
        shown += &text::wrap("  ", 4, always);
    }
    if report.posture.last.is_none() {
        shown += "  when the canary last passed: the audit log does not say\n";
    }
    shown
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
