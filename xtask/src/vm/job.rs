//! The directory through which the host gives the guest its command and gets back the status.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::{Boot, quoted};
use crate::kernel::{Layout, initramfs};
use crate::workspace;

const STAGE2: &str = include_str!("../../guest/stage2");
/// Places that the guest mounts over; host files there need a share of their own.
const COVERED: [&str; 4] = ["/run", "/dev", "/proc", "/sys"];

/// One boot's directory, shared with the guest as `/run/guard-vm`.
#[derive(Debug)]
pub(super) struct Job {
    pub directory: PathBuf,
    /// Further read-only shares: tag and path.
    pub shares: Vec<(String, PathBuf)>,
}

impl Job {
    pub(super) fn create(
        boot: &Boot,
        kernel: &Layout,
        environment: &[(String, String)],
    ) -> Result<Self> {
        let directory = workspace::process_directory(&workspace::target().join("vm"), "job-")?;
        let mut job = Self { directory, shares: Vec::new() };
        let places = [workspace::root().to_owned(), workspace::target(), workspace::cache()?];
        for place in
            places.iter().filter(|place| COVERED.iter().any(|covered| place.starts_with(covered)))
        {
            job.shares.push((format!("share{}", job.shares.len()), place.clone()));
        }
        job.write("stage2", STAGE2)?;
        job.write("command", boot.script.as_deref().unwrap_or_default())?;
        job.write("settings", &job.settings(boot)?)?;
        let mut exports = String::new();
        for (name, value) in environment {
            writeln!(exports, "export {name}={}", quoted(value))?;
        }
        job.write("environment", &exports)?;
        let config = kernel.directory.join("config");
        fs::copy(&config, job.directory.join("config"))
            .with_context(|| format!("copy {}", config.display()))?;
        initramfs::write(
            kernel,
            &job.initramfs(),
            initramfs::SHARED_INIT,
            &initramfs::SHARED_MODULES,
        )?;
        Ok(job)
    }

    fn settings(&self, boot: &Boot) -> Result<String> {
        let mut text = String::from("declare -A SHARES=(");
        for (tag, path) in &self.shares {
            write!(text, "[{tag}]={} ", quoted(&path.to_string_lossy()))?;
        }
        let directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        let flag = |set: bool| if set { "1" } else { "" };
        writeln!(text, ")\nDIRECTORY={}", quoted(&directory.to_string_lossy()))?;
        writeln!(text, "NETWORK={}", flag(boot.ceph))?;
        writeln!(text, "INTERACTIVE={}", flag(boot.script.is_none()))?;
        let (rows, columns) = terminal_size().unwrap_or((24, 80));
        writeln!(text, "ROWS={rows} COLUMNS_={columns}")?;
        writeln!(
            text,
            "export TERM={}",
            quoted(&std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned()))
        )?;
        Ok(text)
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))
    }

    pub(super) fn initramfs(&self) -> PathBuf {
        self.directory.join("initramfs.cpio")
    }

    /// The kernel's messages.
    pub(super) fn console(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    /// Complaints of QEMU and the cluster's script.
    pub(super) fn complaints(&self) -> PathBuf {
        self.directory.join("qemu.log")
    }

    /// Whether the guest has come to its second stage.
    pub(super) fn has_started(&self) -> bool {
        self.directory.join("started").exists()
    }

    /// The command's exit status, once it has ended.
    pub(super) fn status(&self) -> Option<i32> {
        fs::read_to_string(self.directory.join("status")).ok()?.trim().parse().ok()
    }

    /// Removes the directory of a boot that went well.
    pub(super) fn remove(&self) {
        // Best effort: the next boot removes leftovers.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Rows and columns of the terminal, from `stty`.
fn terminal_size() -> Option<(u16, u16)> {
    let output = std::process::Command::new("stty")
        .arg("size")
        .stdin(std::process::Stdio::inherit())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (rows, columns) = text.trim().split_once(' ')?;
    Some((rows.parse().ok()?, columns.parse().ok()?))
}
