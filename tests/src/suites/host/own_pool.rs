//! A server that is alone, a member, alone again, and a member again: it deletes its own files, at
//! each time.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::harness::host::cluster::{self, FILESYSTEM, incus, is_intact};
use crate::harness::host::guard::Guard;
use crate::harness::host::{Lab, Machine, Name, State};
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] =
    &[Test::new("own_pool_of_a_server_is_its_own_before_and_after_a_membership", alone_and_not)
        .within_seconds(1800)
        .only_in_full()];

fn alone_and_not() -> Result<()> {
    let lab = Lab::start(State::Seed, &[Name::Store, Name::N1, Name::N2])?;
    let n2 = lab.host(Name::N2);
    let guard = Guard::install(n2)?;
    // Its first client starts Incus, which has no database before.
    incus(n2, "list")?;
    guard.becomes("standalone", "guarded")?;
    a_pool_of_its_own(n2, &guard, "alone")?;
    for time in ["left once", "left twice"] {
        cluster::join(&lab, Name::N2)?.succeeds()?;
        guard.becomes("joined", "guarded")?;
        cluster::leave(&lab, Name::N2)?;
        guard.wait_for_state(&["left"])?;
        let alone = "timeout 20 incus storage list --format csv && ! incus storage list --format \
                     csv | grep shared";
        n2.wait_for("Incus is alone", Duration::from_secs(200), alone)?;
        a_pool_of_its_own(n2, &guard, time)?;
    }
    is_intact(&lab)
}

/// Makes a pool, works in it and deletes it, as Incus's own tests of its CephFS driver do.
fn a_pool_of_its_own(host: &Machine, guard: &Guard<'_>, when: &str) -> Result<()> {
    let create = format!(
        "storage create own cephfs source={FILESYSTEM}/own cephfs.cluster_name=ceph \
         cephfs.user.name=admin"
    );
    incus(host, &create)?;
    incus(host, "storage delete own")?;
    incus(host, &create)?;
    for line in [
        "storage volume create own one",
        "storage volume rename own one two",
        "storage volume copy own/two own/one",
        "storage volume delete own one",
        "storage volume snapshot create own two",
        "storage volume snapshot create own two named",
        "storage volume snapshot rename own two named renamed",
        "storage volume snapshot delete own two snap0",
        "storage volume snapshot restore own two renamed",
        "storage volume copy own/two own/three --volume-only",
        "storage volume delete own two",
        "storage volume delete own three",
        "storage delete own",
    ] {
        incus(host, line)?;
    }
    ensure!(
        guard.denied_ever()? == 0,
        "{when}: something was denied: {}",
        guard.control("events -n 5")?.output
    );
    Ok(())
}
