//! `guardctl events`: the audit log as it was, and as it grows.

use jiff::{SignedDuration, Timestamp};

use super::global::parse_duration;
use super::text::{duration, safe, time};
use crate::cli::offline::Places;
use crate::model::audit::Kind;
use crate::model::audit::record::{Body, DecisionBody, IncidentBody, Place, Record};
use crate::model::control::protocol::Lagged;
use crate::model::time::Time;

#[derive(Debug, clap::Args)]
pub struct EventsArgs {
    /// Print new records as they are written.
    #[arg(long, short)]
    pub follow: bool,
    /// Number of past records.
    #[arg(short = 'n', long = "lines", value_name = "N", default_value_t = 20)]
    pub lines: usize,
    /// Show only records about this pool (name, mountpoint or id).
    #[arg(long)]
    pub pool: Option<String>,
    /// Show only records of this kind.
    #[arg(long)]
    pub kind: Option<Kind>,
    /// Show only records since this time (2026-09-21T14:00:00Z) or for this long (10m).
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    pub since: Option<Time>,
    #[command(flatten)]
    pub places: Places,
}

fn parse_since(text: &str) -> Result<Time, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(Time(at));
    }
    let back = parse_duration(text).map_err(|_| {
        format!("`{text}` is neither a time (2026-09-21T14:00:00Z) nor a duration (10m)")
    })?;
    let back = SignedDuration::try_from(back).map_err(|error| error.to_string())?;
    Timestamp::now().checked_sub(back).map(Time).map_err(|error| error.to_string())
}

/// A line of the log for people. A line that is not understood is shown as it is.
pub fn render_line(line: &str) -> String {
    if let Ok(record) = serde_json::from_str::<Record>(line) {
        return render(&record);
    }
    match serde_json::from_str::<Lagged>(line) {
        Ok(Lagged { lagged }) => {
            format!("({lagged} events were missed; they are in the audit log)")
        }
        Err(_) => safe(line),
    }
}

/// A record in one line for people.
pub fn render(record: &Record) -> String {
    format!("{}  {}", time(record.time), safe(&describe(&record.body)))
}

fn describe(body: &Body) -> String {
    match body {
        Body::Decision(body) => decision(body),
        Body::Incident(body) => incident(body),
        Body::Pool(body) => {
            let (change, mode) =
                (word(&body.change), body.mode.map_or("-".to_owned(), |m| m.to_string()));
            let (place, filesystem) = (place(&body.place), &body.filesystem);
            format!(
                "pool {change}  {place}  {filesystem} {} on {}  mode \
                 {mode}",
                body.source, body.device
            )
        }
        Body::Mode(body) => {
            let from = body.from.map_or("-".to_owned(), |mode| mode.to_string());
            format!("mode {from} -> {}  {}  by {}", body.to, place(&body.place), word(&body.cause))
        }
        Body::Lease(body) => format!(
            "lease {} {}  {}  for {} until {}  uid {}: {}",
            body.id,
            word(&body.change),
            place(&body.place),
            duration(body.ttl_seconds),
            time(body.ends),
            body.uid,
            body.reason
        ),
        Body::Policy(body) => {
            let errors: String = body.errors.iter().map(|error| format!("; {error}")).collect();
            format!(
                "policy {}  {}  generation \
                 {}{errors}",
                word(&body.change),
                body.path,
                body.generation
            )
        }
        Body::Posture(body) => {
            let codes: Vec<&str> =
                body.posture.reasons.iter().map(|reason| reason.code.as_str()).collect();
            format!("posture {}  {}", word(&body.posture.state), codes.join(", "))
        }
        Body::Agent(body) => {
            format!(
                "agent {}  {} ({}), pid \
                 {}",
                word(&body.change),
                body.version,
                body.build,
                body.pid
            )
        }
        Body::Node(body) => {
            format!(
                "node {}  {} -> {}  {}  \
                 {}",
                body.root, body.from, body.to, body.mode, body.because
            )
        }
    }
}

fn decision(body: &DecisionBody) -> String {
    let login = body.login_uid.map(|uid| format!(", login {uid}")).unwrap_or_default();
    format!(
        "{} {} {}  {}  by {}[{}] uid {}{login}  {}",
        body.verdict,
        body.operation,
        body.path,
        place(&body.place),
        body.comm,
        body.tgid,
        body.uid,
        body.reason
    )
}

fn incident(body: &IncidentBody) -> String {
    let verdict = body.verdict.map_or("?".to_owned(), |verdict| verdict.to_string());
    let reason = body.reason.map_or("?".to_owned(), |reason| reason.to_string());
    format!(
        "{verdict} {} times{}  {}  by {}[{}] uid {}  {reason}  ({} shown, {} aggregated, {} lost)",
        body.count,
        if body.ended { "" } else { " so far" },
        place(&body.place),
        body.comm,
        body.tgid,
        body.uid,
        body.emitted,
        body.aggregated,
        body.lost
    )
}

fn place(place: &Place) -> String {
    let name = place.pool.as_deref().or(place.mountpoint.as_deref()).or(place.pool_id.as_deref());
    format!("pool {}", name.unwrap_or("(unclassified)"))
}

/// The JSON name of a plain enum.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "?".to_owned(),
    }
}
