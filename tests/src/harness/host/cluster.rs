//! Incus on the hosts: the cluster that is joined, its pool and its files, and ways into it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::lab::{Lab, Name};
use super::machine::Machine;
use super::runner::{Ended, Running};
use super::states::on_each;

/// The pool's name, and where a member mounts it.
pub const POOL: &str = "shared";
pub const MOUNTPOINT: &str = "/var/lib/incus/storage-pools/shared";
/// Mount of the whole filesystem on the store: the independent look at the pool's files.
pub const WITNESS: &str = "/mnt/witness";
pub const ON_CEPH: &str = "pool-a";
/// The cluster's files before anything happens.
pub const FILES: usize = 200;
/// The name of the filesystem on Ceph.
pub const FILESYSTEM: &str = "testfs";
/// For one call of Incus that makes or joins a cluster, on an emulated machine.
const CLUSTER_LIMIT: Duration = Duration::from_secs(400);

/// Ceph on the store, a cluster of one on n1 with a pool and files in it.
pub(super) fn found(lab: &Lab) -> Result<()> {
    let store = lab.host(Name::Store);
    let address = Name::Store.address();
    let started = store.attempt_within(
        &format!("/usr/local/lib/lab/ceph-store {address} {FILESYSTEM}"),
        CLUSTER_LIMIT,
    )?;
    ensure!(started.status == 0, "Ceph did not start on the store: {}", started.output);
    let configuration = store.run("cat /etc/ceph/ceph.conf")?;
    let keyring = store.run("cat /etc/ceph/ceph.client.admin.keyring")?;
    on_each(lab, |name, machine| {
        if name == Name::Store {
            return mount_witness(machine);
        }
        let script = format!(
            "mkdir -p /etc/ceph; cat >/etc/ceph/ceph.conf <<'E'\n{configuration}\nE\numask 077
            cat >/etc/ceph/ceph.client.admin.keyring <<'E'\n{keyring}\nE\nmodprobe ceph"
        );
        machine.run(&script).map(drop)
    })?;
    let n1 = lab.host(Name::N1);
    let preseed = format!(
        "config: {{core.https_address: \"{}:8443\"}}
storage_pools:
- {{name: {POOL}, driver: cephfs, config: {{source: {FILESYSTEM}/{ON_CEPH}, cephfs.cluster_name: ceph, cephfs.user.name: admin}}}}
cluster: {{server_name: n1, enabled: true}}
",
        Name::N1.address()
    );
    let made = n1.attempt_within(&preseeding(&preseed), CLUSTER_LIMIT)?;
    ensure!(made.status == 0, "the first member: {}\n{}", made.output, log(n1));
    // In the preseed this makes incusd 6.0.4 panic.
    n1.run("incus config set cluster.offline_threshold 11")?;
    n1.run(&format!("incus storage volume create {POOL} vol1"))?;
    store
        .run(&format!(
            "cd {WITNESS}/{ON_CEPH}/custom/default_vol1 && for i in $(seq 1 20); do mkdir d$i; for \
             j in $(seq 1 10); do echo precious >d$i/f$j; done; done; sync"
        ))
        .map(drop)
}

fn mount_witness(store: &Machine) -> Result<()> {
    let script = format!(
        "modprobe ceph; mkdir -p {WITNESS}
        fsid=$(awk '/^fsid/{{print $3}}' /etc/ceph/ceph.conf)
        secret=$(awk '/key =/{{print $3}}' /etc/ceph/ceph.client.admin.keyring)
        busybox mount -t ceph \"admin@$fsid.{FILESYSTEM}=/\" {WITNESS} \
         -o \"mon_addr={}:3300,name=admin,secret=$secret,ms_mode=prefer-crc,noshare\"",
        Name::Store.address()
    );
    store.run(&script).map(drop)
}

/// All files of the pool, as the store sees them.
pub fn files(lab: &Lab) -> Result<usize> {
    // A server that has lost a client holds its capabilities for a while. A guest that deletes all
    // the while takes files away that find has seen: it says so, and goes on.
    let count = format!("find {WITNESS}/{ON_CEPH} -type f 2>/dev/null | wc -l");
    let counted = lab.host(Name::Store).run(&count)?;
    counted.trim().parse().with_context(|| format!("count the pool's files: {counted}"))
}

/// Nothing is missing.
pub fn is_intact(lab: &Lab) -> Result<()> {
    let files = files(lab)?;
    ensure!(files >= FILES, "LOST: the independent mount sees {files} of {FILES} files");
    Ok(())
}

/// A join that runs.
#[derive(Debug)]
pub struct Joining {
    running: Running,
}

/// Outcome of a join.
#[derive(Debug)]
pub struct Joined {
    ended: Ended,
    log: String,
}

/// Joins a node under its own name, and waits for the end.
pub fn join(lab: &Lab, node: Name) -> Result<Joined> {
    begin_join(lab, node, node.as_str())?.end(lab.host(node))
}

/// Starts the join of a node under a name.
pub fn begin_join(lab: &Lab, node: Name, name: &str) -> Result<Joining> {
    let preseed = join_preseed(lab, node, name)?;
    let running = lab.host(node).begin(&preseeding(&preseed), CLUSTER_LIMIT)?;
    Ok(Joining { running })
}

/// The answers that make a node join under a name, with a fresh token of the first member.
pub fn join_preseed(lab: &Lab, node: Name, name: &str) -> Result<String> {
    let said = lab.host(Name::N1).run(&format!("incus cluster add {name} --quiet"))?;
    let token = said.lines().last().context("the first member gave no token")?;
    Ok(format!(
        "cluster:\n  enabled: true\n  server_name: {name}\n  server_address: {}:8443\n  \
         cluster_token: {token}\n  member_config: []\n",
        node.address()
    ))
}

fn preseeding(preseed: &str) -> String {
    format!("incus admin init --preseed <<'E'\n{preseed}\nE")
}

/// Last messages of the daemon of a host.
pub fn log(machine: &Machine) -> String {
    let said = machine
        .attempt("tail -n 15 /var/log/incus/incusd.log; journalctl -u incus --no-pager -n 15");
    said.map_or_else(|error| format!("and no log: {error:#}"), |ended| ended.output)
}

impl Joining {
    pub fn end(self, machine: &Machine) -> Result<Joined> {
        let ended = self.running.end()?;
        let log = if ended.status == 0 { String::new() } else { log(machine) };
        Ok(Joined { ended, log })
    }
}

impl Joined {
    /// Returns the client's output.
    pub fn succeeds(self) -> Result<String> {
        ensure!(
            self.ended.status == 0,
            "the join failed: \
             {}\n{}",
            self.ended.output.trim(),
            self.log
        );
        Ok(self.ended.output)
    }

    pub fn fails(self) -> Result<String> {
        ensure!(self.ended.status != 0, "the join succeeded, but had to fail");
        Ok(self.ended.output)
    }
}

/// Makes a member know an offline one with another's address, as one whose machine was reinstalled.
pub fn remember_old_member(member: &Machine, name: &str, address: Name) -> Result<()> {
    let row = format!(
        "INSERT INTO nodes (name, address, schema, api_extensions, heartbeat, arch, description) \
         SELECT '{name}', '{}:8443', schema, api_extensions, '2020-01-01T00:00:00Z', arch, '' FROM \
         nodes WHERE id = 1",
        address.address()
    );
    member.run(&format!("incus admin sql global \"{row}\""))?;
    let offline = format!("incus cluster list --format csv | grep '^{name},.*OFFLINE'");
    member
        .wait_for("the member sees the old one offline", Duration::from_secs(90), &offline)
        .map(drop)
}

/// Removes a member's row by force.
pub fn forget_member(member: &Machine, name: &str) -> Result<()> {
    member.run(&format!("incus cluster remove --force --yes {name}")).map(drop)
}

/// A node leaves its cluster in order. It has no pool then, and is nobody's member.
pub fn leave(lab: &Lab, node: Name) -> Result<()> {
    let name = node.as_str();
    incus(
        lab.host(Name::N1),
        &format!("cluster remove {name} --yes || incus cluster remove {name}"),
    )?;
    let gone = format!("! grep -q {MOUNTPOINT} /proc/1/mountinfo");
    lab.host(node)
        .wait_for("the pool of the node that left is unmounted", Duration::from_secs(60), &gone)
        .map(drop)
}

/// Runs the client, which must succeed.
pub fn incus(host: &Machine, line: &str) -> Result<()> {
    let ended =
        host.attempt_within(&format!("timeout 280 incus {line}"), Duration::from_secs(300))?;
    ensure!(ended.status == 0, "incus {line}: {}\n{}", ended.output.trim(), log(host));
    Ok(())
}
