//! A healthy node's life: joins by Debian's own units, uses the pool in every way that Incus has,
//! is evacuated, leaves. Nothing of it is denied, and the host beside it is denied all the time.

use anyhow::{Result, ensure};

use crate::harness::host::cluster::{self, MOUNTPOINT, POOL, incus, is_intact};
use crate::harness::host::guard::Guard;
use crate::harness::host::{Lab, Machine, Name, State, container};
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] =
    &[Test::new("healthy_node_joins_works_and_leaves_without_a_denial", a_healthy_life)
        .within_seconds(1800)
        .only_in_full()];

fn a_healthy_life() -> Result<()> {
    let lab = Lab::start(State::Seed, &[Name::Store, Name::N1, Name::N2])?;
    let (n1, n2) = (lab.host(Name::N1), lab.host(Name::N2));
    let guards = [Guard::install(n1)?, Guard::install(n2)?];
    cluster::join(&lab, Name::N2)?.succeeds()?;
    for guard in &guards {
        guard.becomes("joined", "guarded")?;
    }
    let denied = |expected: u64| {
        let seen = [guards[0].denied()?, guards[1].denied()?];
        ensure!(
            seen == [0, expected],
            "denials on the two members: {seen:?}, expected 0 and {expected}"
        );
        Ok(())
    };
    volumes(n2)?;
    denied(0)?;
    container::start(n1, n2)?;
    deletes(n2)?;
    denied(0)?;

    let removed = n2.attempt(&format!("rm -r {MOUNTPOINT}/custom/default_vol1/d1"))?;
    ensure!(removed.status != 0, "the host could delete in the pool");
    is_intact(&lab)?;
    let beside = guards[1].denied()?;
    ensure!(beside > 0, "the host's deletion was not denied by us: {}", removed.output);

    incus(n1, "cluster evacuate n2 --force")?;
    incus(n1, "cluster restore n2 --force")?;
    incus(n1, "delete --force guest")?;
    denied(beside)?;
    cluster::leave(&lab, Name::N2)?;
    ensure!(
        guards[1].json("pools")?.as_array().is_some_and(Vec::is_empty),
        "a pool is left on the node that left"
    );
    is_intact(&lab)
}

/// Everything that can be done to a volume.
fn volumes(host: &Machine) -> Result<()> {
    for line in [
        "storage volume create POOL one",
        "storage volume snapshot create POOL one first",
        "storage volume restore POOL one first || incus storage volume snapshot restore POOL one \
         first",
        "storage volume snapshot delete POOL one first || incus storage volume delete POOL \
         one/first",
        "storage volume copy POOL/one POOL/two",
        "storage volume rename POOL two three",
        "storage volume export POOL three /root/three.tar.gz",
        "storage volume import POOL /root/three.tar.gz four",
        "storage volume delete POOL one",
        "storage volume delete POOL three",
        "storage volume delete POOL four",
    ] {
        incus(host, &line.replace("POOL", POOL))?;
    }
    Ok(())
}

/// The guest deletes in its volume, which is then taken from it.
fn deletes(n2: &Machine) -> Result<()> {
    let work = "cd /data; mkdir d; echo 1 >d/a; echo 2 >b; echo 3 >c; mv -f b c; rm c; rm -r d";
    incus(n2, &format!("exec guest -- /bin/sh -ec '{work}'"))?;
    incus(n2, &format!("storage volume detach {POOL} data guest data"))?;
    incus(n2, &format!("storage volume delete {POOL} data"))
}
