//! A wipe never crosses a mount: neither one that is there, nor one that appears meanwhile.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use guard_agent::host::wipe::{Deleted, Root, WipeError, census, delete};

use crate::harness::guarded::populate;
use crate::harness::mount::Mount;
use crate::harness::registry::Test;
use crate::harness::tree;

pub(super) const TESTS: &[Test] = &[
    Test::new("wipe_stops_at_a_mount_and_touches_nothing_below_it", stops),
    Test::new("wipe_stops_at_a_mount_that_appears_meanwhile", raced),
    Test::new("wipe_stops_at_a_file_that_is_mounted_on", file_mounted),
];

const ROOT: &str = "/var/lib/guard-standin-wipe";

/// An emptied root that goes away.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self> {
        let path = PathBuf::from(ROOT);
        if path.exists() {
            fs::remove_dir_all(&path).context("an earlier test's root")?;
        }
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn delete(
        &self,
        progress: &mut dyn FnMut(&Deleted) -> bool,
    ) -> Result<(Deleted, Result<(), WipeError>)> {
        Ok(delete(&Root::open(&self.0)?, progress))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Only if it is empty: mounts stay.
        let _ = fs::remove_dir(&self.0);
    }
}

fn must_stop_at(result: Result<(), WipeError>, path: &Path) -> Result<()> {
    match result {
        Err(WipeError::Mountpoint { path: found }) if found == path => Ok(()),
        other => bail!("had to stop at {}: {other:?}", path.display()),
    }
}

fn must_be_empty(place: &Place) -> Result<()> {
    let (_, result) = place.delete(&mut |_| true)?;
    result?;
    ensure!(fs::read_dir(&place.0)?.next().is_none(), "something is left");
    Ok(())
}

fn stops() -> Result<()> {
    let place = Place::new()?;
    populate(&place.at("a"))?;
    let mut pool = Mount::tmpfs(place.at("storage-pools/shared"))?;
    populate(pool.path())?;
    std::os::unix::fs::symlink(pool.path(), place.at("a/link"))?;
    // The same filesystem as the root's, at another place in it: a device number would not tell.
    let outside = PathBuf::from("/var/lib/guard-standin-outside");
    populate(&outside)?;
    let mut bound = Mount::bind(&outside, place.at("bound"))?;

    let counted = census(&Root::open(&place.0)?, &place.0)?;
    ensure!(counted.stopped_at.is_some(), "the census went through a mount: {counted:?}");
    let (_, result) = place.delete(&mut |_| true)?;
    ensure!(matches!(result, Err(WipeError::Mountpoint { .. })), "{result:?}");
    ensure!(
        tree::count(pool.path())? == 20 && tree::count(&outside)? == 20,
        "something below a mount is gone"
    );
    pool.unmount()?;
    let (_, result) = place.delete(&mut |_| true)?;
    must_stop_at(result, bound.path())?;
    ensure!(tree::count(&outside)? == 20, "something below the bind mount is gone");
    bound.unmount()?;
    must_be_empty(&place)?;
    ensure!(tree::count(&outside)? == 20, "what is outside is gone");
    fs::remove_dir_all(&outside).context("tidy up")
}

fn raced() -> Result<()> {
    let place = Place::new()?;
    // Files go before directories: at the first beat the directory was seen, and not entered yet.
    fs::create_dir(place.at("later"))?;
    for number in 0..1500 {
        fs::write(place.at(&number.to_string()), "")?;
    }
    let outside = PathBuf::from("/var/lib/guard-standin-outside");
    populate(&outside)?;
    let mut mount = None;
    let later = place.at("later");
    let (deleted, result) = place.delete(&mut |_| {
        mount = mount.take().or_else(|| Mount::bind(&outside, &later).ok());
        true
    })?;
    ensure!(deleted.files == 1500, "{deleted:?}");
    must_stop_at(result, &later)?;
    ensure!(tree::count(&outside)? == 20, "something below the mount is gone");
    mount.context("nothing was mounted")?.unmount()?;
    must_be_empty(&place)?;
    fs::remove_dir_all(&outside).context("tidy up")
}

fn file_mounted() -> Result<()> {
    let place = Place::new()?;
    fs::write(place.at("file"), "mine")?;
    let precious = PathBuf::from("/var/lib/guard-standin-precious");
    fs::write(&precious, "precious")?;
    nix::mount::mount(
        Some(&precious),
        &place.at("file"),
        None::<&str>,
        nix::mount::MsFlags::MS_BIND,
        None::<&str>,
    )
    .context("bind a file")?;
    let (_, result) = place.delete(&mut |_| true)?;
    let stopped = must_stop_at(result, &place.at("file"));
    nix::mount::umount2(&place.at("file"), nix::mount::MntFlags::empty())
        .context("unmount the file")?;
    stopped?;
    ensure!(fs::read(&precious)? == b"precious", "the file below the mount was changed");
    must_be_empty(&place)?;
    fs::remove_file(&precious).context("tidy up")
}
