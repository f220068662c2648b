//! Faults of the mount table: storms, many mounts, and very long tables.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use fastrand::Rng;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

use super::faults::LOADED_LIMIT;
use super::ground::Ground;
use crate::harness::attempt::denied;
use crate::harness::mount::Mount;
use crate::harness::scratch::Scratch;
use crate::harness::wait;

/// A new pool with a file in it, which nobody may delete from the pool's first moment on.
fn protected(place: &Path) -> Result<Mount> {
    let mount = Mount::tmpfs(place)?;
    fs::write(mount.path().join("file"), "").context("write into a new mount")?;
    is_protected(&mount)?;
    Ok(mount)
}

fn is_protected(mount: &Mount) -> Result<()> {
    denied("a deletion in a new mount", fs::remove_file(mount.path().join("file")))
}

/// Waits until the agent knows so many pools, and no more.
fn known(ground: &Ground, count: usize) -> Result<()> {
    wait::until(&format!("the agent knows {count} pools"), LOADED_LIMIT, || {
        // An agent that is busy with a very long table may answer too late.
        let pools = ground.guarded.installation.guardctl_json(&["pools"]);
        Ok(pools.is_ok_and(|pools| pools.as_array().is_some_and(|all| all.len() == count)))
    })
}

/// Pools come and go; each is protected from its first moment.
pub(super) fn mount_storm(ground: &mut Ground, random: &mut Rng) -> Result<()> {
    let mut mounts = Vec::new();
    for number in 0..random.usize(20..100) {
        let mount = protected(&ground.guarded.root().join(format!("storm{number}")))?;
        if random.bool() {
            mounts.push(mount);
        }
    }
    ground.holds()?;
    drop(mounts);
    known(ground, 1)
}

/// A thousand pools at once, and at once no more.
pub(super) fn thousand_mounts(ground: &mut Ground, _: &mut Rng) -> Result<()> {
    const COUNT: usize = 1000;
    let place = |number| ground.guarded.root().join(format!("many{number}"));
    let mounts: Vec<Mount> =
        (0..COUNT).map(|number| protected(&place(number))).collect::<Result<_>>()?;
    ground.holds()?;
    known(ground, COUNT + 1)?;
    mounts.iter().try_for_each(is_protected)?;
    ground.holds()?;
    drop(mounts);
    known(ground, 1)
}

/// One pool that comes and goes again and again, a few hundred times.
pub(super) fn some_mount_cycles(ground: &mut Ground, random: &mut Rng) -> Result<()> {
    mount_cycles(ground, random.u32(200..500))
}

/// So many times.
pub(super) fn mount_cycles(ground: &mut Ground, times: u32) -> Result<()> {
    let place = ground.guarded.root().join("cycle");
    for number in 0..times {
        let mut mount = protected(&place).with_context(|| format!("mount {number} of {times}"))?;
        mount.unmount()?;
        if number % 1000 == 0 {
            ground.holds()?;
        }
    }
    known(ground, 1)?;
    // Else they would fill the map, since this process lives on.
    let maps = ground.maps()?;
    wait::until("the incidents of pools that have ended are closed", LOADED_LIMIT, || {
        let pools = maps.pools.entries()?;
        let incidents = maps.incidents.entries()?;
        let lives = |generation| pools.iter().any(|(_, entry)| entry.generation == generation);
        Ok(incidents.iter().all(|(key, _)| key.generation == 0 || lives(key.generation)))
    })?;
    ground.holds()
}

/// A mount table of some thousand lines.
pub(super) fn rather_long_mount_table(ground: &mut Ground, random: &mut Rng) -> Result<()> {
    long_mount_table(ground, random.usize(3_000..8_000))
}

/// A mount table of so many lines: a new pool is protected at once, and known after a while; the
/// agent answers.
pub(super) fn long_mount_table(ground: &mut Ground, count: usize) -> Result<()> {
    /// KiB. What the agent may hold of such a table.
    const MEMORY: u64 = 256 * 1024;
    const BLOCK: usize = 1000;
    let scratch = Scratch::new("lines")?;
    let all = Mount::tmpfs(scratch.join("all"))?;
    // A mount in a shared one would be told to each of the others.
    mount(None::<&str>, all.path(), None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)?;
    // It would read the table again for each line of it.
    ground.agent()?.signal(Signal::SIGSTOP)?;
    // Copies of one block: mounts made one by one take a time that grows with the square of their
    // number.
    let directory = |name: &str| -> Result<PathBuf> {
        let path = all.path().join(name);
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    };
    let bind = |source: &Path, place: &Path, flags| {
        mount(Some(source), place, None::<&str>, MsFlags::MS_BIND | flags, None::<&str>)
            .with_context(|| format!("bind {} to {}", source.display(), place.display()))
    };
    let (source, block) = (directory("source")?, directory("block")?);
    for number in 0..BLOCK {
        bind(&source, &directory(&format!("block/{number}"))?, MsFlags::empty())?;
    }
    for number in 1..count.div_ceil(BLOCK) {
        bind(&block, &directory(&format!("copy{number}"))?, MsFlags::MS_REC)?;
    }
    let lines =
        fs::read_to_string("/proc/1/mountinfo").context("read the mount table")?.lines().count();
    ensure!(lines > count, "the mount table has {lines} lines");
    println!("note: the mount table has {lines} lines");
    let began = Instant::now();
    let late = protected(&ground.guarded.root().join("late"))?;
    ground.agent()?.signal(Signal::SIGCONT)?;
    known(ground, 2)?;
    let took = began.elapsed();
    is_protected(&late)?;
    let began = Instant::now();
    ground.guarded.status()?;
    let answered = began.elapsed();
    let memory = ground.agent()?.memory_kib()?;
    println!(
        "note: {lines} lines of mountinfo: a new pool known after {took:.1?}, an answer after \
         {answered:.1?}, agent VmRSS {memory} KiB"
    );
    ensure!(memory <= MEMORY, "the agent holds {memory} KiB");
    ground.holds()?;
    drop((late, all));
    known(ground, 1)
}
