//! What the file says → a valid [`Policy`], or every problem at once.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use guard_common::names::capacity;
use guard_common::policy::ALIAS_ACTORS;
use sha2::{Digest, Sha256};
use toml::Spanned;

use super::error::{Problems, nearest};
use super::preset::{self, PRESETS, Preset};
use super::raw::{At, RawActor, RawPolicy, RawRoot, RawSettings};
use super::{
    Actor, DefaultMode, Filesystem, IncusNode, LeaseLimits, MAX_TTL, OnJoinFailure, Policy, PolicyErrors,
    Root, TierChoice, duration, raw,
};

/// Actors of one root that need cgroup and executable together: each has a bit in a `u64`.
const MAX_COMBINED: usize = guard_common::policy::COMBINED_ACTORS as usize;
/// Actors of all roots together: the agent looks for each of them whenever the mount table changes.
pub(super) const MAX_ACTORS: usize = 1024;
/// So their maps are never full: a sealed root's actors stand there twice (see `ALIAS_ACTORS`), and while a policy
/// replaces another so do both of them.
const _: () = assert!(4 * MAX_ACTORS <= capacity::ACTORS as usize);
/// Cgroups of one root's guests.
const MAX_GUESTS: usize = 64;
/// Mount namespaces of one root.
const MAX_NAMESPACES: usize = 16;
const DEFAULT_FILESYSTEMS: &[&str] = &["ceph"];

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
        if let Some(root) = root(raw_root, &raw.defaults, &mut filesystems, &roots, problems) {
            roots.push(root);
        }
    }
    if raw.roots.is_empty() {
        let hint = "add a [[root]] with preset = \"incus\", or with a path".to_owned();
        problems.whole("no guarded root: nothing would be protected", hint);
    }
    if raw.roots.len() > capacity::ROOTS as usize {
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
        canary_interval: interval(raw.canary_interval.as_ref(), "canary interval", seconds(60), problems),
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
        None => problems.whole("`version` is missing", "begin the file with version = 1".to_owned()),
    }
}

fn root(
    raw: &RawRoot,
    defaults: &RawSettings,
    filesystems: &mut Vec<Filesystem>,
    before: &[Root],
    problems: &mut Problems<'_>,
) -> Option<Root> {
    let preset = raw.preset.as_ref().and_then(|name| preset(name, problems));
    let kinds = kinds(&raw.settings, defaults, preset, problems);
    for kind in &kinds {
        if !filesystems.contains(kind) {
            filesystems.push(kind.clone());
        }
    }
    let mode = raw.settings.mode.as_ref().or(defaults.mode.as_ref());
    let mode = match one_of(mode, "mode", &DefaultMode::NAMES, problems) {
        Some(0) => DefaultMode::Sealed,
        Some(2) => DefaultMode::Observed,
        _ => DefaultMode::Guarded,
    };
    let truncate = raw.settings.truncate.as_ref().or(defaults.truncate.as_ref());
    let guard_truncate = one_of(truncate, "truncate", &["allow", "guard"], problems) == Some(1);
    let actors = match &raw.actors {
        Some(actors) => self::actors(actors, problems),
        None => preset.map(preset_actors).unwrap_or_default(),
    };
    if actors.iter().filter(|actor| actor.is_combined()).count() > MAX_COMBINED {
        let what = format!("more than {MAX_COMBINED} actors with both cgroup and executable");
        problems.at(raw.span.clone(), what, "name some of them by one of the two".to_owned());
    }
    let guests = guests(raw, problems);
    let namespaces = namespaces(raw, problems);
    let path = root_path(raw, preset, before, problems)?;
    let incus = incus(raw, preset, problems);
    Some(Root {
        actor_set: actor_set(&path, before),
        path,
        default_mode: mode,
        filesystems: kinds.iter().map(|kind| kind.name().to_owned()).collect(),
        actors,
        guests,
        namespaces,
        guard_truncate,
        exported: raw.settings.exported.or(defaults.exported).unwrap_or(false),
        incus,
    })
}

/// The Incus to follow. Settings of one that is not followed are a mistake: they would do nothing.
fn incus(raw: &RawRoot, preset: Option<&Preset>, problems: &mut Problems<'_>) -> Option<IncusNode> {
    let follows = match one_of(raw.join.as_ref(), "join", &["incus", "none"], problems) {
        Some(choice) => choice == 0,
        None => raw.join.is_none() && preset.is_some_and(|preset| preset.follows_incus),
    };
    let settings = [
        ("incus_socket", &raw.incus_socket),
        ("incus_unit", &raw.incus_unit),
        ("on_join_failure", &raw.on_join_failure),
    ];
    if !follows {
        for (key, value) in settings {
            if let Some(value) = value {
                let what = format!("`{key}` in a root that follows no Incus");
                problems.at(value.span(), what, "add join = \"incus\", or leave the key out".to_owned());
            }
        }
        return None;
    }
    let socket = match &raw.incus_socket {
        Some(text) => Some(absolute(text.get_ref(), "incus_socket", &text.span(), problems)?),
        None => None,
    };
    let unit = raw.incus_unit.as_ref().map_or("incus.service", |unit| unit.get_ref());
    if let Some(value) = &raw.incus_unit
        && (unit.contains('/') || !unit.ends_with(".service"))
    {
        let what = format!("incus_unit `{unit}` is not the name of a service");
        problems.at(value.span(), what, "write it as in incus_unit = \"incus.service\"".to_owned());
    }
    let on_failure = one_of(raw.on_join_failure.as_ref(), "on_join_failure", &["hold", "rollback"], problems);
    let on_join_failure = if on_failure == Some(1) { OnJoinFailure::Rollback } else { OnJoinFailure::Hold };
    Some(IncusNode { socket, unit: unit.to_owned(), on_join_failure })
}

fn preset(name: &At<String>, problems: &mut Problems<'_>) -> Option<&'static Preset> {
    let found = preset::named(name.get_ref());
    if found.is_none() {
        let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
        let what = format!("unknown preset `{}`", name.get_ref());
        problems.at(name.span(), what, choices(name.get_ref(), &names));
    }
    found
}

fn preset_actors(preset: &Preset) -> Vec<Actor> {
    let cgroups = preset.cgroups.iter().map(|path| Actor { cgroup: Some((*path).into()), executable: None });
    let executables =
        preset.executables.iter().map(|path| Actor { cgroup: None, executable: Some(path.into()) });
    cgroups.chain(executables).collect()
}

fn kinds(
    settings: &RawSettings,
    defaults: &RawSettings,
    preset: Option<&Preset>,
    problems: &mut Problems<'_>,
) -> Vec<Filesystem> {
    // A preset knows its daemon better than the file's defaults do.
    let named = match (&settings.filesystems, preset) {
        (Some(named), _) => Some(named),
        (None, Some(preset)) => return known(preset.filesystems),
        (None, None) => defaults.filesystems.as_ref(),
    };
    let Some(named) = named else { return known(DEFAULT_FILESYSTEMS) };
    if named.get_ref().is_empty() {
        let hint = "name at least one, as in filesystems = [\"ceph\"]".to_owned();
        problems.at(named.span(), "`filesystems` is empty: nothing would be protected", hint);
    }
    let mut kinds = Vec::new();
    // One too many of them is reported elsewhere.
    for name in named.get_ref().iter().take(capacity::FILESYSTEMS as usize + 1) {
        match Filesystem::named(name.get_ref()) {
            Ok(kind) if kinds.contains(&kind) => {}
            Ok(kind) => kinds.push(kind),
            Err(hint) => problems.at(name.span(), format!("unknown filesystem `{}`", name.get_ref()), hint),
        }
    }
    kinds
}

fn known(names: &[&str]) -> Vec<Filesystem> {
    names.iter().filter_map(|name| Filesystem::named(name).ok()).collect()
}

fn root_path(
    raw: &RawRoot,
    preset: Option<&Preset>,
    before: &[Root],
    problems: &mut Problems<'_>,
) -> Option<PathBuf> {
    let (text, span) = match (&raw.path, preset) {
        (Some(path), _) => (path.get_ref().as_str(), path.span()),
        (None, Some(preset)) => (preset.path, raw.span.clone()),
        (None, None) => {
            // An unknown preset has been reported; its path is not missing as well.
            if raw.preset.is_none() {
                let hint = "add path = \"/…\" or preset = \"incus\"".to_owned();
                problems.at(raw.span.clone(), "[[root]] has no path", hint);
            }
            return None;
        }
    };
    let path = absolute(text, "path", &span, problems)?;
    if path == Path::new("/") {
        let what = "a guarded root cannot be `/`: every mount of the host would be below it";
        problems.at(span, what, "name the storage daemon's directory".to_owned());
        return None;
    }
    if before.iter().any(|root| root.path == path) {
        let hint = "one [[root]] for each path; name all its filesystems there".to_owned();
        problems.at(span, format!("root {} is given twice", path.display()), hint);
        return None;
    }
    Some(path)
}

/// An absolute path without `.`, `..` and doubled slashes.
fn absolute(
    text: &str,
    key: &str,
    span: &std::ops::Range<usize>,
    problems: &mut Problems<'_>,
) -> Option<PathBuf> {
    let path = Path::new(text);
    let problem = if text.contains('\0') {
        "contains a NUL"
    } else if !path.is_absolute() {
        "is not absolute"
    } else if path.components().any(|component| component == Component::ParentDir) {
        "contains `..`"
    } else {
        // Components leave out `.`, doubled and trailing slashes.
        return Some(path.components().collect());
    };
    let hint = format!("write the whole path from `/`: {key} = \"/…\"");
    problems.at(span.clone(), format!("`{key}` {text:?} {problem}"), hint);
    None
}

/// FNV-1a of the path; the next free number if two roots of the file share it.
fn actor_set(path: &Path, before: &[Root]) -> u32 {
    let hash = path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let free = |set: &u32| *set != ALIAS_ACTORS && before.iter().all(|root| root.actor_set != *set);
    (0..=u32::MAX).map(|offset| hash.wrapping_add(offset)).find(free).unwrap_or(hash)
}

fn actors(raw: &[RawActor], problems: &mut Problems<'_>) -> Vec<Actor> {
    let mut actors: Vec<Actor> = Vec::new();
    let mut seen = HashSet::new();
    for entry in raw {
        let mut path = |value: Option<&At<String>>, key| {
            value.and_then(|value| absolute(value.get_ref(), key, &value.span(), problems))
        };
        let cgroup = path(entry.cgroup.as_ref(), "cgroup");
        let executable = path(entry.executable.as_ref(), "executable");
        if entry.cgroup.is_none() && entry.executable.is_none() {
            let hint = "write { cgroup = \"/…\" }, { executable = \"/…\" }, or both in one".to_owned();
            problems.at(entry.span.clone(), "an actor without cgroup and executable", hint);
        }
        if cgroup.as_deref() == Some(Path::new("/")) {
            let what = "the root cgroup as an actor: every process could delete";
            problems.at(entry.span.clone(), what, "use mode = \"observed\" to only watch".to_owned());
        }
        let cgroup = cgroup.map(|path| path.to_string_lossy().into_owned());
        let actor = Actor { cgroup, executable };
        if seen.insert(actor.clone()) {
            actors.push(actor);
        }
    }
    actors
}

/// Cgroups that may delete in their own guest view.
fn guests(raw: &RawRoot, problems: &mut Problems<'_>) -> Vec<String> {
    let mut guests = Vec::new();
    for entry in raw.guests.iter().flat_map(|named| named.get_ref()) {
        let Some(path) = absolute(entry.get_ref(), "guests", &entry.span(), problems) else { continue };
        if path == Path::new("/") {
            let what =
                "the root cgroup as a guest: every container could delete in whatever is mounted in it";
            problems.at(
                entry.span(),
                what,
                "name the cgroup of the guests, as in guests = [\"/kubepods\"]".to_owned(),
            );
        }
        let path = path.to_string_lossy().into_owned();
        if !guests.contains(&path) {
            guests.push(path);
        }
    }
    if guests.len() > MAX_GUESTS
        && let Some(named) = &raw.guests
    {
        let hint = "name the cgroup that many of them are in".to_owned();
        problems.at(named.span(), format!("more than {MAX_GUESTS} guests"), hint);
    }
    guests
}

/// Mount namespaces that count as the host's.
fn namespaces(raw: &RawRoot, problems: &mut Problems<'_>) -> Vec<PathBuf> {
    let mut namespaces = Vec::new();
    for entry in raw.namespaces.iter().flat_map(|named| named.get_ref()) {
        let path = absolute(entry.get_ref(), "namespaces", &entry.span(), problems);
        if let Some(path) = path.filter(|path| !namespaces.contains(path)) {
            namespaces.push(path);
        }
    }
    if namespaces.len() > MAX_NAMESPACES
        && let Some(named) = &raw.namespaces
    {
        let hint = "name those of storage daemons only".to_owned();
        problems.at(named.span(), format!("more than {MAX_NAMESPACES} namespaces"), hint);
    }
    namespaces
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

fn time(value: Option<&At<String>>, key: &str, default: Duration, problems: &mut Problems<'_>) -> Duration {
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

/// Index of the value in the list.
fn one_of(
    value: Option<&Spanned<String>>,
    key: &str,
    names: &[&str],
    problems: &mut Problems<'_>,
) -> Option<usize> {
    let value = value?;
    let found = names.iter().position(|name| name == value.get_ref());
    if found.is_none() {
        let what = format!("unknown {key} `{}`", value.get_ref());
        problems.at(value.span(), what, choices(value.get_ref(), names));
    }
    found
}

fn choices(word: &str, names: &[&str]) -> String {
    match nearest(word, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known are {}", names.join(", ")),
    }
}
