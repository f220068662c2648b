//! Mounts that go away with their value, and a look at the mount table.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A mount. It is unmounted lazily when dropped, unless [`Mount::unmount`] did it before.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
    mounted: bool,
}

impl Mount {
    /// Mounts a filesystem at `path`, which is created if need be.
    pub fn new(kind: &str, source: &str, path: impl Into<PathBuf>, options: &str) -> Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        mount(Some(source), &path, Some(kind), MsFlags::empty(), Some(options))
            .with_context(|| format!("mount {kind} {source} at {}", path.display()))?;
        Ok(Self { path, mounted: true })
    }

    /// A tmpfs, the stand-in for a shared filesystem.
    pub fn tmpfs(path: impl Into<PathBuf>) -> Result<Self> {
        Self::new("tmpfs", "standin", path, "mode=755")
    }

    /// A file that stands in front of another from now on.
    pub fn over(source: &Path, path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        mount(Some(source), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("bind {} over {}", source.display(), path.display()))?;
        Ok(Self { path, mounted: true })
    }

    /// Another place for the files at `source`.
    pub fn bind(source: &Path, path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        mount(Some(source), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("bind {} to {}", source.display(), path.display()))?;
        Ok(Self { path, mounted: true })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts it, and waits for its users as umount does: fails if it is busy.
    pub fn unmount(&mut self) -> Result<()> {
        self.detach(MntFlags::empty())
    }

    /// `umount -l`: the mount is gone at once, the superblock with its last user.
    pub fn unmount_lazily(&mut self) -> Result<()> {
        self.detach(MntFlags::MNT_DETACH)
    }

    fn detach(&mut self, flags: MntFlags) -> Result<()> {
        umount2(&self.path, flags).with_context(|| format!("unmount {}", self.path.display()))?;
        self.mounted = false;
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            // Best effort: a test may have unmounted it by other means.
            let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        }
    }
}

/// The lines of this process's mount table that name `path` as their mountpoint. Not parsed with
/// the agent's own parser: the tests must not share its mistakes.
pub fn mountinfo_of(path: &Path) -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let path = path.to_string_lossy();
    Ok(table
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some(&*path))
        .map(str::to_owned)
        .collect())
}
