//! One `[[root]]` of the file → the roots it stands for.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use guard_common::names::capacity;
use guard_common::policy::ALIAS_ACTORS;

use super::choices::{choices, one_of};
use crate::model::policy::error::Problems;
use crate::model::policy::preset;
use crate::model::policy::preset::{PRESETS, Preset};
use crate::model::policy::raw::{At, RawActor, RawRoot, RawSettings};
use crate::model::policy::{Actor, DefaultMode, Filesystem, IncusNode, OnJoinFailure, Root};

/// Actors of one root that need cgroup and executable together: each has a bit in a `u64`.
const MAX_COMBINED: usize = guard_common::policy::COMBINED_ACTORS as usize;
/// Cgroups of one root's guests.
const MAX_GUESTS: usize = 64;
/// Mount namespaces of one root.
const MAX_NAMESPACES: usize = 16;
const DEFAULT_FILESYSTEMS: &[&str] = &["ceph"];

/// A `[[root]]` is one root, or as many as its preset has paths.
pub(super) fn root(
    raw: &RawRoot,
    defaults: &RawSettings,
    filesystems: &mut Vec<Filesystem>,
    roots: &mut Vec<Root>,
    problems: &mut Problems<'_>,
) {
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
    let guests = match &raw.guests {
        Some(named) => guests(named, problems),
        None => owned(preset.map_or(&[], |preset| preset.guests)),
    };
    let namespaces = match &raw.namespaces {
        Some(named) => namespaces(named, problems),
        None => owned(preset.map_or(&[], |preset| preset.namespaces)),
    };
    let incus = incus(raw, preset, problems);
    for path in root_paths(raw, preset, roots, problems) {
        roots.push(Root {
            actor_set: actor_set(&path, roots),
            path,
            default_mode: mode,
            filesystems: kinds.iter().map(|kind| kind.name().to_owned()).collect(),
            actors: actors.clone(),
            guests: guests.clone(),
            namespaces: namespaces.clone(),
            guard_truncate,
            exported: raw.settings.exported.or(defaults.exported).unwrap_or(false),
            incus: incus.clone(),
        });
    }
}

fn owned<T: for<'t> From<&'t str>>(texts: &[&str]) -> Vec<T> {
    texts.iter().map(|text| T::from(text)).collect()
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
                problems.at(
                    value.span(),
                    what,
                    "add join = \"incus\", or leave the key out".to_owned(),
                );
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
    let on_failure =
        one_of(raw.on_join_failure.as_ref(), "on_join_failure", &["hold", "rollback"], problems);
    let on_join_failure =
        if on_failure == Some(1) { OnJoinFailure::Rollback } else { OnJoinFailure::Hold };
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

pub(in crate::model::policy) fn preset_actors(preset: &Preset) -> Vec<Actor> {
    let cgroups =
        preset.cgroups.iter().map(|path| Actor { cgroup: Some((*path).into()), executable: None });
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
            Err(hint) => {
                problems.at(name.span(), format!("unknown filesystem `{}`", name.get_ref()), hint)
            }
        }
    }
    kinds
}

fn known(names: &[&str]) -> Vec<Filesystem> {
    names.iter().filter_map(|name| Filesystem::named(name).ok()).collect()
}

fn root_paths(
    raw: &RawRoot,
    preset: Option<&Preset>,
    before: &[Root],
    problems: &mut Problems<'_>,
) -> Vec<PathBuf> {
    match (&raw.path, preset) {
        (Some(path), _) => {
            root_path(path.get_ref(), &path.span(), before, problems).into_iter().collect()
        }
        (None, Some(preset)) => {
            let paths = preset.paths.iter();
            paths.filter_map(|path| root_path(path, &raw.span, before, problems)).collect()
        }
        (None, None) => {
            // An unknown preset has been reported; its path is not missing as well.
            if raw.preset.is_none() {
                let hint = "add path = \"/…\" or preset = \"incus\"".to_owned();
                problems.at(raw.span.clone(), "[[root]] has no path", hint);
            }
            Vec::new()
        }
    }
}

fn root_path(
    text: &str,
    span: &Range<usize>,
    before: &[Root],
    problems: &mut Problems<'_>,
) -> Option<PathBuf> {
    let path = absolute(text, "path", span, problems)?;
    if path == Path::new("/") {
        let what = "a guarded root cannot be `/`: every mount of the host would be below it";
        problems.at(span.clone(), what, "name the storage daemon's directory".to_owned());
        return None;
    }
    if before.iter().any(|root| root.path == path) {
        let hint = "one [[root]] for each path; name all its filesystems there".to_owned();
        problems.at(span.clone(), format!("root {} is given twice", path.display()), hint);
        return None;
    }
    Some(path)
}

/// An absolute path without `.`, `..` and doubled slashes.
fn absolute(
    text: &str,
    key: &str,
    span: &Range<usize>,
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
    let hash =
        path.as_os_str().as_encoded_bytes().iter().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
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
            let hint =
                "write { cgroup = \"/…\" }, { executable = \"/…\" }, or both in one".to_owned();
            problems.at(entry.span.clone(), "an actor without cgroup and executable", hint);
        }
        if cgroup.as_deref() == Some(Path::new("/")) {
            let what = "the root cgroup as an actor: every process could delete";
            problems.at(
                entry.span.clone(),
                what,
                "use mode = \"observed\" to only watch".to_owned(),
            );
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
fn guests(named: &At<Vec<At<String>>>, problems: &mut Problems<'_>) -> Vec<String> {
    let mut guests = Vec::new();
    for entry in named.get_ref() {
        let Some(path) = absolute(entry.get_ref(), "guests", &entry.span(), problems) else {
            continue;
        };
        if path == Path::new("/") {
            let what = "the root cgroup as a guest: every container could delete whatever is \
                        mounted in it";
            let hint =
                "name the cgroup that the guests are in, as in guests = [\"/kubepods\"]".to_owned();
            problems.at(entry.span(), what, hint);
        }
        let path = path.to_string_lossy().into_owned();
        if !guests.contains(&path) {
            guests.push(path);
        }
    }
    if guests.len() > MAX_GUESTS {
        let hint = "name the cgroup that many of them are in".to_owned();
        problems.at(named.span(), format!("more than {MAX_GUESTS} guests"), hint);
    }
    guests
}

/// Mount namespaces that count as the host's.
fn namespaces(named: &At<Vec<At<String>>>, problems: &mut Problems<'_>) -> Vec<PathBuf> {
    let mut namespaces = Vec::new();
    for entry in named.get_ref() {
        let path = absolute(entry.get_ref(), "namespaces", &entry.span(), problems);
        namespaces.extend(path.filter(|path| !namespaces.contains(path)));
    }
    if namespaces.len() > MAX_NAMESPACES {
        let hint = "name those of storage daemons only".to_owned();
        problems.at(named.span(), format!("more than {MAX_NAMESPACES} namespaces"), hint);
    }
    namespaces
}

impl Root {
    /// Whether its actors are a preset's: those of several distributions, of which a host has one.
    pub fn has_preset_actors(&self) -> bool {
        preset::PRESETS.iter().any(|preset| preset_actors(preset) == self.actors)
    }
}
