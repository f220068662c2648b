//! Processes that keep a pool in use: in a mount namespace of their own, by an open file, by a
//! working directory.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// A process that does nothing but hold. It is killed when dropped.
#[derive(Debug)]
pub struct Holder(Child);

impl Holder {
    /// Has a file open.
    pub fn of_file(file: &Path) -> Result<Self> {
        Self::start(
            "sh",
            &["-c", "exec 9<\"$1\"; cd /; echo ready; exec sleep 1000", "sh"],
            &[file],
        )
    }

    /// Works in a directory.
    pub fn in_directory(directory: &Path) -> Result<Self> {
        Self::start("sh", &["-c", "cd \"$1\"; echo ready; exec sleep 1000", "sh"], &[directory])
    }

    /// Lives in a container that has `volume` at `/data`, and nothing of the host but a busybox.
    pub fn in_container(volume: &Path) -> Result<Self> {
        let script = "set -e; root=$(mktemp -d); mount -t tmpfs rootfs $root; mkdir $root/data $root/host; cp /bin/busybox $root
            mount --bind \"$1\" $root/data; cd $root; pivot_root . host; cd /; /busybox umount -l /host
            echo ready; exec /busybox sleep 1000";
        Self::start(
            "unshare",
            &["-m", "--propagation", "private", "sh", "-c", script, "sh"],
            &[volume],
        )
    }

    /// Lives in a private copy of the host's mounts, in which `what` is also bound to `place`.
    pub fn in_copy(what: &Path, place: &Path) -> Result<Self> {
        let script = "mount --bind \"$1\" \"$2\" && cd / && echo ready && exec sleep 1000";
        Self::start(
            "unshare",
            &["-m", "--propagation", "private", "sh", "-c", script, "sh"],
            &[what, place],
        )
    }

    fn start(program: &str, arguments: &[&str], paths: &[&Path]) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).args(paths).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {program}"))?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("no output")?;
        let holder = Self(child);
        BufReader::new(stdout).read_line(&mut line).context("wait for a holder")?;
        ensure!(line == "ready\n", "a holder did not begin to hold: {line:?}");
        Ok(holder)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Fails if it has ended.
    pub fn must_run(&mut self) -> Result<()> {
        let ended = self.0.try_wait().context("wait for a holder")?;
        ensure!(ended.is_none(), "a holder has ended: {ended:?}");
        Ok(())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
