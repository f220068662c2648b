//! Runs the tests and makes one report of them: the unprivileged ones here, the suites of
//! `guard-tests` in VMs. A part that did not run counts as a failure.

pub(crate) mod guest;
mod report;
mod unit;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::kernel::Selection;
use crate::setup::{self, Use, Wanted};
use crate::{build, host};
use report::{Report, lock};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Only this suite
    #[arg(long, value_enum)]
    suite: Option<Suite>,
    /// The kernels on which to run the suites in VMs
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Selection,
    /// The tier that enforces in the suites: with fmod-ret the machines are booted without bpf in
    /// lsm=
    #[arg(long, value_enum, default_value = "bpf-lsm")]
    tier: Tier,
    /// The versions of Incus on the real hosts of the suite host
    #[arg(long, value_enum, default_value = "7.0")]
    incus: host::Selection,
    /// Also the tests that take long: all of the table of failed joins, the faults of the lab,
    /// workloads in a guest
    #[arg(long)]
    full: bool,
    /// How many VMs run at a time; without it, one for each processor, but at most three
    #[arg(long, value_name = "COUNT")]
    jobs: Option<NonZeroUsize>,
    /// Only the tests whose name contains one of these
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// Unprivileged, on this machine
    Unit,
    /// In a VM, on guarded tmpfs
    Standin,
    /// In a VM, on real CephFS through the kernel client
    Cephfs,
    /// In a VM, a real Incus cluster of two nodes on real CephFS
    Incus,
    /// Real hosts: Debian 13 with systemd, Incus and our package, each in a VM of its own
    Host,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    BpfLsm,
    FmodRet,
}

impl Suite {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Standin => "standin",
            Self::Cephfs => "cephfs",
            Self::Incus => "incus",
            Self::Host => "host",
        }
    }
}

/// The command `cargo xtask test`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut report = Report::default();
    let selected = |suite: Suite| arguments.suite.is_none_or(|only| only == suite);
    if selected(Suite::Unit) {
        timed("unit", || unit::run(&arguments.filters, &mut report));
    }
    // The longest suites come first, so that at the end no processor waits for them.
    let in_guests: Vec<Suite> = [Suite::Host, Suite::Incus, Suite::Standin, Suite::Cephfs]
        .into_iter()
        .filter(|suite| selected(*suite))
        .collect();
    let report = Mutex::new(report);
    if !in_guests.is_empty()
        && let Err(error) = run_in_guests(&in_guests, arguments, &report)
    {
        lock(&report).part_did_not_run("guests", &format!("{error:?}"));
    }
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    if report.is_empty() {
        report.part_did_not_run(
            "selection",
            &format!("no test's name contains any of {:?}", arguments.filters),
        );
    }
    let path = report.write()?;
    eprintln!("xtask: report in {}", path.display());
    // The closing line is the last one, for every reader of both streams together.
    println!("{} passed, {} failed", report.passed(), report.failed());
    Ok(if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_in_guests(suites: &[Suite], arguments: &Arguments, report: &Mutex<Report>) -> Result<()> {
    let kernels = arguments.kernel.kernels();
    let uses: &[Use] =
        if suites.contains(&Suite::Incus) { &Use::WITH_INCUS } else { &Use::WITHOUT_INCUS };
    let workloads: &[Use] = if arguments.full { &[Use::Workloads] } else { &[] };
    let (hosts, of_hosts): (&[host::Incus], &[Use]) = match suites.contains(&Suite::Host) {
        true => (arguments.incus.versions(), &[Use::Host]),
        false => (&[], &[]),
    };
    setup::ensure_all(Wanted { uses: &[uses, workloads, of_hosts].concat(), kernels, hosts })?;
    let binaries = timed("building", build::for_tests)?;
    if suites.contains(&Suite::Host) {
        timed("packaging", || host::run::make_payload(&binaries))?;
    }
    let wanted = guest::Wanted { full: arguments.full, filters: &arguments.filters, incus: hosts };
    let parts = Mutex::new(VecDeque::from(guest::parts(suites, kernels, &binaries, &wanted)?));
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || {
        while let Some(part) = next() {
            let name = format!("{}, {} tests", part.name(), part.size());
            let ran = timed(&name, || guest::run(&part, arguments.tier, &binaries, report));
            if let Err(error) = ran {
                lock(report).part_did_not_run(&part.name(), &format!("{error:?}"));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..jobs(arguments) {
            scope.spawn(work);
        }
    });
    Ok(())
}

/// Does one part of a run, and says how long it took.
fn timed<T>(part: &str, act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = act();
    eprintln!("xtask: part {part}: {:.0} s", start.elapsed().as_secs_f64());
    done
}

/// Number of VMs that run at a time. An emulated processor keeps one of this machine's busy; each
/// VM has 4 GiB.
fn jobs(arguments: &Arguments) -> usize {
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    arguments.jobs.map_or(processors.min(3), NonZeroUsize::get)
}
