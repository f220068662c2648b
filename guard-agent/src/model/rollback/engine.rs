//! Goes round until nothing is mounted any more or nothing moves: look, plan, unmount, look again.
//! [`Host`] is everything that it can do to the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::guests::guests;
use super::holder::{Holder, Wanted};
use super::plan::{Obstacle, Step, StepKind, Target, UnmountPlan, plan};
use super::report::{
    MountPlace, Remaining, RollbackOutcome, StepReport, UnmountOutcome, describe, fix, fix_guest,
};
use super::table::NamespaceTable;
use crate::model::audit::record::device_text;

/// The machine.
pub trait Host {
    /// Every mount namespace's table.
    fn tables(&mut self) -> Result<Vec<NamespaceTable>, String>;
    /// Generations of the superblocks that the kernel knows to be alive.
    fn alive(&mut self) -> Result<BTreeSet<u64>, String>;
    /// Unmounts one mount if it still is the mount of the step.
    fn unmount(&mut self, step: &Step, lazy: bool) -> UnmountOutcome;
    /// The users of these superblocks.
    fn holders(&mut self, wanted: &[Wanted]) -> Result<Vec<Holder>, String>;
    /// Name of the container that a process belongs to, or of the process.
    fn name(&mut self, pid: u32) -> String;
    /// Waits, bounded, until none of these is alive. Returns those that still are.
    fn wait_for_end(&mut self, generations: &BTreeSet<u64>) -> Result<BTreeSet<u64>, String>;
}

/// Steps that need the operator's word. The default allows none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Detach mounts that are busy.
    pub lazy: bool,
    /// Unmount also below a running guest, which then writes into the directory underneath.
    pub force: bool,
}

/// Longest time for each part.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub unmount: std::time::Duration,
    pub holders: std::time::Duration,
    pub end: std::time::Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = std::time::Duration::from_secs;
        Self { unmount: seconds(10), holders: seconds(15), end: seconds(10) }
    }
}

/// An event during the rollback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Step(StepReport),
    /// Nothing is mounted any more; the kernel still has to say that it is gone.
    Waiting {
        superblocks: usize,
    },
}

/// Rounds at most. A round in which nothing moves is the last one; each other round removes a
/// mount, and a process that mounts as fast as we unmount is not raced for ever.
const ROUNDS: usize = 16;

/// Unmounts all mounts of the targets, and returns the remains.
pub fn run(
    host: &mut impl Host,
    targets: &[Target],
    root: &Path,
    allowed: Allowed,
    progress: &mut dyn FnMut(Progress),
) -> RollbackOutcome {
    let mut engine = Engine {
        host,
        targets,
        root,
        progress,
        outcome: RollbackOutcome::default(),
        mount_ids: BTreeMap::new(),
        held: Vec::new(),
        timed_out: BTreeSet::new(),
        stuck: BTreeSet::new(),
    };
    if let Err(problem) = engine.unmount_all(allowed) {
        engine.outcome.problems.push(problem);
    }
    engine.judge();
    engine.outcome
}

struct Engine<'a, H> {
    host: &'a mut H,
    targets: &'a [Target],
    root: &'a Path,
    progress: &'a mut dyn FnMut(Progress),
    outcome: RollbackOutcome,
    /// All mount ids that were seen, by generation: they name the mount also after it was detached.
    mount_ids: BTreeMap<u64, BTreeSet<u32>>,
    /// Holders from before the detaching: afterwards a working directory cannot be told by its
    /// path.
    held: Vec<Holder>,
    timed_out: BTreeSet<u64>,
    /// Mounts whose unmount has not come back: they are not tried twice. By namespace and id.
    stuck: BTreeSet<(u64, u32)>,
}

impl<H: Host> Engine<'_, H> {
    fn unmount_all(&mut self, allowed: Allowed) -> Result<(), String> {
        if !allowed.force {
            self.outcome.guests = self.find_guests()?;
            if !self.outcome.guests.is_empty() {
                return Ok(());
            }
        }
        let busy = self.rounds(false)?;
        if busy && allowed.lazy {
            self.held = self.find_holders();
            self.rounds(true)?;
        }
        Ok(())
    }

    fn find_guests(&mut self) -> Result<Vec<super::guests::Guest>, String> {
        let live = self.live_targets()?;
        if live.is_empty() {
            return Ok(Vec::new());
        }
        let tables = self.host.tables()?;
        // A number that has passed to another superblock between the two looks is no target's any
        // more.
        let still = self.host.alive()?;
        let live: Vec<Target> =
            live.into_iter().filter(|target| still.contains(&target.generation)).collect();
        Ok(guests(&tables, &live, self.root, &mut |pid| self.host.name(pid)))
    }

    /// Whether something was busy in the last round.
    fn rounds(&mut self, lazy: bool) -> Result<bool, String> {
        for _ in 0..ROUNDS {
            let (plan, tables) = self.look()?;
            let (mut moved, mut busy) = (false, false);
            for step in &plan.steps {
                if self.stuck.contains(&(step.namespace, step.mount_id)) {
                    continue;
                }
                let outcome = self.host.unmount(step, lazy);
                moved |= outcome.is_done();
                busy |= outcome == UnmountOutcome::Busy;
                self.note(step, lazy, outcome, &tables);
            }
            if !moved {
                return Ok(busy);
            }
        }
        self.outcome.problems.push(
            "another process mounts these filesystems again as soon as they are unmounted"
                .to_owned(),
        );
        Ok(false)
    }

    fn look(&mut self) -> Result<(UnmountPlan, Vec<NamespaceTable>), String> {
        let live = self.live_targets()?;
        if live.is_empty() {
            return Ok((UnmountPlan::default(), Vec::new()));
        }
        let tables = self.host.tables()?;
        // A number may have passed to another superblock between the two looks: a superblock that
        // ended meanwhile is no target.
        let live: Vec<Target> = {
            let still = self.host.alive()?;
            live.into_iter().filter(|target| still.contains(&target.generation)).collect()
        };
        for (target, entry) in live.iter().flat_map(|target| {
            let entries = tables.iter().flat_map(|table| table.mounts.entries());
            entries.filter(|entry| entry.dev() == target.dev).map(move |entry| (target, entry))
        }) {
            self.mount_ids.entry(target.generation).or_default().insert(entry.mount_id);
        }
        Ok((plan(&tables, &live, self.root), tables))
    }

    fn live_targets(&mut self) -> Result<Vec<Target>, String> {
        let alive = self.host.alive()?;
        Ok(self
            .targets
            .iter()
            .filter(|target| alive.contains(&target.generation))
            .cloned()
            .collect())
    }

    fn note(
        &mut self,
        step: &Step,
        lazy: bool,
        outcome: UnmountOutcome,
        tables: &[NamespaceTable],
    ) {
        let generation = match step.kind {
            StepKind::Pool { generation } => Some(generation),
            StepKind::Own => None,
        };
        if outcome == UnmountOutcome::TimedOut {
            self.stuck.insert((step.namespace, step.mount_id));
            self.timed_out.extend(generation);
        }
        let pool = self.targets.iter().find(|target| Some(target.generation) == generation);
        let place = place(tables, step.namespace, &step.mountpoint);
        let report =
            StepReport { place, pool: pool.map(|target| target.name.clone()), lazy, outcome };
        (self.progress)(Progress::Step(report.clone()));
        self.outcome.steps.push(report);
    }

    /// Fills in the remaining targets. Without an answer of the kernel all remain.
    fn judge(&mut self) {
        let all = || self.targets.to_vec();
        let (live, tables) = match (self.live_targets(), self.host.tables()) {
            (Ok(live), Ok(tables)) => (self.waited_for(live, &tables), tables),
            (live, tables) => {
                let (mut known, mut read) = (all(), Vec::new());
                match live {
                    Ok(live) => known = live,
                    Err(problem) => self.outcome.problems.push(problem),
                }
                match tables {
                    Ok(tables) => read = tables,
                    Err(problem) => self.outcome.problems.push(problem),
                }
                (known, read)
            }
        };
        if live.is_empty() {
            return;
        }
        let mut holders = self.find_holders();
        for known in std::mem::take(&mut self.held) {
            let again =
                |other: &Holder| (other.pid, other.generation) == (known.pid, known.generation);
            if !holders.iter().any(again) && live.iter().any(|t| t.generation == known.generation) {
                holders.push(known);
            }
        }
        let obstacles = plan(&tables, &live, self.root).obstacles;
        let guests = self.outcome.guests.clone();
        self.outcome.remaining = live
            .iter()
            .map(|target| {
                let holders = holders
                    .iter()
                    .filter(|holder| holder.generation == target.generation)
                    .cloned()
                    .collect();
                let timed_out = self.timed_out.contains(&target.generation);
                let mut remaining = remaining(target, &tables, &obstacles, holders, timed_out);
                if let Some(guest) = guests.iter().find(|guest| guest.pool == target.name) {
                    remaining.fix = fix_guest(guest);
                } else if !guests.is_empty() {
                    remaining.fix =
                        "nothing was unmounted, since another pool is in use: see there".to_owned();
                }
                remaining
            })
            .collect();
    }

    /// Gives the kernel time to end those superblocks that nobody has mounted any more.
    fn waited_for(&mut self, live: Vec<Target>, tables: &[NamespaceTable]) -> Vec<Target> {
        let unmounted: BTreeSet<u64> = live
            .iter()
            .filter(|target| places(tables, target.dev).is_empty())
            .map(|target| target.generation)
            .collect();
        if unmounted.is_empty() {
            return live;
        }
        (self.progress)(Progress::Waiting { superblocks: unmounted.len() });
        match self.host.wait_for_end(&unmounted) {
            Ok(still) => {
                let lives = |target: &Target| {
                    !unmounted.contains(&target.generation) || still.contains(&target.generation)
                };
                live.into_iter().filter(lives).collect()
            }
            Err(problem) => {
                self.outcome.problems.push(problem);
                live
            }
        }
    }

    fn find_holders(&mut self) -> Vec<Holder> {
        let wanted: Vec<Wanted> = self
            .targets
            .iter()
            .map(|target| Wanted {
                generation: target.generation,
                dev: target.dev,
                mount_ids: self.mount_ids.get(&target.generation).cloned().unwrap_or_default(),
            })
            .collect();
        self.host.holders(&wanted).unwrap_or_else(|problem| {
            self.outcome
                .problems
                .push(format!("cannot list the processes that use the pools: {problem}"));
            Vec::new()
        })
    }
}

fn remaining(
    target: &Target,
    tables: &[NamespaceTable],
    obstacles: &[Obstacle],
    holders: Vec<Holder>,
    timed_out: bool,
) -> Remaining {
    let mounts = places(tables, target.dev);
    let concerns = |obstacle: &&Obstacle| {
        let (Obstacle::Foreign { namespace, on: at, .. }
        | Obstacle::Hidden { namespace, mountpoint: at, .. }) = obstacle;
        mounts
            .iter()
            .any(|place| place.namespace == *namespace && Path::new(&place.mountpoint) == at)
    };
    let obstacles: Vec<Obstacle> = obstacles.iter().filter(concerns).cloned().collect();
    Remaining {
        pool: target.name.clone(),
        generation: target.generation,
        device: device_text(target.dev),
        fix: fix(&obstacles, &holders, &mounts, timed_out),
        obstacles: obstacles.iter().map(describe).collect(),
        mounts,
        holders,
    }
}

fn places(tables: &[NamespaceTable], dev: u32) -> Vec<MountPlace> {
    let mut places: Vec<MountPlace> = tables
        .iter()
        .flat_map(|table| table.mounts.entries().iter().map(move |entry| (table, entry)))
        .filter(|(_, entry)| entry.dev() == dev)
        .map(|(table, entry)| place_in(table, &entry.mountpoint))
        .collect();
    places.sort();
    places
}

fn place(tables: &[NamespaceTable], namespace: u64, mountpoint: &Path) -> MountPlace {
    let table = tables.iter().find(|table| table.namespace == namespace);
    let unknown = || MountPlace {
        namespace,
        in_host: false,
        pid: 0,
        mountpoint: mountpoint.to_string_lossy().into_owned(),
    };
    table.map_or_else(unknown, |table| place_in(table, mountpoint))
}

fn place_in(table: &NamespaceTable, mountpoint: &Path) -> MountPlace {
    MountPlace {
        namespace: table.namespace,
        in_host: table.is_host,
        pid: table.pid,
        mountpoint: mountpoint.to_string_lossy().into_owned(),
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
