//! Kills a process the moment it enters a system call, which then does not happen: strace(1) does
//! it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// A trap that is set. It is taken away when dropped.
#[derive(Debug)]
pub struct Trap {
    strace: Child,
    /// Kept open: strace must not fail because nobody listens.
    _messages: BufReader<ChildStderr>,
}

impl Trap {
    /// Set in all threads of a process: SIGKILL at the next such call on this path, or on a
    /// descriptor of it.
    pub fn set(pid: u32, path: &Path, call: &str) -> Result<Self> {
        let mut strace = Command::new("strace")
            .args(["--follow-forks", "--output=/dev/null"])
            .arg(format!("--attach={pid}"))
            .arg(format!("--trace-path={}", path.display()))
            .arg(format!("--trace={call}"))
            .arg(format!("--inject={call}:signal=KILL"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start strace")?;
        let mut messages = BufReader::new(strace.stderr.take().context("no standard error")?);
        let mut said = String::new();
        while !said.contains(" attached") {
            if messages.read_line(&mut said).context("wait for strace")? == 0 {
                let status = strace.wait().context("wait for strace")?;
                bail!("strace ended with {status} before it was attached: {said}");
            }
        }
        Ok(Self { strace, _messages: messages })
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        // It ends with the process that it has killed.
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}
