//! Reboots: enforcement stands before the first mount, also for a deleter from earliest userspace
//! on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::harness::host::cluster::{self, MOUNTPOINT, POOL, is_intact};
use crate::harness::host::guard::Guard;
use crate::harness::host::{Lab, Machine, Name, State};
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] = &[
    Test::new("reboot_of_a_failed_node_deletes_nothing", a_failed_node)
        .within_seconds(1200)
        .only_in_full(),
    Test::new("reboot_of_a_member_deletes_nothing", a_member).within_seconds(1200).only_in_full(),
];
/// From the reboot to Incus's first mount, on an emulated machine.
const MOUNT_LIMIT: Duration = Duration::from_secs(600);

fn a_failed_node() -> Result<()> {
    let lab = Lab::start(State::Seed, &[Name::Store, Name::N1, Name::N2])?;
    let n2 = lab.host(Name::N2);
    let guard = Guard::install(n2)?;
    cluster::remember_old_member(lab.host(Name::N1), "oldnode2", Name::N2)?;
    cluster::join(&lab, Name::N2)?.fails()?;
    guard.becomes("join-failed", "sealed")?;
    reboot_under_a_deleter(&lab, n2)?;
    guard.becomes("join-failed", "sealed")?;
    ensure!(guard.denied()? > 0, "the deleter was not denied");
    is_intact(&lab)
}

fn a_member() -> Result<()> {
    let lab = Lab::start(State::Members, &[Name::Store, Name::N1, Name::N2])?;
    let n2 = lab.host(Name::N2);
    let guard = Guard::install(n2)?;
    guard.becomes("joined", "guarded")?;
    reboot_under_a_deleter(&lab, n2)?;
    guard.becomes("joined", "guarded")?;
    ensure!(guard.denied()? > 0, "the deleter was not denied");
    is_intact(&lab)?;
    // Its own daemon deletes.
    n2.run("systemctl stop lab-deleter")?;
    n2.run(&format!(
        "incus storage volume create {POOL} own && incus storage volume delete {POOL} own"
    ))?;
    is_intact(&lab)
}

/// Reboots a host on which something deletes the pool's content from the first moment of userspace
/// on.
fn reboot_under_a_deleter(lab: &Lab, host: &Machine) -> Result<()> {
    let unit = format!(
        "[Unit]\nDefaultDependencies=no\nAfter=local-fs.target\n[Service]\nEnvironment=LANG=C\n\
         ExecStart=/bin/sh -c 'while :; do rm -rf {MOUNTPOINT}/*; mkdir -p /run/deleter; touch \
         /run/deleter/tried; done'\nStandardError=null\n[Install]\nWantedBy=sysinit.target\n"
    );
    host.run(&format!(
        "printf %s '{}' >/etc/systemd/system/lab-deleter.service; systemctl enable lab-deleter",
        unit.replace('\'', "'\\''")
    ))?;
    host.reboot()?;
    let mounted = format!("grep ' {MOUNTPOINT} ' /proc/1/mountinfo");
    host.wait_for("Incus mounts the pool", MOUNT_LIMIT, &mounted)?;
    host.run("test -e /run/deleter/tried")?;
    is_intact(lab)?;
    let (enforcing, session) = (enforcing_since(host)?, first_session(host)?);
    println!("note: reboot: enforcing at {enforcing:.1} s, first CephFS session at {session:.1} s");
    ensure!(
        enforcing < session,
        "CephFS was mounted at {session} s, before enforcement stood at {enforcing} s"
    );
    Ok(())
}

/// When systemd took note that the agent is ready: enforcement is proven then. In seconds since the
/// boot.
fn enforcing_since(host: &Machine) -> Result<f64> {
    let said = host.run("systemctl show guard-agent -P ActiveEnterTimestampMonotonic")?;
    let microseconds: f64 =
        said.trim().parse().with_context(|| format!("a time of systemd: {said}"))?;
    Ok(microseconds / 1e6)
}

/// When the kernel's CephFS client opened its first session, which is before anything can be
/// mounted.
fn first_session(host: &Machine) -> Result<f64> {
    let said = host.run(
        "journalctl -k -b -o short-monotonic --no-pager | grep -m1 'libceph.*session established'",
    )?;
    let time =
        said.split(['[', ']']).nth(1).with_context(|| format!("a line of the journal: {said}"))?;
    time.trim().parse().with_context(|| format!("a time of the journal: {said}"))
}
