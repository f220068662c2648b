//! Attempts that must be denied, and attempts that must pass.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::command;

/// Fails unless it was denied with EPERM, as the barrier does.
pub fn denied<T: Debug>(what: &str, outcome: io::Result<T>) -> Result<()> {
    match outcome {
        Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => Ok(()),
        Err(error) => bail!("{what}: had to be denied with EPERM, and failed otherwise: {error}"),
        Ok(_) => bail!("{what}: had to be denied, and passed"),
    }
}

/// Fails unless the kernel itself refused it, with this error.
pub fn failed_with<T: Debug>(what: &str, outcome: io::Result<T>, errno: Errno) -> Result<()> {
    match outcome {
        Err(error) if error.raw_os_error() == Some(errno as i32) => Ok(()),
        outcome => bail!("{what}: had to fail with {errno}: {outcome:?}"),
    }
}

/// Fails unless a file has exactly this content.
pub fn has_content(path: &Path, content: &str) -> Result<()> {
    let found = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let shown = String::from_utf8_lossy(&found);
    ensure!(shown == content, "{} holds {:?}, and not {content:?}", path.display(), shown);
    Ok(())
}

/// Fails unless it went well.
pub fn passes<T>(what: &str, outcome: io::Result<T>) -> Result<T> {
    outcome.with_context(|| format!("{what}: had to pass"))
}

/// `rm -rf` must leave it there.
pub fn rm_is_denied(path: &Path) -> Result<()> {
    let text = command::run_failing("rm", &["-rf", &path.to_string_lossy()])?;
    ensure!(text.contains("Operation not permitted"), "rm failed otherwise: {text}");
    ensure!(path.exists(), "rm was denied, and {} is gone", path.display());
    Ok(())
}

/// `rm -rf` must remove it.
pub fn rm_passes(path: &Path) -> Result<()> {
    ensure!(path.exists(), "{} is not there", path.display());
    command::run("rm", &["-rf", &path.to_string_lossy()])?;
    ensure!(!path.exists(), "rm succeeded, and {} is there", path.display());
    Ok(())
}

/// Runs a script in a mount namespace of its own, a private copy of the host's.
pub fn in_new_namespace(script: &str, arguments: &[&Path]) -> Result<Output> {
    let mut all = vec!["-m", "--propagation", "private", "sh", "-c", script, "sh"];
    let arguments: Vec<String> = arguments.iter().map(|path| path.display().to_string()).collect();
    all.extend(arguments.iter().map(String::as_str));
    command::attempt("unshare", &all)
}

/// `RENAME_EXCHANGE`.
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    Ok(renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE)?)
}

/// `open` with `O_TRUNC`.
pub fn open_truncating(path: &Path) -> io::Result<File> {
    File::options().write(true).truncate(true).open(path)
}

/// `ftruncate`.
pub fn truncate_open(path: &Path) -> io::Result<()> {
    File::options().write(true).open(path)?.set_len(0)
}

/// `truncate`, by name.
pub fn truncate(path: &Path) -> io::Result<()> {
    Ok(nix::unistd::truncate(path, 0)?)
}

/// A copy of `rm` that policy can tell from the host's.
pub fn copy_rm(to: &Path) -> Result<()> {
    let directory = to.parent().context("no directory")?;
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let rm = command::run("sh", &["-c", "readlink -f \"$(command -v rm)\""])?;
    fs::copy(rm.trim(), to).with_context(|| format!("copy {} to {}", rm.trim(), to.display()))?;
    Ok(())
}

/// Whether a program, run in a cgroup that is made for it, ends well with these arguments.
pub fn in_cgroup(cgroup: &Path, program: &Path, argument: &Path) -> Result<bool> {
    fs::create_dir_all(cgroup).with_context(|| format!("create {}", cgroup.display()))?;
    let status = Command::new("sh")
        .args(["-c", "echo $$ > \"$1/cgroup.procs\" && exec \"$2\" -f \"$3\" 2>/dev/null", "sh"])
        .args([cgroup, program, argument])
        .status()
        .context("start sh")?;
    Ok(status.success())
}
