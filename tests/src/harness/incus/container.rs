//! A container with a volume of the pool: a real guest, started by incusd and liblxc.
//!
//! Instances cannot live on CephFS, so that its own root filesystem is on a pool of the kind `dir`.
//! It is this machine's busybox and nothing else; nothing is fetched, and it has no network.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context as _, Result};

use super::clean::remove;
use super::node::Node;
use crate::harness::command;
use crate::harness::scratch::Scratch;

const NAME: &str = "guest";
const IMAGE: &str = "busybox";
/// The pool of its root filesystem.
const OWN_POOL: &str = "local";
/// Linked statically: it runs in a root filesystem of its own.
const BUSYBOX: &str = "/bin/busybox";
/// The host's user 0 may map these; without them incusd starts privileged containers only.
const SUBORDINATE_IDS: &str = "root:1000000:1000000000\n";
/// liblxc's cgroups of the container and its monitor, which outlive the daemon. The monitor tidies
/// up when the container ends, and moves to the last of them for it: it is to go first.
pub const CGROUPS: [&str; 3] = [
    "/sys/fs/cgroup/lxc.monitor.guest",
    "/sys/fs/cgroup/lxc.pivot",
    "/sys/fs/cgroup/lxc.payload.guest",
];
/// liblxc's locks.
pub const LOCKS: &str = "/run/lxc";

/// Gives the machine its subordinate ids, before an incusd starts.
pub fn allow_unprivileged() -> Result<()> {
    for file in ["/etc/subuid", "/etc/subgid"] {
        fs::write(file, SUBORDINATE_IDS).with_context(|| format!("write {file}"))?;
    }
    Ok(())
}

/// Gives a cluster of one member the pool for containers. Who joins it then makes its own part.
pub fn create_pool(seed: &Node) -> Result<()> {
    seed.client(&["storage", "create", OWN_POOL, "dir"]).map(drop)
}

/// An unprivileged container on one member.
#[derive(Debug)]
pub struct Container {
    runs: bool,
}

impl Container {
    /// Made from an image that is made here, stopped.
    pub fn create(node: &Node, member: &str) -> Result<Self> {
        let image = Scratch::new("image")?;
        let file = build_image(image.path())?;
        node.client(&["image", "import", &file, "--alias", IMAGE])?;
        node.client(&["init", IMAGE, NAME, "--storage", OWN_POOL, "--target", member])?;
        Ok(Self { runs: false })
    }

    /// Starts it, unless it runs.
    pub fn start(&mut self, node: &Node) -> Result<()> {
        if !self.runs {
            let started = node.client(&["start", NAME]);
            started.with_context(|| log(node))?;
            self.runs = true;
        }
        Ok(())
    }

    /// Attaches a volume at `/data`, at once if it runs.
    pub fn attach(&self, node: &Node, pool: &str, volume: &str) -> Result<()> {
        let attached =
            node.client(&["storage", "volume", "attach", pool, volume, NAME, "data", "/data"]);
        attached.with_context(|| log(node)).map(drop)
    }

    pub fn detach(&self, node: &Node, pool: &str, volume: &str) -> Result<()> {
        node.client(&["storage", "volume", "detach", pool, volume, NAME]).map(drop)
    }

    /// Runs a script in it, which must succeed.
    pub fn run(&self, node: &Node, script: &str) -> Result<String> {
        node.client(&["exec", NAME, "--", "/bin/sh", "-ec", script])
    }

    /// Deletes a file in it over SFTP, as the client does: not by a process of the container.
    pub fn delete_file(&self, node: &Node, file: &str) -> Result<()> {
        node.client(&["file", "delete", &format!("{NAME}{file}")]).map(drop)
    }

    /// Stops and deletes it.
    pub fn delete(self, node: &Node) -> Result<()> {
        node.client(&["delete", "--force", NAME]).map(drop)
    }
}

/// Incus's log of a container that does not start.
fn log(node: &Node) -> String {
    node.client(&["info", NAME, "--show-log"])
        .unwrap_or_else(|error| format!("and no log: {error:#}"))
}

/// Packs `metadata.yaml` and `rootfs` into an image; returns its path.
fn build_image(directory: &Path) -> Result<String> {
    let root = directory.join("rootfs");
    for part in ["bin", "sbin", "dev", "proc", "sys", "run", "tmp", "etc", "root", "data"] {
        let part = root.join(part);
        fs::create_dir_all(&part).with_context(|| format!("create {}", part.display()))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).with_context(|| format!("copy {BUSYBOX}"))?;
    for applet in ["sh", "sleep", "rm", "mv"] {
        symlink("busybox", root.join("bin").join(applet))
            .with_context(|| format!("link {applet}"))?;
    }
    let init = root.join("sbin/init");
    fs::write(&init, "#!/bin/sh\nexec sleep 1000000\n").context("write the guest's init")?;
    fs::set_permissions(&init, Permissions::from_mode(0o755))
        .context("make the guest's init executable")?;
    let metadata = "architecture: x86_64\ncreation_date: 1\nproperties: {description: busybox}\n";
    fs::write(directory.join("metadata.yaml"), metadata).context("write metadata.yaml")?;
    let file = directory.join("image.tar").to_string_lossy().into_owned();
    let place = directory.to_string_lossy();
    command::run(
        "tar",
        &["-C", &place, "--owner=0", "--group=0", "-cf", &file, "metadata.yaml", "rootfs"],
    )?;
    remove(&root)?;
    Ok(file)
}
