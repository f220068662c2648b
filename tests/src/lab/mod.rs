//! The fault lab: faults from a seed, for a set time, and after each of them what must always hold.
//!
//! `faults` has the list. What is held here, whatever has happened to the agent: a deletion in the pool is
//! denied and one beside it passes, an actor's passes, and a deleter that runs all the time has deleted
//! nothing. A running agent answers.

mod faults;
mod ground;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use fastrand::Rng;

use faults::FAULTS;
use ground::Ground;

/// Injects faults until the time is over; fails at the first thing that does not hold.
pub fn run(time: Duration, seed: u64) -> Result<()> {
    println!("seed {seed}, {} s", time.as_secs());
    let (mut ground, mut random) = (Ground::new()?, Rng::with_seed(seed));
    let mut injected: BTreeMap<&str, u32> = BTreeMap::new();
    let began = Instant::now();
    while began.elapsed() < time {
        let fault = random.choice(FAULTS).context("there is no fault")?;
        ground.survives(fault, &mut random).with_context(|| {
            format!("seed {seed}, after {:.0} s and {injected:?}", began.elapsed().as_secs_f64())
        })?;
        *injected.entry(fault.name).or_default() += 1;
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

fn report(ground: Ground, injected: &BTreeMap<&str, u32>) -> Result<()> {
    let faults: u32 = injected.values().sum();
    let (checks, decisions) = ground.end()?;
    let each: Vec<String> = injected.iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!(
        "note: {faults} faults injected ({}); {checks} times every invariant held; {decisions} decisions accounted for",
        each.join(", ")
    );
    Ok(())
}
