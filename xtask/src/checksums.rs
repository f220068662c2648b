//! SHA-256 of every file of a directory in the cache, as `sha256sum` writes and checks them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{progress, workspace};

/// File with the sums of a directory. It is written last, so it also says that the directory is
/// whole.
pub(crate) const FILE: &str = "SHA256SUMS";

/// Records the sums of all files in `directory`.
pub(crate) fn record(directory: &Path) -> Result<()> {
    let sums =
        format!("find . -type f ! -name '{FILE}*' -print0 | sort -z | xargs -0 sha256sum > {FILE}");
    progress::run(
        &format!("record the checksums of {}", directory.display()),
        Command::new("bash")
            .args(["-ec", &format!("set -o pipefail; {sums}")])
            .current_dir(directory),
    )
}

/// Checks the named files (all of them if none is named) against the recorded sums.
pub(crate) fn verify(directory: &Path, names: &[&str]) -> Result<()> {
    let path = directory.join(FILE);
    let sums = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let wanted = |line: &&str| {
        names.is_empty()
            || names.iter().any(|name| {
                line.ends_with(&format!(
                    "  \
                     ./{name}"
                ))
            })
    };
    let selected: Vec<&str> = sums.lines().filter(wanted).collect();
    if selected.len() < names.len() {
        bail!(
            "{} lacks some of {names:?}: remove {} and run `cargo xtask setup`",
            path.display(),
            directory.display()
        );
    }
    let scratch = workspace::process_directory(&std::env::temp_dir(), "guard-sums-")?;
    let list = scratch.join(FILE);
    fs::write(&list, selected.join("\n") + "\n")
        .with_context(|| format!("write {}", list.display()))?;
    let outcome = progress::capture(
        Command::new("sha256sum")
            .args(["--check", "--quiet", "--strict"])
            .arg(&list)
            .current_dir(directory),
    );
    let removed = fs::remove_dir_all(&scratch);
    outcome.with_context(|| {
        format!("{0} is damaged: remove it and run `cargo xtask setup`", directory.display())
    })?;
    removed.with_context(|| format!("remove {}", scratch.display()))
}
