//! The cluster that a node joins: one member, a pool, files in it, and the independent mount.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use super::clean::{self, remove};
use super::machine;
use super::node::{Node, Role, initialise, log_tail};
use crate::harness::ceph::{CephMount, Cluster};
use crate::harness::mount::mountinfo_of;
use crate::harness::{command, tree, wait};

/// The pool's name, and where the joiner mounts it.
pub const POOL: &str = "shared";
pub const MOUNTPOINT: &str = "/var/lib/incus/storage-pools/shared";
/// Path of the independent mount, and of the pool in it.
pub const WITNESS: &str = "/mnt/witness";
pub const ON_CEPH: &str = "pool-a";
const VOLUME: &str = "custom/default_vol1";
/// The cluster's files before anything happens.
pub const FILES: usize = 200;
/// The seed's directory right after its bootstrap: what it needs of Ceph then takes an emulated
/// machine a minute, so that the next scenarios begin with a copy.
const KEPT: &str = "/var/lib/kept-seed";
/// For the seed to notice that a member is away.
const OFFLINE_LIMIT: Duration = Duration::from_secs(60);

/// A cluster of one node with a pool and files in it, on a clean machine, and the independent
/// mount.
pub fn found() -> Result<(Node, CephMount)> {
    machine::prepare()?;
    clean::all()?;
    let witness = CephMount::independent(WITNESS)?;
    let pool = witness.path().join(ON_CEPH);
    remove(&pool)?;
    let seed = if Path::new(KEPT).exists() { start_again(&pool)? } else { bootstrap()? };
    tree::fill(&pool.join(VOLUME), FILES, 20)?;
    Ok((seed, witness))
}

/// Makes the seed know an offline member, as one whose machine was reinstalled.
pub fn remember_old_member(seed: &Node, name: &str, address: &str) -> Result<()> {
    let row = format!(
        "INSERT INTO nodes (name, address, schema, api_extensions, heartbeat, arch, description) \
         SELECT '{name}', '{address}:8443', schema, api_extensions, '2020-01-01T00:00:00Z', arch, \
         '' FROM nodes WHERE id = 1"
    );
    seed.client(&["admin", "sql", "global", &row])?;
    wait::until("the seed sees the old member offline", OFFLINE_LIMIT, || {
        let members = seed.client(&["cluster", "list", "--format", "csv"])?;
        Ok(members.lines().any(|line| line.starts_with(name) && line.contains("OFFLINE")))
    })
}

/// The first node of a cluster, with the pool.
fn bootstrap() -> Result<Node> {
    let seed = Node::start(Role::Seed)?;
    let user = Cluster::from_environment()?;
    let preseed = format!(
        "config: {{core.https_address: \"{}:8443\"}}\nstorage_pools:\n- name: {POOL}\n  driver: \
         cephfs\n  config: {{source: {}/{ON_CEPH}, cephfs.cluster_name: ceph, cephfs.user.name: \
         {}}}\ncluster: {{server_name: node1, enabled: true}}\n",
        Role::Seed.address(),
        user.filesystem,
        user.user
    );
    let output = initialise(Role::Seed, &preseed)?
        .wait_with_output()
        .context("wait for incus admin init")?;
    if !output.status.success() {
        bail!("bootstrap: {}\n{}", command::text(&output).trim(), log_tail(Role::Seed));
    }
    // In the preseed this would make incusd 6.0.4 panic.
    seed.client(&["config", "set", "cluster.offline_threshold", "11"])?;
    seed.client(&["storage", "volume", "create", POOL, "vol1"])?;
    // As after a power cut. Its mounts are in its own namespace, and not seen here.
    seed.signal(Signal::SIGSTOP)?;
    let partial = format!("{KEPT}.partial");
    let copied = command::run("cp", &["-aT", &Role::Seed.directory().to_string_lossy(), &partial]);
    seed.signal(Signal::SIGCONT)?;
    copied?;
    fs::rename(&partial, KEPT).with_context(|| format!("rename {partial} into place"))?;
    Ok(seed)
}

/// The seed as it was after its bootstrap, on a pool that is as empty as it was then.
fn start_again(pool: &Path) -> Result<Node> {
    for directory in [VOLUME, "custom-snapshots"] {
        let directory = pool.join(directory);
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
    }
    command::run("cp", &["-aT", KEPT, &Role::Seed.directory().to_string_lossy()])?;
    Node::start(Role::Seed)
}

/// The pool's mounts of the joiner, as the initial mount namespace has them.
pub fn pool_mounts() -> Result<Vec<String>> {
    mountinfo_of(Path::new(MOUNTPOINT))
}
