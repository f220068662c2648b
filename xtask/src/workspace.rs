//! Paths: the workspace, its target directory, and the cache that survives `cargo clean`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, ffi::OsString, io};

use anyhow::{Context as _, Result, bail};

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a member of the workspace")
}

/// Cargo's target directory.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Downloads and kernels: `$GUARD_CACHE`, or `guard-agent` in the user's cache directory.
pub(crate) fn cache() -> Result<PathBuf> {
    let directory = env::var_os("GUARD_CACHE")
        .map(PathBuf::from)
        .or_else(|| env::var_os("XDG_CACHE_HOME").map(|dir| Path::new(&dir).join("guard-agent")))
        .or_else(|| env::home_dir().map(|home| home.join(".cache/guard-agent")))
        .context("no place for the cache: set GUARD_CACHE, XDG_CACHE_HOME or HOME")?;
    fs::create_dir_all(&directory)
        .with_context(|| format!("create the cache {}", directory.display()))?;
    Ok(directory)
}

/// Held while the cache or the machine is changed, so that two steps at once do not collide.
pub(crate) fn lock_cache() -> Result<File> {
    let path = cache()?.join("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("xtask: another step holds {}, waiting for it", path.display());
        file.lock().with_context(|| format!("lock {}", path.display()))?;
    }
    Ok(file)
}

/// An empty directory at `path`, whatever was there.
pub(crate) fn fresh_directory(path: PathBuf) -> Result<PathBuf> {
    if path.exists() {
        fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}

/// A new directory below `parent` for a step of this process. Those whose process is gone are
/// removed first.
pub(crate) fn process_directory(parent: &Path, prefix: &str) -> Result<PathBuf> {
    let own = std::process::id();
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    for path in fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix(prefix));
        let owner = name.and_then(|name| name.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Best effort: remains are only litter.
            let _ = fs::remove_dir_all(&path);
        }
    }
    for number in 0.. {
        let path = parent.join(format!("{prefix}{own}-{number}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("create {}", path.display())),
        }
    }
    bail!("every directory {}/{prefix}{own}-N exists", parent.display())
}

/// The cargo that runs this, without its variables about this very package.
pub(crate) fn cargo() -> Command {
    without_package_variables(Command::new(
        env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")),
    ))
}

/// Removes the variables that `cargo run` sets for xtask: seen by a nested cargo, they would make
/// build scripts run again for nothing.
pub(crate) fn without_package_variables(mut command: Command) -> Command {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command.current_dir(root());
    command
}
