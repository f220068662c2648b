//! A container as the storage sees it: a mount namespace of its own, and a bind mount of one volume
//! in it.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, pivot_root};

use super::calls;

const ROOTFS: &str = "/run/guard-tests/rootfs";

/// Runs `work` with the path at which the container finds the volume. It has a root of its own, in
/// which nothing of the host is left.
pub fn with_own_root(volume: &Path, work: impl FnOnce(&Path) -> Result<()> + Send) -> Result<()> {
    with_root(|_| Ok(()), |place| bind(volume, place), work)
}

/// The same with a volume that the container's maker brings to the place that it is given.
pub fn with_brought(
    bring_volume: impl FnOnce(&Path) -> Result<()> + Send,
    work: impl FnOnce(&Path) -> Result<()> + Send,
) -> Result<()> {
    with_root(|_| Ok(()), bring_volume, work)
}

/// The same with the host's mounts still to be seen, at the second path.
pub fn with_the_host_in_view(
    volume: &Path,
    work: impl FnOnce(&Path, &Path) -> Result<()> + Send,
) -> Result<()> {
    in_own_namespace(|| {
        enter_root(|_| Ok(()), |place| bind(volume, place))?;
        work(Path::new("/data"), Path::new("/host"))
    })
}

/// The same with the programs of the host, so that it can run them.
pub fn with_the_hosts_programs(
    volume: &Path,
    work: impl FnOnce(&Path) -> Result<()> + Send,
) -> Result<()> {
    with_root(furnish, |place| bind(volume, place), work)
}

/// The same with a directory and all that is mounted below it, as a node's plugin is given the
/// kubelet's directory.
pub fn with_a_tree(directory: &Path, work: impl FnOnce(&Path) -> Result<()> + Send) -> Result<()> {
    let bring = |place: &Path| {
        fs::create_dir_all(place)?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(directory), place, None::<&str>, flags, None::<&str>).context("bind a tree")
    };
    with_root(furnish, bring, work)
}

/// The same with the volume's owners mapped as a user namespace maps them.
pub fn with_mapped_owners(
    volume: &Path,
    owners: &Owners,
    work: impl FnOnce(&Path) -> Result<()> + Send,
) -> Result<()> {
    let attach = |place: &Path| {
        fs::create_dir_all(place)?;
        let copy = calls::detached_copy(volume).context("open_tree")?;
        calls::map_owners(copy.as_fd(), &owners.open()?).context("mount_setattr")?;
        calls::attach(copy.as_fd(), place).context("move_mount")
    };
    with_root(furnish, attach, work)
}

/// Puts the programs of the host into a container's root.
fn furnish(rootfs: &Path) -> Result<()> {
    for part in ["usr", "etc", "dev", "proc"] {
        bind(&Path::new("/").join(part), &rootfs.join(part))?;
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        let target = fs::read_link(Path::new("/").join(link))
            .with_context(|| format!("read the link /{link}"))?;
        symlink(target, rootfs.join(link))?;
    }
    Ok(fs::create_dir(rootfs.join("tmp"))?)
}

fn with_root(
    furnish: impl FnOnce(&Path) -> Result<()> + Send,
    bring_volume: impl FnOnce(&Path) -> Result<()> + Send,
    work: impl FnOnce(&Path) -> Result<()> + Send,
) -> Result<()> {
    in_own_namespace(|| {
        enter_root(furnish, bring_volume)?;
        umount2("/host", MntFlags::MNT_DETACH).context("let go of the host's mounts")?;
        work(Path::new("/data"))
    })
}

fn enter_root(
    furnish: impl FnOnce(&Path) -> Result<()>,
    bring_volume: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let rootfs = Path::new(ROOTFS);
    fs::create_dir_all(rootfs)?;
    mount(Some("rootfs"), rootfs, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    furnish(rootfs)?;
    bring_volume(&rootfs.join("data"))?;
    fs::create_dir(rootfs.join("host"))?;
    pivot_root(rootfs, &rootfs.join("host")).context("pivot_root")?;
    Ok(chdir("/")?)
}

/// Runs `work` with the volume as its root, and nothing else, as virtiofsd shuts itself in.
pub fn as_the_root(volume: &Path, work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    in_own_namespace(|| {
        bind(volume, volume)?;
        chdir(volume)?;
        pivot_root(".", ".").context("pivot_root")?;
        umount2(".", MntFlags::MNT_DETACH).context("let go of the host's mounts")?;
        chdir("/")?;
        work()
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
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )?;
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

/// A user namespace as a container has it: its users are others outside. It ends when this is
/// dropped.
#[derive(Debug)]
pub struct Owners(Child);

impl Owners {
    /// Root inside is this user outside, and so on.
    pub const FIRST: u32 = 100_000;

    pub fn new() -> Result<Self> {
        // It closes its output once it is in the namespace, by becoming `sleep`.
        let script = "exec sleep 1000 >/dev/null";
        let mut command = Command::new("unshare");
        command.args(["--user", "sh", "-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut owners = Self(command.spawn().context("start unshare")?);
        let stdout = owners.0.stdout.as_mut().context("no output")?;
        std::io::copy(stdout, &mut std::io::sink()).context("wait for a user namespace")?;
        for map in ["uid_map", "gid_map"] {
            let path = format!("/proc/{}/{map}", owners.0.id());
            fs::write(&path, format!("0 {} 65536\n", Self::FIRST))
                .with_context(|| format!("write {path}"))?;
        }
        Ok(owners)
    }

    fn open(&self) -> Result<File> {
        File::open(format!("/proc/{}/ns/user", self.0.id())).context("open a user namespace")
    }

    /// A command that runs another one as the namespace's root, in a copy of the mounts that is its
    /// own.
    pub fn enter(&self) -> [String; 5] {
        let namespace = format!("--user=/proc/{}/ns/user", self.0.id());
        ["nsenter".into(), namespace, "--setuid=0".into(), "--setgid=0".into(), "unshare".into()]
    }
}

impl Drop for Owners {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
