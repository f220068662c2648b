//! The project's rules about its sources that no other tool knows: every file says what it is for,
//! and the modules that decide touch no clock, no file and no kernel.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The pure modules: time, file text and kernel replies are their arguments. A directory stands for
/// all that is in it: the wing `model`, and the parts of the other wings that only decide.
const PURE: &[&str] = &[
    "guard-agent/src/model",
    "guard-agent/src/cli/preflight/cluster.rs",
    "guard-agent/src/cli/preflight/facts.rs",
    "guard-agent/src/cli/preflight/members.rs",
    "guard-agent/src/cli/preflight/mod.rs",
    "guard-agent/src/cli/preflight/preseed.rs",
    "guard-agent/src/cli/preflight/service.rs",
    "guard-agent/src/cli/preflight/version.rs",
    "guard-agent/src/host/bpf/description.rs",
    "guard-agent/src/host/doctor/check.rs",
    "guard-agent/src/host/doctor/host.rs",
    "guard-agent/src/host/fanotify/decide.rs",
    "guard-agent/src/host/fanotify/deletion.rs",
    "guard-agent/src/host/fanotify/event.rs",
    "guard-agent/src/host/fanotify/order.rs",
    "guard-agent/src/host/fanotify/tally.rs",
    "guard-agent/src/host/incus/procfs.rs",
    "guard-agent/src/host/wipe/mounts.rs",
];
/// Names that a pure module must not use.
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
pub(super) fn check(root: &Path) -> Result<()> {
    let mut problems = Vec::new();
    for listed in PURE.iter().filter(|listed| !root.join(listed).exists()) {
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
    problems.extend(unreplayed(root)?);
    if problems.is_empty() { Ok(()) } else { bail!("\n  {}", problems.join("\n  ")) }
}

/// Kept regressions that proptest replays no more: it looks for them under the path of the source
/// that has found them, so they must move with it.
fn unreplayed(root: &Path) -> Result<Vec<String>> {
    let (kept, sources) =
        (root.join("guard-agent/proptest-regressions"), root.join("guard-agent/src"));
    let (mut found, mut open) = (Vec::new(), vec![kept.clone()]);
    while let Some(directory) = open.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries {
            let path = entry.with_context(|| format!("list {}", directory.display()))?.path();
            if path.is_dir() {
                open.push(path);
            } else if let Ok(place) = path.strip_prefix(&kept)
                && !sources.join(place).with_extension("rs").exists()
            {
                let place = path.strip_prefix(root).unwrap_or(&path).display();
                found
                    .push(format!("{place}: no source file has this place, so it is not replayed"));
            }
        }
    }
    Ok(found)
}

fn is_pure(name: &Path) -> bool {
    PURE.iter().any(|place| name.starts_with(place))
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
    fn regressions_without_their_source_are_named() {
        let root = tempfile::tempdir().unwrap();
        let agent = root.path().join("guard-agent");
        for place in
            ["src/a/mod.rs", "proptest-regressions/a/mod.txt", "proptest-regressions/b.txt"]
        {
            fs::create_dir_all(agent.join(place).parent().unwrap()).unwrap();
            fs::write(agent.join(place), "").unwrap();
        }
        let found = unreplayed(root.path()).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("guard-agent/proptest-regressions/b.txt:"), "{found:?}");
    }

    #[test]
    fn the_whole_model_is_pure() {
        assert!(is_pure(Path::new("guard-agent/src/model/mounts/snapshot.rs")));
        assert!(!is_pure(Path::new("guard-agent/src/host/mount_table/watch.rs")));
        assert!(!is_pure(Path::new("guard-agent/src/daemon/mod.rs")));
    }
}
