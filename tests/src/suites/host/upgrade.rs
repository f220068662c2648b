//! Upgrades of the package while eight deleters are at work: nothing passes, and nothing is
//! forgotten.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::harness::host::guard::{Guard, Package};
use crate::harness::host::standin::{self, FILES, POOL};
use crate::harness::host::{Machine, Name};
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] = &[
    Test::new("upgrade_of_the_package_under_deleters_passes_nothing", || upgrade(Package::Next))
        .within_seconds(900)
        .only_in_full(),
    Test::new("upgrade_to_another_layout_under_deleters_passes_nothing", || {
        upgrade(Package::NextLayout)
    })
    .within_seconds(900)
    .only_in_full(),
];
const RELEASED: &str = "/srv/guarded/released";
const SEALED: &str = "/srv/guarded/sealed";

fn upgrade(to: Package) -> Result<()> {
    let lab = standin::start("auto")?;
    let host = lab.host(Name::N1);
    let guard = Guard::of(host);
    for pool in [RELEASED, SEALED] {
        host.run(&format!("mkdir {pool}; mount -t tmpfs pool {pool}; echo precious >{pool}/file"))?;
        host.wait_for(
            "the pool is known",
            std::time::Duration::from_secs(30),
            &format!("guardctl pools | grep {pool}"),
        )?;
    }
    guard.direct(&format!("seal {SEALED}"))?;
    guard.direct(&format!("release {RELEASED} --ttl 1h --reason upgrade"))?;
    // A command that deletes all the time with a lease: it is never denied.
    let command = format!(
        "sh -c 'while :; do touch {POOL}/own && rm {POOL}/own || {{ touch /run/lease-denied; exit \
         1; }}; echo >>/run/lease-works; done'"
    );
    host.run(&format!(
        "systemd-run --quiet --unit=lab-command guardctl exec --pool {POOL} --ttl 1h --reason \
         upgrade -- {command}"
    ))?;
    host.wait_for(
        "the command with a lease works",
        std::time::Duration::from_secs(60),
        "test -s /run/lease-works",
    )?;
    for number in 1..=8 {
        let lines = format!("while :; do rm -rf {POOL}/d{number} 2>/dev/null; done");
        host.run(&format!("systemd-run --quiet --unit=lab-deleter{number} sh -c '{lines}'"))?;
    }
    let before = known(&guard)?;
    guard.apt_install(to)?;
    guard.enforces()?;
    let after = known(&guard)?;
    host.run("test -s /run/lease-works && : >/run/lease-works")?;
    host.wait_for(
        "the command goes on",
        std::time::Duration::from_secs(60),
        "test -s /run/lease-works",
    )?;
    host.run("test ! -e /run/lease-denied && systemctl is-active lab-command")?;
    host.run(
        "systemctl stop lab-command; for n in 1 2 3 4 5 6 7 8; do systemctl stop lab-deleter$n; \
         done",
    )?;
    ensure!(before.build != after.build, "the same agent runs as before");
    ensure!(
        standin::files(host)? == FILES,
        "LOST: {} of {FILES} files are left",
        standin::files(host)?
    );
    ensure!(
        after.sealed == before.sealed,
        "sealed before: {:?}, after: {:?}",
        before.sealed,
        after.sealed
    );
    ensure!(
        after.leases == before.leases,
        "leases before: {:?}, after: {:?}",
        before.leases,
        after.leases
    );
    ensure!(
        after.denied >= before.denied && before.denied > 0,
        "totals: {} then {}",
        before.denied,
        after.denied
    );
    println!(
        "note: upgrade under 8 deleters: {} denials before, {} after",
        before.denied, after.denied
    );
    works_as_before(host)
}

/// Facts that an upgrade must not change.
#[derive(Debug)]
struct Known {
    build: String,
    sealed: Vec<String>,
    /// Id and end of each.
    leases: Vec<(String, String)>,
    denied: u64,
}

fn known(guard: &Guard<'_>) -> Result<Known> {
    let status = guard.json("status")?;
    let list = |name: &str| {
        status[name].as_array().cloned().with_context(|| format!("status has no {name}"))
    };
    let text = |value: &Value| value.to_string();
    let sealed = list("pools")?
        .iter()
        .filter(|pool| pool["mode"] == "sealed")
        .map(|pool| text(&pool["id"]))
        .collect();
    let mut leases: Vec<(String, String)> =
        list("leases")?.iter().map(|lease| (text(&lease["id"]), text(&lease["ends"]))).collect();
    leases.sort();
    ensure!(leases.len() == 2, "not two leases: {leases:?}");
    let build = format!("{}{}", text(&status["agent"]["build"]), text(&status["agent"]["pid"]));
    Ok(Known { build, sealed, leases, denied: guard.denied()? })
}

fn works_as_before(host: &Machine) -> Result<()> {
    host.run(&format!("rm {RELEASED}/file"))?;
    ensure!(
        host.attempt(&format!("{} rm {SEALED}/file", standin::ACTOR))?.status != 0,
        "the seal is gone"
    );
    host.run(&format!("{} rm {POOL}/d1/f1", standin::ACTOR)).map(drop)
}
