//! Cost of programs and threads.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::programs::{ProgramInfo, loaded_programs};
use guard_agent::host::fanotify::responder::COMM;
use nix::time::{ClockId, clock_gettime};

/// Instructions for one unlink, or for one listing of a directory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// Of all programs on this hook together, with the cost of measuring.
    pub path_unlink: Option<f64>,
    pub inode_unlink: Option<f64>,
    /// Of the thread that deletes or lists, from system call to return.
    pub whole: f64,
    /// The same and the work of the kernel's own threads meanwhile, such as those that speak with
    /// CephFS's servers.
    pub with_kernel: f64,
    /// Of the process that answers in the tier fanotify, all of it. The thread that asks only waits
    /// for it.
    pub responder: Option<f64>,
}

/// Makes the files, then lets `delete` try each; `may` says whether it has to succeed.
pub(super) fn unlinks(directory: &Path, files: usize, may: May) -> Result<Cost> {
    unlinks_of(&make_files(directory, files)?, may)
}

/// The same with files that are there.
pub(super) fn unlinks_of(files: &[PathBuf], may: May) -> Result<Cost> {
    // In a thread of its own: the kernel's audit looks only at tasks that are younger than its
    // first rule.
    measured(files.len(), may, || in_a_thread(|| delete(files)))
}

/// Lists a directory so often, each time from opening to the last name. A process that may not
/// delete may not list either.
pub(super) fn listings(directory: &Path, times: usize, may: May) -> Result<Cost> {
    measured(times, may, || in_a_thread(|| list(directory, times)))
}

fn in_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    let done = thread::scope(|scope| scope.spawn(work).join());
    done.map_err(|_| anyhow!("the measured thread panicked"))
}

/// Deletions that have to succeed, in the lowest of some runs.
pub(super) fn lowest_unlinks(directory: &Path, files: usize) -> Result<Cost> {
    lowest(|| unlinks(directory, files, May::Delete))
}

/// Runs of a case that can be repeated.
pub(super) const RUNS: usize = 3;

/// The lowest of some runs: the machine's other work only adds.
pub(super) fn lowest(run: impl Fn() -> Result<Cost>) -> Result<Cost> {
    let mut runs = (0..RUNS).map(|_| run());
    let first = runs.next().context("there is no run")??;
    runs.try_fold(first, |lowest, run| Ok(lowest.lower_of(run?)))
}

impl Cost {
    fn lower_of(self, other: Self) -> Self {
        let lower = |one: Option<f64>, two: Option<f64>| Some(one?.min(two?));
        Self {
            path_unlink: lower(self.path_unlink, other.path_unlink),
            inode_unlink: lower(self.inode_unlink, other.inode_unlink),
            whole: self.whole.min(other.whole),
            with_kernel: self.with_kernel.min(other.with_kernel),
            responder: lower(self.responder, other.responder),
        }
    }
}

/// Whether an attempt has to succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum May {
    Delete,
    NotDelete,
}

/// Empty files in a directory.
pub(super) fn make_files(directory: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let files: Vec<_> = (0..count).map(|number| directory.join(format!("f{number}"))).collect();
    for file in &files {
        fs::write(file, "").with_context(|| format!("write {}", file.display()))?;
    }
    Ok(files)
}

/// Unlinks each; returns the number that are gone, and this thread's CPU time.
pub(super) fn delete(files: &[PathBuf]) -> (usize, Duration) {
    let began = cpu_time();
    let removed = files.iter().filter(|file| fs::remove_file(file).is_ok()).count();
    (removed, cpu_time() - began)
}

/// Lists a directory each time; returns the number of successes, and this thread's CPU time.
fn list(directory: &Path, times: usize) -> (usize, Duration) {
    let began = cpu_time();
    let could = || fs::read_dir(directory).is_ok_and(|mut names| names.all(|name| name.is_ok()));
    let listed = (0..times).filter(|_| could()).count();
    (listed, cpu_time() - began)
}

/// Runs `work`, which deletes or lists `count` times, and takes the programs' statistics around it.
/// It returns the number of successes and the CPU time of its thread.
pub(super) fn measured(
    count: usize,
    may: May,
    work: impl FnOnce() -> Result<(usize, Duration)>,
) -> Result<Cost> {
    let (before, others_before) = (statistics(), Others::now()?);
    let (succeeded, took) = work()?;
    let (after, others) = (statistics(), Others::now()?);
    let wanted = if may == May::Delete { count } else { 0 };
    ensure!(succeeded == wanted, "{succeeded} of {count} attempts succeeded, wanted {wanted}");
    let kernel = others.kernel.saturating_sub(others_before.kernel);
    let each = |spent: Duration| spent.as_nanos() as f64 / count as f64;
    let on = |hook: &str| {
        let spent =
            after.iter().filter(|(name, _)| is_on(name, hook)).map(|(name, (time, runs))| {
                let (time_before, runs_before) = before.get(name).copied().unwrap_or_default();
                (time - time_before, runs - runs_before)
            });
        let (time, runs) = spent.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        (runs > 0).then(|| time as f64 / count as f64)
    };
    Ok(Cost {
        path_unlink: on("path_unlink"),
        inode_unlink: on("inode_unlink"),
        whole: each(took),
        with_kernel: each(took + kernel),
        responder: others
            .responder
            .zip(others_before.responder)
            .map(|(now, before)| each(now.saturating_sub(before))),
    })
}

/// The kernel cuts names after fifteen characters: `guard_path_unli`, `empty_inode_unl`.
fn is_on(name: &str, hook: &str) -> bool {
    let prefixes = ["guard", "empty", "monitor"];
    prefixes.iter().any(|prefix| format!("{prefix}_{hook}").chars().take(15).eq(name.chars()))
}

/// Run time and run count by program's name: the tier `fmod-ret` has two loads of each.
fn statistics() -> BTreeMap<String, (u64, u64)> {
    let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for program in loaded_programs().flatten() {
        let sum = sums.entry(name(&program)).or_default();
        sum.0 += program.run_time().as_nanos() as u64;
        sum.1 += program.run_count();
    }
    sums
}

/// Whether the kernel still holds a program whose name begins so.
pub(super) fn is_loaded(prefix: &str) -> bool {
    loaded_programs().flatten().any(|program| name(&program).starts_with(prefix))
}

fn name(program: &ProgramInfo) -> String {
    program.name_as_str().unwrap_or_default().to_owned()
}

/// CPU time of the calling thread, in the kernel and outside.
pub(super) fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// CPU time so far of the work beside the measured thread.
#[derive(Default)]
struct Others {
    /// All kernel threads.
    kernel: Duration,
    /// The process that answers in the tier fanotify, if there is one.
    responder: Option<Duration>,
}

impl Others {
    fn now() -> Result<Self> {
        let mut others = Self::default();
        for entry in fs::read_dir("/proc").context("list the processes")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // Only kernel threads have no command line. One may end while it is looked at.
            if fs::read(entry.path().join("cmdline")).is_ok_and(|line| line.is_empty()) {
                others.kernel += cpu_time_of(pid).unwrap_or_default();
            } else if fs::read_to_string(entry.path().join("comm"))
                .is_ok_and(|name| name.trim_end() == COMM)
            {
                others.responder = Some(cpu_time_of(pid)?);
            }
        }
        Ok(others)
    }
}

/// CPU time of another process's threads together.
pub(super) fn cpu_time_of(pid: u32) -> Result<Duration> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("list the process's threads")?;
    let mut sum = 0;
    for task in tasks {
        let path = task?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let spent = text.split(' ').next().and_then(|number| number.parse::<u64>().ok());
        sum += spent.with_context(|| format!("{} says {text:?}", path.display()))?;
    }
    Ok(Duration::from_nanos(sum))
}
