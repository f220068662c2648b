//! The fault lab: faults from a seed, for a set time, and after each of them a check of the
//! invariants.
//!
//! `faults` has the list. What is held here, whatever has happened to the agent: a deletion in the
//! pool is denied and one beside it passes, an actor's and a guest's pass, and a deleter that runs
//! all the time has deleted nothing. A running agent answers.

mod faults;
mod ground;
mod mounts;
mod room;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fastrand::Rng;

use faults::{FAULTS, Fault};
use ground::Ground;

/// Injects faults until the time is over, one at least: any, or one of those that are named. Fails
/// at the first thing that does not hold.
pub fn run(time: Duration, seed: u64, only: &[String]) -> Result<()> {
    let known: Vec<&str> = FAULTS.iter().map(|fault| fault.name).collect();
    for name in only {
        ensure!(
            known.contains(&name.as_str()),
            "there is no fault `{name}`; known are {}",
            known.join(", ")
        );
    }
    let is_meant = |fault: &&Fault| only.is_empty() || only.iter().any(|name| name == fault.name);
    let faults: Vec<&Fault> = FAULTS.iter().filter(is_meant).collect();
    println!("seed {seed}, {} s", time.as_secs());
    let (mut ground, mut random) = (Ground::new()?, Rng::with_seed(seed));
    let mut injected: BTreeMap<&str, u32> = BTreeMap::new();
    let began = Instant::now();
    loop {
        let fault = random.choice(&faults).context("there is no fault")?;
        ground.survives(fault, &mut random).with_context(|| {
            format!("seed {seed}, after {:.0} s and {injected:?}", began.elapsed().as_secs_f64())
        })?;
        *injected.entry(fault.name).or_default() += 1;
        if began.elapsed() >= time {
            break;
        }
    }
    report(ground, &injected)
}

/// Each fault once, in the order of the list.
pub fn each_once(seed: u64) -> Result<()> {
    let (mut ground, mut random) = (Ground::new()?, Rng::with_seed(seed));
    let mut injected = BTreeMap::new();
    for fault in FAULTS {
        ground.survives(fault, &mut random)?;
        injected.insert(fault.name, 1);
    }
    report(ground, &injected)
}

/// A pool that is mounted and unmounted so often.
pub fn mount_cycles(times: u32) -> Result<()> {
    let mut ground = Ground::new()?;
    mounts::mount_cycles(&mut ground, times)?;
    report(ground, &BTreeMap::from([("mount-cycles", 1)]))
}

/// A mount table of so many lines.
pub fn long_mount_table(lines: usize) -> Result<()> {
    let mut ground = Ground::new()?;
    mounts::long_mount_table(&mut ground, lines)?;
    ground.recovers()?;
    report(ground, &BTreeMap::from([("long-mount-table", 1)]))
}

fn report(ground: Ground, injected: &BTreeMap<&str, u32>) -> Result<()> {
    let faults: u32 = injected.values().sum();
    let (checks, decisions) = ground.end()?;
    let each: Vec<String> =
        injected.iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!(
        "note: {faults} faults injected ({}); {checks} times every invariant held; {decisions} \
         decisions accounted for",
        each.join(", ")
    );
    Ok(())
}
