//! Makes and counts files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Makes `files` files, spread over nested directories of at most `per_directory` files each.
pub fn fill(root: &Path, files: usize, per_directory: usize) -> Result<()> {
    for number in 0..files {
        let directory = number / per_directory.max(1);
        let place = root.join(format!("d{}", directory % 10)).join(format!("e{directory}"));
        if number % per_directory.max(1) == 0 {
            fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
        }
        let file = place.join(format!("f{number}"));
        fs::write(&file, format!("{number}\n"))
            .with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// Counts the files that are no directories below `root`, not following links.
pub fn count(root: &Path) -> Result<usize> {
    let mut files = 0;
    for entry in fs::read_dir(root).with_context(|| format!("list {}", root.display()))? {
        let entry = entry.with_context(|| format!("list {}", root.display()))?;
        let kind =
            entry.file_type().with_context(|| format!("look at {}", entry.path().display()))?;
        files += if kind.is_dir() { count(&entry.path())? } else { 1 };
    }
    Ok(files)
}

/// Everything below `root` by its path from there: the size of a file that is no directory, `None`
/// for a directory.
pub type Contents = BTreeMap<PathBuf, Option<u64>>;

/// Reads the contents of a tree, not following links.
pub fn contents(root: &Path) -> Result<Contents> {
    let mut all = Contents::new();
    collect(root, root, &mut all)?;
    Ok(all)
}

fn collect(root: &Path, directory: &Path, all: &mut Contents) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let path = entry.with_context(|| format!("list {}", directory.display()))?.path();
        let metadata =
            fs::symlink_metadata(&path).with_context(|| format!("look at {}", path.display()))?;
        let name = path.strip_prefix(root).unwrap_or(&path).to_owned();
        all.insert(name, (!metadata.is_dir()).then_some(metadata.len()));
        if metadata.is_dir() {
            collect(root, &path, all)?;
        }
    }
    Ok(())
}
