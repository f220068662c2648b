//! Runs the tests and makes one report of them: the unprivileged ones here, the suites of
//! `guard-tests` in VMs. A part that did not run counts as a failure.

pub mod guest;
mod report;
mod unit;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::build;
use crate::kernel::Selection;
use crate::setup::{self, Use};
use report::Report;

#[derive(Args)]
pub struct Arguments {
    /// Only this suite
    #[arg(long, value_enum)]
    suite: Option<Suite>,
    /// The kernels on which to run the suites in VMs
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Selection,
    /// Also the tests that take long: all of the table of failed joins
    #[arg(long)]
    full: bool,
    /// Only the tests whose name contains this
    filter: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Unprivileged, on this machine
    Unit,
    /// In a VM, on guarded tmpfs
    Standin,
    /// In a VM, on real CephFS through the kernel client
    Cephfs,
    /// In a VM, a real Incus cluster of two nodes on real CephFS
    Incus,
}

impl Suite {
    pub fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Standin => "standin",
            Self::Cephfs => "cephfs",
            Self::Incus => "incus",
        }
    }
}

/// The command `cargo xtask test`.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut report = Report::default();
    let filter = arguments.filter.as_deref();
    let selected = |suite: Suite| arguments.suite.is_none_or(|only| only == suite);
    if selected(Suite::Unit) {
        unit::run(filter, &mut report);
    }
    // The suite of real Incus runs only when it is asked for: it takes an emulated machine long.
    let is_wanted = |suite: &Suite| selected(*suite) && (*suite != Suite::Incus || arguments.suite.is_some());
    let in_guests: Vec<Suite> =
        [Suite::Standin, Suite::Cephfs, Suite::Incus].into_iter().filter(is_wanted).collect();
    if !in_guests.is_empty()
        && let Err(error) = run_in_guests(&in_guests, arguments, &mut report)
    {
        report.part_did_not_run("guests", &format!("{error:?}"));
    }
    if report.is_empty() {
        report.part_did_not_run(
            "selection",
            &format!("no test's name contains {:?}", filter.unwrap_or_default()),
        );
    }
    let path = report.write()?;
    eprintln!("xtask: report in {}", path.display());
    // The closing line is the last one, whatever reads both streams together.
    println!("{} passed, {} failed", report.passed(), report.failed());
    Ok(if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_in_guests(suites: &[Suite], arguments: &Arguments, report: &mut Report) -> Result<()> {
    let kernels = arguments.kernel.kernels();
    setup::ensure(&Use::WITHOUT_INCUS, kernels)?;
    if suites.contains(&Suite::Incus) {
        setup::ensure(&[Use::Incus], &[])?;
    }
    let binaries = build::for_tests()?;
    let wanted = guest::Wanted { full: arguments.full, filter: arguments.filter.as_deref() };
    for &kernel in kernels {
        for &suite in suites {
            if let Err(error) = guest::run(suite, kernel, &binaries, &wanted, report) {
                let part = format!("{}[{}]", suite.name(), kernel.name());
                report.part_did_not_run(&part, &format!("{error:?}"));
            }
        }
    }
    Ok(())
}
