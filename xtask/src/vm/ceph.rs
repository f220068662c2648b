//! A real Ceph cluster for one VM: its directory, its keys, and its environment variables for the
//! guest. `host/ceph-cluster` starts the daemons, in a network namespace that holds nothing else.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::progress;
use crate::workspace;

/// Exists only on the namespace's loopback, so that the addresses in Ceph's maps are those the
/// guest dials.
const ADDRESS: &str = "10.99.0.1";
const FILESYSTEM: &str = "testfs";
/// Ceph's own default.
pub(super) const SESSION: u32 = 60;
/// A guest that counts instructions has a clock that is many times slower than the cluster's.
pub(super) const SESSION_BY_INSTRUCTIONS: u32 = 6 * 3600;

/// A cluster that is prepared but not started. Its directory goes with it.
#[derive(Debug)]
pub(super) struct Cluster {
    directory: PathBuf,
    fsid: String,
    osd: String,
    secret: String,
}

impl Cluster {
    pub(super) fn prepare() -> Result<Self> {
        // Not in the target directory: Ceph's sockets live here, and their paths must be short.
        let directory = workspace::process_directory(&std::env::temp_dir(), "guard-ceph-")?;
        for part in ["run", "log", "mon.a", "osd.0", "mds.a"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        let (fsid, osd) = (uuid()?, uuid()?);
        let mut cluster = Self { directory, fsid, osd, secret: String::new() };
        cluster.write("ceph.conf", &cluster.configuration())?;
        cluster.write_keys()?;
        Ok(cluster)
    }

    fn configuration(&self) -> String {
        let directory = self.directory.display();
        format!(
            "[global]
fsid = {fsid}
mon_host = [v2:{ADDRESS}:3300,v1:{ADDRESS}:6789]
public_addr = {ADDRESS}
cluster_addr = {ADDRESS}
keyring = {directory}/keyring.$name
run_dir = {directory}/run
admin_socket = {directory}/run/$name.asok
pid_file = {directory}/run/$name.pid
log_file = {directory}/log/$name.log
crash_dir = {directory}/log
mon_data = {directory}/mon.a
osd_data = {directory}/osd.0
mds_data = {directory}/mds.a
auth_allow_insecure_global_id_reclaim = false
# one OSD, in memory
osd_objectstore = memstore
memstore_device_bytes = 536870912
osd_pool_default_size = 1
osd_pool_default_min_size = 1
mon_allow_pool_size_one = true
osd_crush_chooseleaf_type = 0
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
mgr_initial_modules =
mds_cache_memory_limit = 134217728
# a full disk is no reason to stop: the monitor would end without a word where a percent of it is free
mon_data_avail_warn = 0
mon_data_avail_crit = -1
# short rounds: the cluster is up in a second
paxos_propose_interval = 0.05
mds_beacon_interval = 0.5
# a slow, emulated client is not a dead one
mds_beacon_grace = 120
mon_lease = 20
osd_heartbeat_grace = 120
[client]
admin_socket =
log_file =
pid_file =
",
            fsid = self.fsid
        )
    }

    fn write_keys(&mut self) -> Result<()> {
        let users: [(&str, &[&str]); 4] = [
            ("mon.", &["mon = \"allow *\""]),
            ("client.admin", &["mon = \"allow *\"", "osd = \"allow *\"", "mds = \"allow *\""]),
            ("osd.0", &["mon = \"allow profile osd\"", "osd = \"allow *\""]),
            ("mds.a", &["mon = \"allow profile mds\"", "osd = \"allow rwx\"", "mds = \"allow\""]),
        ];
        let mut all = String::new();
        for (user, capabilities) in users {
            let key = progress::capture(Command::new("ceph-authtool").arg("--gen-print-key"))?
                .trim()
                .to_owned();
            let mut section = format!("[{user}]\n\tkey = {key}\n");
            for capability in capabilities {
                writeln!(section, "\tcaps {capability}")?;
            }
            self.write(&format!("keyring.{user}"), &section)?;
            all.push_str(&section);
            if user == "client.admin" {
                self.secret = key;
            }
        }
        self.write("keyring", &all)?;
        self.write("keyring.mon.a", &all)
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))
    }

    /// Command that starts the cluster and then `command` beside it; all of it ends when xtask
    /// does. A client that has not been heard of for `session` seconds is stale, for five times as
    /// many is evicted.
    pub(super) fn wrap(&self, command: &[String], root: bool, session: u32) -> Vec<String> {
        let script = workspace::root().join("xtask/host/ceph-cluster");
        let mut wrapped: Vec<String> =
            ["unshare", "--net", "--pid", "--fork", "--kill-child"].map(str::to_owned).to_vec();
        if !root {
            wrapped.push("--map-root-user".to_owned());
        }
        wrapped.extend(["--", "bash"].map(str::to_owned));
        wrapped.push(script.to_string_lossy().into_owned());
        wrapped.push(self.directory.to_string_lossy().into_owned());
        wrapped.extend([
            ADDRESS.to_owned(),
            FILESYSTEM.to_owned(),
            self.osd.clone(),
            session.to_string(),
        ]);
        wrapped.extend_from_slice(command);
        wrapped
    }

    /// Environment variables by which the guest reaches it.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        let values = [
            ("CEPH_MON", format!("{ADDRESS}:6789")),
            ("CEPH_FSID", self.fsid.clone()),
            ("CEPH_FS", FILESYSTEM.to_owned()),
            ("CEPH_USER", "admin".to_owned()),
            ("CEPH_SECRET", self.secret.clone()),
            // For ceph-fuse and `ceph`: the directory is in the shared root.
            ("CEPH_CONF", self.directory.join("ceph.conf").to_string_lossy().into_owned()),
        ];
        values.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Best effort: the next cluster removes the remains.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn uuid() -> Result<String> {
    const SOURCE: &str = "/proc/sys/kernel/random/uuid";
    Ok(fs::read_to_string(SOURCE).with_context(|| format!("read {SOURCE}"))?.trim().to_owned())
}
