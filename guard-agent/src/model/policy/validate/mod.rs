//! The file's content → a valid [`Policy`], or every problem at once.

mod choices;
mod root;

use std::path::Path;
use std::time::Duration;

use guard_common::names::capacity;
use sha2::{Digest, Sha256};

use choices::one_of;
use root::root;

use super::error::Problems;
use super::raw::{At, RawPolicy};
use super::{
    Filesystem, LeaseLimits, MAX_TTL, Policy, PolicyErrors, Root, TierChoice, duration, raw,
};

/// Actors of all roots together: the agent looks for each of them whenever the mount table changes.
pub(super) const MAX_ACTORS: usize = 1024;
/// So their maps are never full: a sealed root's actors stand there twice (see `ALIAS_ACTORS`), and
/// while a policy replaces another so do both of them.
const _: () = assert!(4 * MAX_ACTORS <= capacity::ACTORS as usize);

/// Reads a policy's text. `file` is only named in messages.
pub fn parse(text: &str, file: &Path) -> Result<Policy, PolicyErrors> {
    let mut problems = Problems::new(text);
    let policy = raw::read(text, &mut problems).map(|raw| validate(&raw, text, &mut problems));
    match policy {
        Some(policy) if problems.is_empty() => Ok(policy),
        _ => Err(problems.into_errors(file.to_owned())),
    }
}

fn validate(raw: &RawPolicy, text: &str, problems: &mut Problems<'_>) -> Policy {
    version(raw, problems);
    let mut filesystems: Vec<Filesystem> = Vec::new();
    let mut roots: Vec<Root> = Vec::new();
    // One too many is reported below, however many there are.
    for raw_root in raw.roots.iter().take(capacity::ROOTS as usize + 1) {
        root(raw_root, &raw.defaults, &mut filesystems, &mut roots, problems);
    }
    if raw.roots.is_empty() {
        let hint = "add a [[root]] with preset = \"incus\", or with a path".to_owned();
        problems.whole("no guarded root: nothing would be protected", hint);
    }
    if raw.roots.len().max(roots.len()) > capacity::ROOTS as usize {
        problems.whole(format!("more than {} roots", capacity::ROOTS), None);
    }
    if roots.iter().map(|root| root.actors.len()).sum::<usize>() > MAX_ACTORS {
        let hint = "name the cgroup that many of them run in".to_owned();
        problems.whole(format!("more than {MAX_ACTORS} actors in all roots"), hint);
    }
    if filesystems.len() > capacity::FILESYSTEMS as usize {
        problems.whole(format!("more than {} kinds of filesystems", capacity::FILESYSTEMS), None);
    }
    let seconds = Duration::from_secs;
    Policy {
        roots,
        filesystems,
        lease: lease(raw, problems),
        canary_interval: interval(
            raw.canary_interval.as_ref(),
            "canary interval",
            seconds(60),
            problems,
        ),
        incident_interval: interval(
            raw.incident_interval.as_ref(),
            "incident_interval",
            seconds(10),
            problems,
        ),
        full_records: full_records(raw.full_records.as_ref(), problems),
        allow_inactive: one_of(raw.on_inactive.as_ref(), "on_inactive", &["exit", "run"], problems)
            == Some(1),
        tier: one_of(raw.tier.as_ref(), "tier", &TierChoice::ALL.map(TierChoice::name), problems)
            .map_or(TierChoice::Auto, |index| TierChoice::ALL[index]),
        hash: Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn version(raw: &RawPolicy, problems: &mut Problems<'_>) {
    match &raw.version {
        Some(version) if *version.get_ref() == 1 => {}
        Some(version) => {
            let what = format!("version {} of the policy format is not known", version.get_ref());
            problems.at(version.span(), what, "this agent reads version = 1".to_owned());
        }
        None => {
            problems.whole("`version` is missing", "begin the file with version = 1".to_owned())
        }
    }
}

fn lease(raw: &RawPolicy, problems: &mut Problems<'_>) -> LeaseLimits {
    let max_ttl = time(raw.max_ttl.as_ref(), "max_ttl", MAX_TTL, problems);
    if let Some(value) = &raw.max_ttl
        && max_ttl > MAX_TTL
    {
        let hint = "24h is the longest".to_owned();
        problems.at(value.span(), format!("max_ttl {} is too long", value.get_ref()), hint);
    }
    let usual = Duration::from_secs(600).min(max_ttl);
    let default_ttl = time(raw.default_ttl.as_ref(), "default_ttl", usual, problems);
    if let Some(value) = &raw.default_ttl
        && default_ttl > max_ttl
    {
        let what = format!("default_ttl {} is longer than max_ttl", value.get_ref());
        problems.at(value.span(), what, format!("max_ttl is {}", duration::format(max_ttl)));
    }
    for (key, value, ttl) in
        [("max_ttl", &raw.max_ttl, max_ttl), ("default_ttl", &raw.default_ttl, default_ttl)]
    {
        if let Some(value) = value
            && ttl < Duration::from_secs(1)
        {
            let hint = "requests count in whole seconds: 1s is the shortest".to_owned();
            problems.at(value.span(), format!("{key} {} is too short", value.get_ref()), hint);
        }
    }
    LeaseLimits { default_ttl, max_ttl }
}

fn interval(
    value: Option<&At<String>>,
    key: &str,
    default: Duration,
    problems: &mut Problems<'_>,
) -> Duration {
    let interval = time(value, key, default, problems);
    let (least, most) = (Duration::from_secs(1), Duration::from_secs(3600));
    if let Some(value) = value
        && interval != default
        && !(least..=most).contains(&interval)
    {
        problems.at(
            value.span(),
            format!("{key} {} is out of range", value.get_ref()),
            "1s to 1h".to_owned(),
        );
    }
    interval
}

fn time(
    value: Option<&At<String>>,
    key: &str,
    default: Duration,
    problems: &mut Problems<'_>,
) -> Duration {
    let Some(value) = value else { return default };
    match duration::parse(value.get_ref()) {
        Some(duration) if !duration.is_zero() => duration,
        _ => {
            let what = format!("{key} {:?} is not a duration", value.get_ref());
            problems.at(value.span(), what, "write it as in 90s, 10m, 1h30m".to_owned());
            default
        }
    }
}

fn full_records(value: Option<&At<i64>>, problems: &mut Problems<'_>) -> u32 {
    const DEFAULT: u32 = 8;
    let Some(value) = value else { return DEFAULT };
    match u32::try_from(*value.get_ref()) {
        Ok(count @ 1..=1024) => count,
        _ => {
            let what = format!("full_records {} is out of range", value.get_ref());
            problems.at(value.span(), what, "1 to 1024".to_owned());
            DEFAULT
        }
    }
}
