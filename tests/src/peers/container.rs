//! A container as the storage sees it: a mount namespace of its own, and a bind mount of one volume in it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, pivot_root};

const ROOTFS: &str = "/run/guard-tests/rootfs";

/// Runs `work` with the path at which the container finds the volume. It has a root of its own, in
/// which nothing of the host is left.
pub fn with_own_root(volume: &Path, work: impl FnOnce(&Path) -> Result<()> + Send) -> Result<()> {
    with_root(volume, |_| Ok(()), work)
}

/// The same with the programs of the host, so that it can run them.
pub fn with_the_hosts_programs(volume: &Path, work: impl FnOnce(&Path) -> Result<()> + Send) -> Result<()> {
    let furnish = |rootfs: &Path| {
        for part in ["usr", "etc", "dev", "proc"] {
            bind(&Path::new("/").join(part), &rootfs.join(part))?;
        }
        for link in ["bin", "sbin", "lib", "lib64"] {
            let target =
                fs::read_link(Path::new("/").join(link)).with_context(|| format!("read the link /{link}"))?;
            symlink(target, rootfs.join(link))?;
        }
        Ok(fs::create_dir(rootfs.join("tmp"))?)
    };
    with_root(volume, furnish, work)
}

fn with_root(
    volume: &Path,
    furnish: impl FnOnce(&Path) -> Result<()> + Send,
    work: impl FnOnce(&Path) -> Result<()> + Send,
) -> Result<()> {
    in_own_namespace(|| {
        let rootfs = Path::new(ROOTFS);
        fs::create_dir_all(rootfs)?;
        mount(Some("rootfs"), rootfs, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
        furnish(rootfs)?;
        bind(volume, &rootfs.join("data"))?;
        fs::create_dir(rootfs.join("host"))?;
        pivot_root(rootfs, &rootfs.join("host")).context("pivot_root")?;
        chdir("/")?;
        umount2("/host", MntFlags::MNT_DETACH).context("let go of the host's mounts")?;
        work(Path::new("/data"))
    })
}

/// The same with the host's root still there, as a service with private mounts has it.
pub fn beside_the_host(volume: &Path, work: impl FnOnce(&Path) -> Result<()> + Send) -> Result<()> {
    in_own_namespace(|| {
        let place = Path::new("/srv/guest/data");
        bind(volume, place)?;
        work(place)
    })
}

/// Runs `work` in a mount namespace of its own, which starts as a copy of the host's.
pub fn in_own_namespace(work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    // The namespace is the thread's, and goes with it.
    let enter = || {
        unshare(CloneFlags::CLONE_NEWNS).context("unshare the mount namespace")?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        work()
    };
    let joined = thread::scope(|scope| scope.spawn(enter).join());
    joined.unwrap_or_else(|_| Err(anyhow!("the container's thread panicked")))
}

fn bind(volume: &Path, place: &Path) -> Result<()> {
    fs::create_dir_all(place)?;
    mount(Some(volume), place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("bind {} to {}", volume.display(), place.display()))
}
