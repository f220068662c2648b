//! Mounts of the VM's Ceph cluster through the kernel client. The cluster and its credentials are
//! in the environment, put there by `cargo xtask`.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::mount::Mount;

/// The cluster beside the VM.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub monitor: String,
    pub fsid: String,
    pub filesystem: String,
    pub user: String,
    pub secret: String,
}

impl Cluster {
    pub fn from_environment() -> Result<Self> {
        let variable = |name: &str| {
            env::var(name).with_context(|| {
                format!("{name} is not set: run this with `cargo xtask test --suite cephfs`")
            })
        };
        Ok(Self {
            monitor: variable("CEPH_MON")?,
            fsid: variable("CEPH_FSID")?,
            filesystem: variable("CEPH_FS")?,
            user: variable("CEPH_USER")?,
            secret: variable("CEPH_SECRET")?,
        })
    }

    /// The device of the new syntax, `user@fsid.filesystem=/path`.
    pub fn device(&self, path: &str) -> String {
        format!("{}@{}.{}={path}", self.user, self.fsid, self.filesystem)
    }

    /// The options of the new syntax.
    pub fn options(&self) -> String {
        format!("mon_addr={},secret={}", self.monitor, self.secret)
    }
}

/// A CephFS mount through the kernel client, unmounted when dropped.
#[derive(Debug)]
pub struct CephMount {
    mount: Mount,
}

impl CephMount {
    /// The filesystem's root at `path`, with the new device syntax.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self> {
        Self::of("/", path, "")
    }

    /// Any directory of it, with further options (such as `ro`).
    pub fn of(directory: &str, path: impl Into<PathBuf>, more_options: &str) -> Result<Self> {
        let cluster = Cluster::from_environment()?;
        let options = with_more(&cluster.options(), more_options);
        Ok(Self { mount: Mount::new("ceph", &cluster.device(directory), path, &options)? })
    }

    /// A second client with a superblock and a session of its own: it sees the cluster's files, not
    /// another mount's cache.
    pub fn independent(path: impl Into<PathBuf>) -> Result<Self> {
        Self::of("/", path, "noshare")
    }

    /// The device syntax of before 5.17, which Incus and many fstabs use: `monitor:/path`.
    pub fn old_syntax(
        directory: &str,
        path: impl Into<PathBuf>,
        more_options: &str,
    ) -> Result<Self> {
        let cluster = Cluster::from_environment()?;
        let options = format!(
            "name={},secret={},mds_namespace={}",
            cluster.user, cluster.secret, cluster.filesystem
        );
        let device = format!("{}:{directory}", cluster.monitor);
        Ok(Self { mount: Mount::new("ceph", &device, path, &with_more(&options, more_options))? })
    }

    /// As incusd 6.0.4 mounts a pool: the new syntax, and these options.
    pub fn as_incusd(directory: &str, path: impl Into<PathBuf>) -> Result<Self> {
        let cluster = Cluster::from_environment()?;
        let monitor = cluster.monitor.replace(":6789", ":3300");
        let options = format!(
            "name={},secret={},ms_mode=prefer-crc,acl,mon_addr={monitor}",
            cluster.user, cluster.secret
        );
        Ok(Self { mount: Mount::new("ceph", &cluster.device(directory), path, &options)? })
    }

    pub fn path(&self) -> &Path {
        self.mount.path()
    }

    /// The mount itself, to unmount it.
    pub fn mount(&mut self) -> &mut Mount {
        &mut self.mount
    }
}

fn with_more(options: &str, more: &str) -> String {
    if more.is_empty() { options.to_owned() } else { format!("{options},{more}") }
}
