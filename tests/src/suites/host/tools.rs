//! `guardctl rollback` and `guardctl wipe` where something on the host would be harmed: it is
//! refused, named, and lives on; or it is done right.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::harness::host::cluster::{self, MOUNTPOINT, incus, is_intact};
use crate::harness::host::container;
use crate::harness::host::guard::Guard;
use crate::harness::host::{Lab, Machine, Name, State};
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] = &[
    Test::new("tools_harm_no_instance_and_no_local_pool", nothing_is_harmed)
        .within_seconds(1500)
        .only_in_full(),
    Test::new("tools_do_right_below_a_root_that_is_a_link", a_linked_root)
        .within_seconds(1200)
        .only_in_full(),
];
/// Stands for Incus's process of a virtual machine, which an emulated host cannot run: a process of
/// that name, outside of the daemon's cgroup, with the machine's disk open, whose arguments do not
/// name the root.
const VIRTUAL_MACHINE: &str =
    "disk=/var/lib/incus/storage-pools/local/virtual-machines/v1/root.img; mkdir -p $(dirname $disk); truncate -s 1M $disk
    systemd-run --quiet --unit=lab-vm bash -c \"exec 3<>$disk; exec -a qemu-system-x86_64 sleep 100000\"";
/// Finds the container's only process, by its arguments.
const CONTAINER: &str = "pgrep -f '^sleep 1000000$'";

fn nothing_is_harmed() -> Result<()> {
    let lab = Lab::start(State::Seed, &[Name::Store, Name::N1, Name::N2])?;
    let (n1, n2) = (lab.host(Name::N1), lab.host(Name::N2));
    let guard = Guard::install(n2)?;
    // A pool and a container from before the join.
    incus(n2, "storage create local dir")?;
    container::import_image(n2)?;
    incus(n2, &format!("init {} own --storage local", container::IMAGE))?;
    incus(n2, "start own")?;
    cluster::remember_old_member(n1, "old", Name::N2)?;
    cluster::join(&lab, Name::N2)?.fails()?;
    guard.becomes("join-failed", "sealed")?;
    n2.run(&format!("mountpoint {MOUNTPOINT}"))?;

    refuses(&guard, "wipe --yes", "container own")?;
    n2.run("systemctl is-active incus.service")?;
    // A rollback is no harm to it: it uses no pool of the cluster.
    guard.direct("rollback --stop-incus")?;
    n2.run(CONTAINER)?;
    ensure!(!is_mounted(n2)?, "the pool is still mounted");
    refuses(&guard, "wipe --yes", "container own")?;
    n2.run(&format!("kill -KILL $({CONTAINER})"))?;
    n2.wait_for(
        "the container is gone",
        Duration::from_secs(30),
        "! pgrep -f 'lxc monitor.* own$'",
    )?;

    n2.run(VIRTUAL_MACHINE)?;
    refuses(&guard, "wipe --yes", "virtual machine v1")?;
    n2.run("systemctl is-active lab-vm && systemctl stop lab-vm")?;

    let image = "/var/lib/incus/disks/tank.img";
    // The mark of a physical volume of LVM.
    n2.run(&format!(
        "mkdir -p $(dirname {image}); truncate -s 2M {image}; printf LABELONE | dd of={image} bs=1 \
         seek=512 conv=notrunc status=none"
    ))?;
    refuses(&guard, "wipe --yes", "tank.img")?;
    n2.run(&format!("test -s {image}"))?;
    let plan = guard.control("wipe")?;
    ensure!(
        plan.output.contains("IN THE WAY") && plan.output.contains("LVM"),
        "the plan: {}",
        plan.output
    );
    guard.direct("wipe --yes --despite-local-pools")?;
    n2.run("test -d /var/lib/incus && test ! -e /var/lib/incus/disks")?;
    is_intact(&lab)
}

fn a_linked_root() -> Result<()> {
    let lab = Lab::start(State::Seed, &[Name::Store, Name::N1, Name::N2])?;
    let (n1, n2) = (lab.host(Name::N1), lab.host(Name::N2));
    n2.run(
        "systemctl stop incus.socket incus.service
         for mounted in $(cut -d' ' -f5 /proc/1/mountinfo | grep ^/var/lib/incus/ | sort -r); do umount $mounted; done
         mv /var/lib/incus /srv/incus && ln -s /srv/incus /var/lib/incus && systemctl start incus.socket",
    )?;
    let guard = Guard::install(n2)?;
    cluster::remember_old_member(n1, "old", Name::N2)?;
    cluster::join(&lab, Name::N2)?.fails()?;
    guard.becomes("join-failed", "sealed")?;
    ensure!(is_mounted(n2)?, "the failed join has left no mount");
    for root in ["/var/lib/incus", "/srv/incus"] {
        let removed = n2.attempt(&format!("rm -rf {root}/storage-pools/shared/custom"))?;
        ensure!(removed.status != 0, "rm -rf below {root} succeeded");
    }
    is_intact(&lab)?;
    let preflight = guard.control("preflight --address 10.0.3.12")?;
    ensure!(
        preflight.status == 7 && preflight.output.contains("/srv/incus/storage-pools/shared"),
        "preflight does not name what is mounted: {}: {}",
        preflight.status,
        preflight.output
    );
    guard.direct("rollback --stop-incus")?;
    ensure!(!is_mounted(n2)?, "the pool is still mounted");
    guard.direct("wipe --yes")?;
    n2.run(
        "test -L /var/lib/incus && test -d /srv/incus && ! ls -A /srv/incus | grep -v unix.socket",
    )?;
    is_intact(&lab)?;
    cluster::forget_member(n1, "old")?;
    n2.run("systemctl start incus.socket incus.service")?;
    n2.wait_for("Incus answers", Duration::from_secs(120), "timeout 20 incus list")?;
    cluster::join(&lab, Name::N2)?.succeeds()?;
    guard.becomes("joined", "guarded")?;
    is_intact(&lab)
}

/// Fails and names the obstacle, before anything is changed.
fn refuses(guard: &Guard<'_>, command: &str, what: &str) -> Result<()> {
    let ended = guard.control(command)?;
    ensure!(
        ended.status != 0 && ended.output.contains(what),
        "guardctl {command} did not name {what}: {}: {}",
        ended.status,
        ended.output
    );
    Ok(())
}

fn is_mounted(host: &Machine) -> Result<bool> {
    Ok(host.attempt("grep '/storage-pools/shared .* - ceph ' /proc/1/mountinfo")?.status == 0)
}
