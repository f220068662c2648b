//! A guarded root of a test's own, the agent's files for it, and pools of tmpfs below it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::agent::Installation;
use super::mount::Mount;
use super::{command, run, wait};

const PARENT: &str = "/var/lib/guard-standin";

/// The root and the installation. Drop agents and mounts before it.
#[derive(Debug)]
pub struct Guarded {
    pub installation: Installation,
    root: PathBuf,
    /// On the boot clock: older records are another test's.
    made_boot_ns: u64,
}

impl Guarded {
    /// A fresh root that guards tmpfs. `settings` are further keys of the root, and what may follow
    /// them. Its agent adopts the programs of earlier tests, if there are any.
    pub fn new(name: &str, settings: &str) -> Result<Self> {
        let root = root(name)?;
        Self::with(Installation::on_kept_pins(name, &policy(&root, settings))?, root)
    }

    /// The same with pins of its own, for tests about them.
    pub fn with_own_pins(name: &str, settings: &str) -> Result<Self> {
        let root = root(name)?;
        Self::with(Installation::new(name, &policy(&root, settings))?, root)
    }

    fn with(installation: Installation, root: PathBuf) -> Result<Self> {
        let now =
            Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).context("read the boot clock")?);
        let made_boot_ns = u64::try_from(now.as_nanos()).context("the boot clock")?;
        Ok(Self { installation, root, made_boot_ns })
    }

    /// The policy with other settings.
    pub fn policy(&self, settings: &str) -> String {
        policy(&self.root, settings)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A tmpfs below the root, with a few files in it: `file0` to `file9`, and `volume/file0` and
    /// so on.
    pub fn mount(&self, name: &str) -> Result<Mount> {
        let mount = Mount::tmpfs(self.root.join(name))?;
        populate(mount.path())?;
        Ok(mount)
    }

    /// The same, once the agent knows it.
    pub fn pool(&self, name: &str) -> Result<Mount> {
        let mount = self.mount(name)?;
        wait::until_some("the agent knows the pool", wait::LIMIT, || self.report(mount.path()))?;
        Ok(mount)
    }

    /// Report of `guardctl pools` on the pool that is mounted there.
    pub fn report(&self, mountpoint: &Path) -> Result<Option<Value>> {
        let pools = self.installation.guardctl_json(&["pools"])?;
        let mountpoint = mountpoint.to_string_lossy();
        let is_it = |pool: &&Value| {
            pool["mountpoints"]
                .as_array()
                .is_some_and(|all| all.iter().any(|path| *path == *mountpoint))
        };
        Ok(pools.as_array().context("`guardctl pools` says no list")?.iter().find(is_it).cloned())
    }

    /// Waits until `guardctl pools` shows this mode.
    pub fn wait_for_mode(&self, mountpoint: &Path, mode: &str) -> Result<()> {
        wait::until(&format!("the pool is {mode}"), wait::LIMIT, || {
            Ok(self.report(mountpoint)?.is_some_and(|pool| pool["mode"] == mode))
        })
    }

    /// Output of `guardctl status`, in any posture.
    pub fn status(&self) -> Result<Value> {
        self.installation.status().with_context(|| self.whereabouts())
    }

    /// Text that explains an agent's failure.
    fn whereabouts(&self) -> String {
        format!("the agent's log:\n{}\n{}", self.installation.log(), run::kernel_stacks())
    }

    /// One of the kernel's counters.
    pub fn counter(&self, name: &str) -> Result<u64> {
        self.status()?["counters"][name]
            .as_u64()
            .with_context(|| format!("the status has no counter {name}"))
    }

    /// Runs guardctl, which must succeed.
    pub fn guardctl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.installation.guardctl(arguments)?;
        let text = command::text(&output);
        ensure!(
            output.status.success(),
            "guardctl {}: {}: {text}",
            arguments.join(" "),
            output.status
        );
        Ok(text)
    }

    /// Waits for a record in the audit log, of this test's time.
    pub fn wait_for_record(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        wait::until_some(&format!("the audit log has {what}"), wait::LIMIT, || {
            let is_new = |record: &Value| record["boot_ns"].as_u64() >= Some(self.made_boot_ns);
            let records = self.installation.audit_records()?;
            Ok(records.into_iter().find(|record| is_new(record) && is_it(record)))
        })
        .with_context(|| self.whereabouts())
    }

    /// Waits for a decision with this reason on this path inside its pool.
    pub fn wait_for_decision(&self, reason: &str, path: &str) -> Result<Value> {
        let record =
            self.wait_for_record(&format!("a decision `{reason}` on {path}"), |record| {
                record["kind"] == "decision"
                    && record["decision"]["reason"] == reason
                    && record["decision"]["path"] == path
            })?;
        Ok(record["decision"].clone())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Only empty directories: remaining mounts stay.
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_dir(&self.root);
    }
}

fn root(name: &str) -> Result<PathBuf> {
    let root = Path::new(PARENT).join(name);
    fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    Ok(root)
}

fn policy(root: &Path, settings: &str) -> String {
    format!(
        "version = 1\n[[root]]\npath = \"{}\"\nfilesystems = \
         [\"tmpfs\"]\n{settings}\n",
        root.display()
    )
}

/// Makes `file0` to `file9` in a directory, and in `volume` below it.
pub fn populate(directory: &Path) -> Result<()> {
    for place in [directory.to_owned(), directory.join("volume")] {
        fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
        for number in 0..10 {
            let file = place.join(format!("file{number}"));
            fs::write(&file, "content\n").with_context(|| format!("write {}", file.display()))?;
        }
    }
    Ok(())
}

/// The exit code of a program that was not killed.
pub fn exit_code(output: &Output) -> Result<i32> {
    match output.status.code() {
        Some(code) => Ok(code),
        None => bail!("killed: {}: {}", output.status, command::text(output)),
    }
}
