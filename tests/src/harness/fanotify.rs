//! A guarded root of the tier without programs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;

use super::guarded::Guarded;

const TIER: &str = "[enforcement]\ntier = \"fanotify\"";
/// A guarded root of the tier `fanotify`. It has pins of its own, so that no program of another
/// test's is attached to its maps. Ends responders and seals with the test, which no pin does.
pub struct Ground(pub Guarded);

impl Ground {
    pub fn new(name: &str, settings: &str) -> Result<Self> {
        Ok(Self(Guarded::with_own_pins(name, &format!("{settings}\n{TIER}"))?))
    }

    pub fn unload(&self) -> Result<()> {
        self.0.installation.unload()
    }

    /// The process that answers.
    pub fn responder(&self) -> Result<Pid> {
        let maps = self.0.installation.maps_dir()?;
        let is_ours = |directory: &Path| {
            let name = fs::read_to_string(directory.join("comm")).unwrap_or_default();
            let line = fs::read_to_string(directory.join("cmdline")).unwrap_or_default();
            name.trim_end() == "guard-answer"
                && line.split('\0').any(|word| Path::new(word) == maps)
        };
        let entries = fs::read_dir("/proc").context("list /proc")?.flatten();
        let found: Vec<PathBuf> =
            entries.map(|entry| entry.path()).filter(|path| is_ours(path)).collect();
        ensure!(
            found.len() == 1,
            "{} responders run on {}: {found:?}",
            found.len(),
            maps.display()
        );
        let name = found[0].file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Pid::from_raw(name.parse().context("a process's number")?))
    }

    pub fn reasons(&self) -> Result<Vec<String>> {
        let posture = self.0.status()?["posture"].clone();
        let reasons = posture["reasons"].as_array().context("the posture has no reasons")?;
        Ok(reasons
            .iter()
            .map(|reason| reason["code"].as_str().unwrap_or_default().to_owned())
            .collect())
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // The test has failed already if the agent still runs.
        let _ = self.unload();
    }
}

/// The files that a test's pool has, told without listing a directory.
pub fn intact(pool: &Path) -> Result<()> {
    for directory in [pool.to_owned(), pool.join("volume")] {
        for number in 0..10 {
            let file = directory.join(format!("file{number}"));
            fs::symlink_metadata(&file).with_context(|| format!("{} is gone", file.display()))?;
        }
    }
    Ok(())
}
