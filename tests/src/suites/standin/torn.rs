//! Values of the maps that are replaced while programs read them. The kernel gives the memory of a
//! replaced or removed entry to the next one, so a reader may see another key's entry, or half of
//! two. No deletion may pass by that.
//!
//! A reader must be stopped in the middle of a read, while its entry and then another one are
//! written. So the kernel is made preemptible, and a writer of real-time priority on each processor
//! wakes up again and again.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use guard_agent::host::bpf::Maps;
use guard_agent::host::bpf::maps::Write;
use guard_common::policy::{POOL_CANARY, kernel_dev};
use guard_common::{ActorMask, Counter, ExecutableKey, Mode, PoolEntry, PoolKey};
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::stat::{major, minor};
use nix::unistd::Pid;

use crate::harness::attempt::rm_is_denied;
use crate::harness::guarded::Guarded;
use crate::harness::mount::Mount;
use crate::harness::preemption;
use crate::harness::registry::Test;
use crate::harness::scratch::Scratch;
use crate::peers::own::Running;

pub(super) const TESTS: &[Test] =
    &[Test::new("torn_values_pass_no_deletion", storm).within_seconds(300).only_in_full()];

/// At least so many, in all.
const ATTEMPTS: u64 = 200_000;
const CHANGES: u64 = 50_000;
/// Of one peer, before it ends.
const TIMES: u64 = 50_000;
const PROCESSORS: usize = 2;
/// Between two rounds of a writer, for readers to get on.
const PAUSE: Duration = Duration::from_micros(200);

/// Entries that the test writes.
#[derive(Clone, Copy)]
struct Entries {
    /// By device; each is denied to strangers in either mode that it gets.
    strangers: [(PoolKey, PoolEntry); 2],
    /// Of the strangers' executable, which is no actor.
    nobody: (ExecutableKey, ActorMask),
}

impl Entries {
    /// Entries that would allow denied deletions, of devices that nothing has.
    fn allowing(&self) -> [(PoolKey, PoolEntry); 3] {
        let entry = |mode: Mode| PoolEntry { mode: mode as u32, ..self.strangers[0].1 };
        let released = PoolEntry { expires_boot_ns: u64::MAX, ..entry(Mode::Released) };
        // Of a load of the programs that is not there: all others let everything pass.
        let canary =
            PoolEntry { flags: POOL_CANARY, canary_token: u32::MAX, ..entry(Mode::Sealed) };
        let unused = |number: u32| PoolKey::superblock(0x0f00_0000 + number);
        [(unused(1), entry(Mode::Observed)), (unused(2), released), (unused(3), canary)]
    }

    /// An actor that no file is.
    fn nobodys(&self, number: u64) -> (ExecutableKey, ActorMask) {
        let key = ExecutableKey { ino: u64::MAX - number, ..self.nobody.0 };
        (key, ActorMask { alone: 1, ..ActorMask::default() })
    }
}

/// Writes entries until it is told to stop.
struct Writer {
    maps: Maps,
    entries: Entries,
    processor: usize,
    round: usize,
}

impl Writer {
    fn run(mut self, stop: &AtomicBool, changes: &AtomicU64) -> Result<()> {
        pin_and_go_first(self.processor)?;
        for allowing in self.entries.allowing() {
            self.maps.pools.write(allowing.0, allowing.1, Write::Put)?;
        }
        while !stop.load(Ordering::Relaxed) {
            changes.fetch_add(self.round()?, Ordering::Relaxed);
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// An entry's memory goes to the next entry that is updated on the same processor: after one
    /// that denies comes one that would allow. Another entry comes and goes, which takes memory
    /// from the common list.
    fn round(&mut self) -> Result<u64> {
        let (pools, actors) = (&mut self.maps.pools, &mut self.maps.actor_executables);
        let number = self.round;
        self.round += 1;
        let (key, entry) = self.entries.strangers[number % 2];
        let mode = if number % 4 < 2 { Mode::Sealed } else { Mode::Guarded };
        let allowing = self.entries.allowing();
        let (unused, other) = allowing[number % 3];
        pools.write(key, PoolEntry { mode: mode as u32, ..entry }, Write::Update)?;
        pools.write(unused, other, Write::Put)?;
        let passing = PoolKey::superblock(unused.dev + 0x10 * (1 + self.processor as u32));
        pools.write(passing, other, Write::Put)?;
        pools.remove(&passing)?;

        let (executable, mask) = self.entries.nobody;
        let (nobodys, actor) = self.entries.nobodys(self.processor as u64);
        actors.write(executable, mask, Write::Put)?;
        actors.write(nobodys, actor, Write::Put)?;
        Ok(6)
    }
}

/// Puts the calling thread on one processor, before everything else that runs there.
fn pin_and_go_first(processor: usize) -> Result<()> {
    let mut processors = CpuSet::new();
    processors.set(processor).context("name a processor")?;
    sched_setaffinity(Pid::from_raw(0), &processors).context("pin a thread to a processor")?;
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: a system call that reads this structure.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    Errno::result(done).map(drop).context("give a thread real-time priority")
}

fn device(path: &Path) -> Result<u32> {
    let dev = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.dev();
    Ok(kernel_dev(u32::try_from(major(dev))?, u32::try_from(minor(dev))?))
}

fn copy_of_this_program(scratch: &Scratch, name: &str) -> Result<PathBuf> {
    let copy = scratch.join(name);
    fs::copy(std::env::current_exe().context("where is this program?")?, &copy)
        .context("copy this program")?;
    Ok(copy)
}

/// Three pools, and the processes that delete in them. No agent runs.
struct Storm {
    guarded: Mount,
    sealed: Mount,
    /// An actor deletes here. Its entries stay as they are: one that is replaced all the time may
    /// be denied.
    actors: Mount,
    actor: PathBuf,
    stranger: PathBuf,
    ground: Guarded,
    scratch: Scratch,
}

impl Storm {
    fn new() -> Result<Self> {
        let scratch = Scratch::new("torn")?;
        let actor = copy_of_this_program(&scratch, "actor")?;
        let stranger = copy_of_this_program(&scratch, "stranger")?;
        let settings = format!("actors = [{{ executable = \"{}\" }}]", actor.display());
        let ground = Guarded::with_own_pins("torn", &settings)?;
        let agent = ground.installation.start()?;
        let [guarded, sealed, actors] =
            ["guarded", "sealed", "actors"].map(|name| ground.pool(name));
        let (guarded, sealed, actors) = (guarded?, sealed?, actors?);
        ground.guardctl(&["seal", "sealed"])?;
        ground.wait_for_mode(sealed.path(), "sealed")?;
        // It would put the entries right. The pinned programs go on.
        agent.kill()?;
        Ok(Self { guarded, sealed, actors, actor, stranger, ground, scratch })
    }

    /// Entries that the agent has written.
    fn entries(&self, maps: &Maps) -> Result<Entries> {
        let entry = |mount: &Mount| -> Result<(PoolKey, PoolEntry)> {
            let key = PoolKey::superblock(device(mount.path())?);
            let entry = maps.pools.get(&key)?;
            Ok((key, entry.with_context(|| format!("{} has no entry", mount.path().display()))?))
        };
        let ino = |path: &Path| fs::metadata(path).map(|metadata| metadata.ino());
        let (set, actors_ino) = (entry(&self.actors)?.1.actor_set, ino(&self.actor)?);
        let known = maps.actor_executables.entries()?;
        let actor =
            known.into_iter().find(|(key, _)| key.ino == actors_ino && key.actor_set == set);
        let (key, _) = actor.context("the actor has no entry")?;
        let nobody = (ExecutableKey { ino: ino(&self.stranger)?, ..key }, ActorMask::default());
        Ok(Entries { strangers: [entry(&self.guarded)?, entry(&self.sealed)?], nobody })
    }

    /// Strangers try in both pools; beside them an actor deletes, and a stranger where nothing is
    /// guarded. Returns the number of strangers' attempts.
    fn delete(&self) -> Result<u64> {
        let mut peers = Vec::new();
        for file in ["file0", "file1"] {
            for pool in [&self.guarded, &self.sealed] {
                peers.push(Running::unlinking_by(&self.stranger, &pool.path().join(file), TIMES)?);
            }
        }
        let attempts = peers.len() as u64 * TIMES;
        peers.push(Running::replacing_by(&self.actor, &self.actors.path().join("own"), TIMES)?);
        peers.push(Running::replacing_by(&self.stranger, &self.scratch.join("elsewhere"), TIMES)?);
        peers.into_iter().try_for_each(Running::must_end_well)?;
        Ok(attempts)
    }

    /// Deletes, beside a writer on each processor, until there were enough of both; returns how
    /// many attempts and changes there were.
    fn rage(&self, entries: Entries) -> Result<(u64, u64)> {
        let (stop, changes) = (AtomicBool::new(false), AtomicU64::new(0));
        let write = &|processor| -> Result<()> {
            let maps = self.ground.installation.maps()?;
            Writer { maps, entries, processor, round: 0 }.run(&stop, &changes)
        };
        let enough = |attempts| attempts >= ATTEMPTS && changes.load(Ordering::Relaxed) >= CHANGES;
        thread::scope(|scope| {
            let writers: Vec<_> =
                (0..PROCESSORS).map(|processor| scope.spawn(move || write(processor))).collect();
            let mut attempts = Ok(0);
            while let Ok(number) = attempts
                && !enough(number)
                && !writers.iter().any(|writer| writer.is_finished())
            {
                attempts = self.delete().map(|more| number + more);
            }
            stop.store(true, Ordering::Relaxed);
            for writer in writers {
                writer.join().ok().context("a writer panicked")??;
            }
            Ok((attempts?, changes.load(Ordering::Relaxed)))
        })
    }
}

fn storm() -> Result<()> {
    let storm = Storm::new()?;
    let maps = storm.ground.installation.maps()?;
    let entries = storm.entries(&maps)?;
    let before = maps.counters()?;
    let full = preemption::programs_may_nest()?.then(preemption::Full::switch_on).transpose()?;
    let raged = storm.rage(entries);
    let after = maps.counters()?;
    let counted = |counter: Counter| after[&counter] - before[&counter];
    let (attempts, changes) = raged.with_context(|| {
        let counts = Counter::ALL.iter().map(|&counter| (counter.name(), counted(counter)));
        format!(
            "counted meanwhile: {:?}",
            counts.filter(|(_, count)| *count > 0).collect::<Vec<_>>()
        )
    })?;
    println!(
        "note: {attempts} deletions by strangers denied ({} as read-error), {} by an actor and \
         elsewhere passed, beside {changes} changes of the maps ({} kernel)",
        counted(Counter::DeniedReadError),
        attempts / 2,
        if full.is_some() { "preemptible" } else { "not preemptible" },
    );
    ensure!(counted(Counter::AllowedActor) >= attempts / 4, "the actor was not known as one");
    for pool in [&storm.guarded, &storm.sealed] {
        rm_is_denied(&pool.path().join("file0"))?;
        rm_is_denied(&pool.path().join("file1"))?;
    }
    Ok(())
}
