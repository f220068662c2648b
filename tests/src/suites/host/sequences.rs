//! Steps of Incus's own tests of CephFS and of joining, on a host without us and with us: each step
//! ends the same way.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::harness::host::cluster::{self, FILESYSTEM, POOL, is_intact};
use crate::harness::host::guard::Guard;
use crate::harness::host::{Lab, Machine, Name, State};
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] =
    &[Test::new("sequences_of_incus_own_tests_end_as_without_us", as_without_us)
        .within_seconds(2400)
        .only_in_full()];

/// Steps with a pool, here `POOL`, between its creation and its deletion: volumes, then snapshots.
const WITH_A_POOL: &[&str] = &[
    "storage info POOL",
    "storage volume create POOL vol1",
    "storage volume set POOL vol1 size 100MiB",
    "storage volume rename POOL vol1 vol2",
    "storage volume copy POOL/vol2 POOL/vol1",
    "storage volume delete POOL vol1",
    "storage volume delete POOL vol2",
    "storage volume create POOL vol1",
    "storage volume snapshot create POOL vol1",
    "storage volume snapshot create POOL vol1",
    "storage volume snapshot create POOL vol1 first",
    "storage volume snapshot rename POOL vol1 first second",
    "storage volume snapshot create POOL vol1 first",
    "storage volume snapshot delete POOL vol1 snap0",
    "storage volume snapshot delete POOL vol1 snap1",
    "storage volume snapshot restore POOL vol1 first",
    "storage volume copy POOL/vol1 POOL/vol2 --volume-only",
    "storage volume copy POOL/vol1 POOL/vol3 --volume-only",
    "storage volume delete POOL vol1",
    "storage volume delete POOL vol2",
    "storage volume delete POOL vol3",
    "storage delete POOL",
];

fn as_without_us() -> Result<()> {
    let lab = Lab::start(State::Seed, &[Name::Store, Name::N1, Name::N2])?;
    let (n1, n2) = (lab.host(Name::N1), lab.host(Name::N2));
    let without = sequence(n2)?;
    let guard = Guard::install(n2)?;
    let with = sequence(n2)?;
    for ((line, before), (_, after)) in without.iter().zip(&with) {
        ensure!(
            before == after,
            "`incus {line}`: {before} without us, {after} with us\n{}",
            cluster::log(n2)
        );
    }
    let failed = without.iter().filter(|(_, status)| *status != 0).count();
    println!("note: {} steps, {failed} of which have to fail, end the same way", with.len());
    ensure!(guard.denied()? == 0, "something was denied: {}", guard.json("pools")?);

    // A join by the API alone.
    let token = n1.run("incus cluster add n2 --quiet")?;
    let token = token.lines().last().unwrap_or_default();
    let quoted = "python3 -c 'import json; \
                  print(json.dumps(open(\"/var/lib/incus/cluster.crt\").read()))'";
    let join = format!(
        "cat >/root/join.json <<'E'\n{{\"server_name\": \"n2\", \"enabled\": true, \
         \"member_config\": [], \"server_address\": \"{}:8443\", \"cluster_address\": \"{}:8443\", \
         \"cluster_certificate\": {}, \"cluster_token\": \"{token}\"}}\nE\n\
         incus query --request PUT --wait --data \"$(cat /root/join.json)\" /1.0/cluster",
        Name::N2.address(),
        Name::N1.address(),
        n1.run(quoted)?.trim()
    );
    let joined = n2.attempt_within(&join, Duration::from_secs(400))?;
    ensure!(joined.status == 0, "the join by the API: {}\n{}", joined.output, cluster::log(n2));
    let operational = "incus cluster show n2 | grep -q 'message: Fully operational'";
    n1.wait_for("the member is fully operational", Duration::from_secs(120), operational)?;
    guard.becomes("joined", "guarded")?;
    cluster::incus(n2, &format!("storage volume create {POOL} api"))?;
    cluster::incus(n2, &format!("storage volume delete {POOL} api"))?;
    is_intact(&lab)
}

/// All steps, and how each has ended.
fn sequence(host: &Machine) -> Result<Vec<(String, i64)>> {
    let source = format!("{FILESYSTEM}/sequence");
    let create = |more: &str| format!("storage create sequence cephfs source={source}{more}");
    let mut lines = vec![create(""), "storage delete sequence".to_owned()];
    // Keys that only go together with `cephfs.create_missing`.
    for key in ["cephfs.osd_pg_num=32", "cephfs.meta_pool=xyz", "cephfs.data_pool=xyz"] {
        lines.push(create(&format!(" {key}")));
    }
    let pools = "cephfs.data_pool=xyz_data cephfs.meta_pool=xyz_meta";
    for more in [String::new(), format!(" cephfs.create_missing=true {pools}")] {
        lines.push(create(&more));
        lines.extend(WITH_A_POOL.iter().map(|line| line.replace("POOL", "sequence")));
    }
    let mut ended = Vec::new();
    for line in lines {
        let done =
            host.attempt_within(&format!("timeout 280 incus {line}"), Duration::from_secs(300))?;
        ended.push((line, done.status));
    }
    Ok(ended)
}
