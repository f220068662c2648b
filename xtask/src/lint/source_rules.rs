//! The project's rules about its sources that no other tool knows: every file says what it is for,
//! and the modules that decide touch no clock, no file and no kernel.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The pure modules: time, file text and kernel replies are their arguments. A directory stands for
/// all that is in it.
const PURE: &[&str] = &[
    "guard-agent/src/bpf/description.rs",
    "guard-agent/src/mounts",
    "guard-agent/src/classify.rs",
    "guard-agent/src/classify",
    "guard-agent/src/policy",
    "guard-agent/src/hints.rs",
    "guard-agent/src/join",
    "guard-agent/src/plan.rs",
    "guard-agent/src/plan",
    "guard-agent/src/events",
    "guard-agent/src/incus/answers.rs",
    "guard-agent/src/incus/frames.rs",
    "guard-agent/src/incus/procfs.rs",
    "guard-agent/src/audit/changes.rs",
    "guard-agent/src/audit/decisions.rs",
    "guard-agent/src/audit/place.rs",
    "guard-agent/src/audit/record.rs",
    "guard-agent/src/fanotify/decide.rs",
    "guard-agent/src/fanotify/order.rs",
    "guard-agent/src/rollback/plan.rs",
    "guard-agent/src/rollback/engine.rs",
    "guard-agent/src/rollback/guests.rs",
    "guard-agent/src/rollback/report.rs",
    "guard-agent/src/wipe/mounts.rs",
    "guard-agent/src/preflight/cluster.rs",
    "guard-agent/src/preflight/mod.rs",
    "guard-agent/src/preflight/members.rs",
    "guard-agent/src/preflight/preseed.rs",
    "guard-agent/src/preflight/service.rs",
    "guard-agent/src/preflight/version.rs",
    "guard-agent/src/control/protocol.rs",
    "guard-agent/src/control/refusal.rs",
    "guard-agent/src/daemon/state/content.rs",
    "guard-agent/src/daemon/state/text.rs",
    "guard-agent/src/doctor/check.rs",
    "guard-agent/src/doctor/host.rs",
    "guard-agent/src/errors.rs",
    "guard-agent/src/fanotify/deletion.rs",
    "guard-agent/src/fanotify/event.rs",
    "guard-agent/src/fanotify/tally.rs",
    "guard-agent/src/preflight/facts.rs",
];
/// The parts of them that act.
const ACTING: &[&str] = &[
    "guard-agent/src/mounts/watch.rs",
    "guard-agent/src/mounts/foreign.rs",
    "guard-agent/src/policy/file.rs",
    "guard-agent/src/events/clock.rs",
    "guard-agent/src/events/process.rs",
];
/// What a pure module must not name.
const FORBIDDEN: &[(&str, &str)] = &[
    ("tokio", "async I/O"),
    ("aya", "the kernel"),
    ("std::fs", "files"),
    ("SystemTime", "the wall clock"),
    ("Instant::now", "the clock"),
    ("Zoned::now", "the wall clock"),
    ("Timestamp::now", "the wall clock"),
];
/// Directories that hold no sources of ours.
const SKIPPED: &[&str] = &["target", ".git"];

/// Checks every source file below `root` and names all that break a rule.
pub fn check(root: &Path) -> Result<()> {
    let mut problems = Vec::new();
    for listed in PURE.iter().chain(ACTING).filter(|listed| !root.join(listed).exists()) {
        problems.push(format!("{listed}: is listed in lint/source_rules.rs and does not exist"));
    }
    for path in sources(root)? {
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let name = path.strip_prefix(root).unwrap_or(&path);
        if !text.starts_with("//!") {
            problems.push(format!(
                "{}:1: does not open with `//!`: say what the file does",
                name.display()
            ));
        }
        if is_pure(name) {
            problems.extend(impurities(name, &text));
        }
    }
    if problems.is_empty() { Ok(()) } else { bail!("\n  {}", problems.join("\n  ")) }
}

fn is_pure(name: &Path) -> bool {
    let below = |places: &[&str]| places.iter().any(|place| name.starts_with(place));
    below(PURE) && !below(ACTING)
}

/// Uses of forbidden names before the file's tests, comments apart.
fn impurities(name: &Path, text: &str) -> Vec<String> {
    let code = text.lines().enumerate().take_while(|(_, line)| line.trim() != "#[cfg(test)]");
    let mut found = Vec::new();
    for (number, line) in code {
        let line = line.split("//").next().unwrap_or_default();
        for (word, what) in FORBIDDEN.iter().filter(|(word, _)| names(line, word)) {
            let place = format!("{}:{}", name.display(), number + 1);
            found
                .push(format!("{place}: a pure module names {word} ({what}): make it an argument"));
        }
    }
    found
}

/// Whether `line` has `word` as a whole path segment.
fn names(line: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(part_of_name) && !line[at + word.len()..].starts_with(part_of_name)
    })
}

pub(super) fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && !SKIPPED.contains(&name) {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_a_pure_module_must_not_name() {
        let text = "//! x\nuse std::fs;\nuse display::bayaa;\nlet a = Instant::now(); // \
                    SystemTime\n#[cfg(test)]\nuse tokio;\n";
        let found = impurities(Path::new("p.rs"), text);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("p.rs:2:") && found[1].starts_with("p.rs:4:"), "{found:?}");
    }

    #[test]
    fn the_watcher_of_the_mount_table_may_act() {
        assert!(is_pure(Path::new("guard-agent/src/mounts/parse.rs")));
        assert!(!is_pure(Path::new("guard-agent/src/mounts/watch.rs")));
        assert!(!is_pure(Path::new("guard-agent/src/daemon.rs")));
    }
}
