//! Builds everything once more in another folder, and compares the bytes.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::EPOCH;
use crate::{progress, workspace};

/// Compares `directory` with the same folder of a second build, made of a copy of the sources.
pub(super) fn run(directory: &Path, date: u64) -> Result<()> {
    let place = workspace::process_directory(&std::env::temp_dir(), "guard-dist-")?;
    let outcome = second(&place, date).and_then(|()| {
        let other = place.join(FOLDER).join("target/dist");
        compare(directory, &other)?;
        no_path(directory, &[workspace::root(), &place])
    });
    let removed = fs::remove_dir_all(&place);
    outcome?;
    removed.with_context(|| format!("remove {}", place.display()))
}

/// Neither as long as the first folder's path nor as deep.
const FOLDER: &str = "another/place/with-a-longer-name";

fn second(place: &Path, date: u64) -> Result<()> {
    let root = place.join(FOLDER);
    fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    let copy = format!(
        "set -o pipefail; git ls-files -z --cached --others --exclude-standard | tar --null \
         --files-from=- --create | tar --extract --directory {}",
        root.display()
    );
    progress::capture(Command::new("bash").args(["-ec", &copy]).current_dir(workspace::root()))
        .context("copy the sources")?;
    let mut cargo = workspace::cargo();
    cargo
        .args(["run", "--quiet", "--locked", "--package", "xtask", "--", "dist", "--no-lint"])
        .current_dir(&root)
        .env_remove("CARGO_TARGET_DIR")
        .env(EPOCH, date.to_string());
    progress::run("make the packages in another folder", &mut cargo)
}

/// Fails with the name of the first file that differs.
fn compare(first: &Path, second: &Path) -> Result<()> {
    let names = names(first)?;
    let others = self::names(second)?;
    ensure!(names == others, "not the same files: {names:?} and {others:?}");
    for name in &names {
        let read = |directory: &Path| {
            let path = directory.join(name);
            fs::read(&path).with_context(|| format!("read {}", path.display()))
        };
        if read(first)? != read(second)? {
            bail!("{name} differs between two builds in two folders");
        }
    }
    eprintln!("xtask: dist verify: {} are the same in two folders", names.join(", "));
    Ok(())
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

/// Packages are compressed: looks into their content.
fn no_path(directory: &Path, folders: &[&Path]) -> Result<()> {
    let place = workspace::process_directory(&std::env::temp_dir(), "guard-unpacked-")?;
    let outcome = (|| {
        for name in names(directory)?.iter().filter(|name| name.ends_with(".deb")) {
            let path = directory.join(name);
            progress::capture(
                Command::new("dpkg-deb").arg("--raw-extract").arg(&path).arg(&place),
            )?;
        }
        for folder in folders {
            let mut grep = Command::new("grep");
            grep.args(["--recursive", "--files-with-matches", "--fixed-strings"])
                .arg(folder)
                .arg(&place);
            let found = grep.output().context("start grep")?;
            let files = String::from_utf8_lossy(&found.stdout);
            ensure!(files.trim().is_empty(), "{} is named in {}", folder.display(), files.trim());
        }
        Ok(())
    })();
    let removed = fs::remove_dir_all(&place);
    outcome?;
    removed.with_context(|| format!("remove {}", place.display()))
}
