//! Whether a decision's cost depends on how many pools and actors there are, on depth, and on
//! threads.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use guard_agent::host::bpf::maps::Write;
use guard_agent::model::plan::is_pool;
use guard_common::{ActorMask, CgroupKey, PoolEntry, PoolKey};

use super::measure::{Cost, May, delete, make_files, measured, unlinks};
use super::results::Results;
use super::unlink::{Guarded, actors, as_actor};

const FILES: usize = 500;
const COUNTS: [usize; 5] = [1, 10, 100, 1000, 10_000];
const DEPTHS: [usize; 5] = [1, 4, 16, 64, 256];
const THREADS: [usize; 4] = [1, 4, 16, 64];

/// Runs all of it. The agent is stopped meanwhile: it would remove entries that no mount stands
/// behind.
pub(super) fn run(guarded: &Guarded, results: &mut Results) -> Result<()> {
    guarded.agent.signal(nix::sys::signal::Signal::SIGSTOP)?;
    let mut maps = guarded.installation.maps()?;
    let known = maps.pools.entries()?;
    let (_, real) = *known.iter().find(|(_, entry)| is_pool(entry)).context("there is no pool")?;
    let at = |results: &mut Results, axis, at| -> Result<()> {
        let cost = unlinks(&guarded.elsewhere, FILES, May::Delete)?;
        results.growth(axis, "outside every root", at, &cost);
        let cost = as_actor(&actors(), || unlinks(&guarded.pool, FILES, May::Delete))?;
        results.growth(axis, "allowed as actor", at, &cost);
        let cost = unlinks(&guarded.pool, FILES, May::NotDelete)?;
        results.growth(axis, "denied, aggregated", at, &cost);
        Ok(())
    };
    let mut made = Vec::new();
    for count in COUNTS {
        for number in made.len()..count {
            // Far above the numbers of the kernel's own superblocks.
            let key = PoolKey::superblock(0x0f00_0000 + u32::try_from(number)?);
            let entry = PoolEntry { generation: u64::MAX - number as u64, ..real };
            maps.pools.write(key, entry, Write::Create)?;
            made.push(key);
        }
        at(results, "pools", count)?;
    }
    for key in made {
        maps.pools.remove(&key)?;
    }
    let mut made = Vec::new();
    for count in COUNTS {
        for number in made.len()..count {
            let cgroup_id = u64::MAX - number as u64;
            let key = CgroupKey { cgroup_id, actor_set: real.actor_set, reserved: 0 };
            maps.actor_cgroups.write(
                key,
                ActorMask { alone: 1, ..ActorMask::default() },
                Write::Create,
            )?;
            made.push(key);
        }
        at(results, "actors", count)?;
    }
    for key in made {
        maps.actor_cgroups.remove(&key)?;
    }
    for depth in DEPTHS {
        let mut directory = guarded.pool.clone();
        directory.extend((0..depth).map(|_| "d"));
        fs::create_dir_all(&directory).with_context(|| format!("create {depth} directories"))?;
        let cost = as_actor(&actors(), || unlinks(&directory, FILES, May::Delete))?;
        results.growth("depth", "allowed as actor", depth, &cost);
        results.growth(
            "depth",
            "denied, aggregated",
            depth,
            &unlinks(&directory, FILES, May::NotDelete)?,
        );
    }
    for threads in THREADS {
        let cost = as_actor(&actors(), || in_threads(guarded, threads))?;
        results.growth("threads", "allowed as actor", threads, &cost);
    }
    guarded.agent.signal(nix::sys::signal::Signal::SIGCONT)
}

/// The same number of files, deleted by so many threads.
fn in_threads(guarded: &Guarded, threads: usize) -> Result<Cost> {
    let files = make_files(&guarded.pool, FILES)?;
    measured(files.len(), May::Delete, || {
        let parts = files.chunks(FILES.div_ceil(threads));
        std::thread::scope(|scope| {
            let running: Vec<_> = parts.map(|part| scope.spawn(move || delete(part))).collect();
            let mut sum = (0, Duration::ZERO);
            for thread in running {
                let (removed, took) =
                    thread.join().map_err(|_| anyhow!("a deleting thread panicked"))?;
                sum = (sum.0 + removed, sum.1 + took);
            }
            Ok(sum)
        })
    })
}
