//! The machine under both nodes: Incus's programs where its packages put them, Ceph's
//! configuration, and a bridge that joins the seed's network namespace, the joiner and QEMU's
//! network.

use std::env;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context as _, Result};

use super::container;
use crate::harness::ceph::Cluster;
use crate::harness::command;

pub const SEED_ADDRESS: &str = "10.0.2.11";
/// The guest's own address: the joiner has the guest's network.
pub const JOINER_ADDRESS: &str = "10.0.2.15";
/// The seed's network namespace.
pub const SEED_NETWORK: &str = "/run/netns/seed";
const BRIDGE: &str = "incus-bridge";
/// The bridge's end of the seed's link. Without it the nodes cannot reach each other; Ceph they
/// can.
const SEED_LINK: &str = "seed-link";

static PREPARED: Mutex<bool> = Mutex::new(false);

/// Makes it, unless that was done.
pub fn prepare() -> Result<()> {
    let mut prepared = PREPARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !*prepared {
        programs()?;
        container::allow_unprivileged()?;
        ceph_configuration()?;
        network()?;
        *prepared = true;
    }
    Ok(())
}

/// Cuts the nodes off from each other, or joins them again.
pub fn link(up: bool) -> Result<()> {
    command::run("ip", &["link", "set", SEED_LINK, if up { "up" } else { "down" }]).map(drop)
}

/// Lays the unpacked packages over the guest's root. The daemon is copied: its executable's path is
/// what it is on a host, and it can be replaced as an upgrade does.
fn programs() -> Result<()> {
    let root = env::var("GUARD_INCUS")
        .context("GUARD_INCUS is not set: run this with `cargo xtask test --suite incus`")?;
    let line = format!(
        "set -e
        for part in usr/bin usr/sbin usr/lib lib; do cp -rsf {root}/$part/. /$part/; done
        rm -rf /usr/libexec/incus; cp -a {root}/usr/libexec/incus /usr/libexec/"
    );
    command::run("sh", &["-c", &line]).map(drop)
}

fn ceph_configuration() -> Result<()> {
    let cluster = Cluster::from_environment()?;
    let monitor = cluster.monitor.split(':').next().unwrap_or_default();
    let directory = Path::new("/etc/ceph");
    fs::create_dir_all(directory).context("create /etc/ceph")?;
    let text = format!(
        "[global]\nfsid = {}\nmon_host = \
         [v2:{monitor}:3300,v1:{monitor}:6789]\n",
        cluster.fsid
    );
    fs::write(directory.join("ceph.conf"), text).context("write ceph.conf")?;
    let name = format!("ceph.client.{}.keyring", cluster.user);
    let text = format!("[client.{}]\n\tkey = {}\n", cluster.user, cluster.secret);
    fs::write(directory.join(&name), text).with_context(|| format!("write {name}"))
}

fn network() -> Result<()> {
    if Path::new("/sys/class/net").join(BRIDGE).exists() {
        // An earlier run in the same boot has made it.
        return Ok(());
    }
    // Incus must not ask anybody for images.
    fs::write("/etc/resolv.conf", "").context("empty /etc/resolv.conf")?;
    for module in ["ceph", "bridge", "veth"] {
        command::run("modprobe", &[module])?;
    }
    let line = format!(
        "set -e
        ip link add {BRIDGE} type bridge
        ip address flush dev eth0; ip link set eth0 master {BRIDGE}
        ip address add {JOINER_ADDRESS}/24 dev {BRIDGE}; ip link set {BRIDGE} up
        ip route replace default via 10.0.2.2
        ip netns add seed
        ip link add {SEED_LINK} type veth peer name eth0 netns seed
        ip link set {SEED_LINK} master {BRIDGE} up
        ip -n seed link set lo up; ip -n seed address add {SEED_ADDRESS}/24 dev eth0
        ip -n seed link set eth0 up; ip -n seed route add default via 10.0.2.2"
    );
    command::run("sh", &["-c", &line]).map(drop)
}
