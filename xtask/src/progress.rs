//! Runs long commands quietly: one line at start, a sign of life, one line at the end; the whole
//! output only when they fail.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::workspace;

const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
const SHOWN_ON_FAILURE: usize = 40;

/// Runs `command`, named `what` to the reader, with its output in a log of the cache.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<()> {
    let logs = workspace::cache()?.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
    let name: String =
        what.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let path = logs.join(format!("{name}-{}.log", std::process::id()));
    run_logged(what, command, &path)?;
    // Best effort: a log that stays is only litter.
    let _ = fs::remove_file(&path);
    Ok(())
}

/// Runs `command`, named `what` to the reader, with its output in the file `path`.
pub(crate) fn run_logged(what: &str, command: &mut Command, path: &Path) -> Result<()> {
    let log = File::create(path).with_context(|| format!("create {}", path.display()))?;
    eprintln!("xtask: {what} …");
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("{what}: start {}", command.get_program().display()))?;
    let mut next_sign = start + SIGN_OF_LIFE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= next_sign {
            eprintln!("xtask:   {:>3} s  {}", start.elapsed().as_secs(), tail(path, 1).trim());
            next_sign += SIGN_OF_LIFE;
        }
        thread::sleep(POLL);
    };
    if !status.success() {
        bail!(
            "{what} failed ({status}): {command:?}\nthe end of {}:\n{}",
            path.display(),
            tail(path, SHOWN_ON_FAILURE)
        );
    }
    eprintln!("xtask:   done in {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// Runs `command` and returns its output; its complaint is in the error.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{command:?} printed something that is not UTF-8"))
}

/// The last lines of a text file, or nothing if it cannot be read.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
