//! A cluster whose members get a newer Incus one after the other, with time between: until the last
//! one has it, those that have it answer nothing. They are held, no guest notices, and all is as
//! before when they answer.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::harness::host::cluster::{self, POOL, incus, is_intact};
use crate::harness::host::container::{self, Work};
use crate::harness::host::guard::Guard;
use crate::harness::host::runner::Running;
use crate::harness::host::{Lab, Machine, Name, State};
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] =
    &[Test::new("rolling_upgrade_of_incus_denies_no_guest_anything", one_after_the_other)
        .within_seconds(4800)
        .only_in_full()
        .only_with_incus("6.0")];
/// From the upgrade of one member to that of the next.
const BETWEEN: Duration = Duration::from_secs(600);
/// For apt and a start of Incus that waits for the other members: twice the time between, and their
/// upgrades on emulated machines.
const UPGRADE_LIMIT: Duration = Duration::from_secs(3000);
/// For the members to find each other once all are upgraded, on emulated machines.
const ANSWER_LIMIT: Duration = Duration::from_secs(400);
/// The guest's host comes second, so that its daemon is away the longer time of all.
const ORDER: [Name; 3] = [Name::N3, Name::N2, Name::N1];

fn one_after_the_other() -> Result<()> {
    let lab = Lab::start(State::Members, &Name::ALL)?;
    let guards = Name::NODES.map(|name| Guard::of(lab.host(name)));
    for name in Name::NODES {
        Guard::install(lab.host(name))?;
    }
    cluster::join(&lab, Name::N3)?.succeeds()?;
    for guard in &guards {
        guard.becomes("joined", "guarded")?;
    }
    let (n1, n2) = (lab.host(Name::N1), lab.host(Name::N2));
    container::start(n1, n2)?;
    let work = Work::begin(n2)?;
    work.goes_on()?;
    let before: Vec<usize> =
        guards.iter().map(|guard| Ok(guard.transitions()?.len())).collect::<Result<_>>()?;
    let nothing_denied = || {
        for guard in &guards {
            ensure!(
                guard.denied()? == 0,
                "something was denied on a member: {}",
                guard.json("pools")?
            );
        }
        work.goes_on()?;
        is_intact(&lab)
    };

    let mut upgrades = Vec::new();
    for name in ORDER {
        upgrades.push((name, upgrade(lab.host(name))?));
        let next = Instant::now() + BETWEEN;
        while name != ORDER[2] && Instant::now() < next {
            // Each look waits until the guest has deleted once more.
            nothing_denied().with_context(|| {
                format!("while {} is upgraded and others are not", name.as_str())
            })?;
        }
        if name != ORDER[2] {
            Guard::of(lab.host(name)).becomes("unconfirmed", "held")?;
        }
    }
    for (name, running) in upgrades {
        let ended = running.end()?;
        ensure!(ended.status == 0, "the upgrade of {}: {}", name.as_str(), ended.output);
    }
    for name in Name::NODES {
        let host = lab.host(name);
        host.wait_for("Incus answers", ANSWER_LIMIT, "timeout 20 incus list")?;
        let version = host.run("incus query /1.0 | jq -r .environment.server_version")?;
        ensure!(version.starts_with("7.0"), "{} has Incus {version}", name.as_str());
        Guard::of(host).becomes("joined", "guarded")?;
    }
    nothing_denied().context("all are upgraded")?;
    for (number, name) in Name::NODES.into_iter().enumerate() {
        incus(
            lab.host(name),
            &format!("storage volume create {POOL} own{number} --target {}", name.as_str()),
        )?;
        incus(
            lab.host(name),
            &format!("storage volume delete {POOL} own{number} --target {}", name.as_str()),
        )?;
    }
    nothing_denied().context("each member has deleted a volume")?;
    for ((guard, before), name) in guards.iter().zip(before).zip(Name::NODES) {
        let changes = guard.transitions()?;
        let later: Vec<String> = changes.iter().skip(before).map(state).collect();
        println!("note: {} during the upgrade: {}", name.as_str(), later.join(", "));
        let only = later.iter().all(|state| ["joined", "unconfirmed"].contains(&state.as_str()));
        ensure!(only, "{} became {later:?}", name.as_str());
    }
    Ok(())
}

/// Begins it; it may wait for the other members.
fn upgrade(host: &Machine) -> Result<Running> {
    let packages = "/usr/local/lib/lab/next-incus/*.deb";
    host.begin(
        &format!(
            "DEBIAN_FRONTEND=noninteractive apt-get --yes --no-install-recommends install \
             {packages}"
        ),
        UPGRADE_LIMIT,
    )
}

fn state(transition: &Value) -> String {
    transition["to"].as_str().unwrap_or("?").to_owned()
}
