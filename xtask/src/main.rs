//! Each step of the project that a person can run by hand: `cargo xtask help`.
//!
//! Flow: `setup` installs requirements → `build` makes the kernel program and the binaries →
//! `vm` boots them in QEMU on a stock Debian kernel → `test` and `demo` run a command in such a VM.
//! The content of tests and demo is package `guard-tests`' own.

#![forbid(unsafe_code)]

mod apt;
mod bench;
mod build;
mod checksums;
mod demo;
mod dist;
mod fuzz;
mod host;
mod incus;
mod kernel;
mod lab;
mod lint;
mod progress;
mod setup;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The steps of this project, each runnable by hand")]
struct Arguments {
    #[command(subcommand)]
    step: Step,
}

#[derive(Subcommand)]
enum Step {
    /// Install what building and testing need; says first what it will change
    Setup(setup::Arguments),
    /// Build the kernel program and the binaries around it
    Build(build::Arguments),
    /// Make the packages (.deb, .rpm), their checksums and SBOM in target/dist, and check them
    Dist(dist::Arguments),
    /// Formatting, clippy, licences, and the rules of purity
    Lint,
    /// Run tests: all of them, or one suite, or those whose name contains FILTER
    Test(test::Arguments),
    /// Fuzz everything that reads bytes from outside, or the TARGETS, each for a set time
    Fuzz(fuzz::Arguments),
    /// Boot a VM on this machine's own root (read-only) and run a command in it as root
    Vm(vm::Arguments),
    /// Count instructions per decision, in a VM where a nanosecond is an instruction
    Bench(bench::Arguments),
    /// Inject faults from a seed for a set time, in a VM
    Lab(lab::Arguments),
    /// Show the incident, and what comes after it, with a real Incus cluster on CephFS
    Demo(demo::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().step {
        Step::Setup(arguments) => setup::run(&arguments),
        Step::Build(arguments) => build::run(&arguments),
        Step::Dist(arguments) => dist::run(&arguments),
        Step::Lint => lint::run(),
        Step::Test(arguments) => test::run(&arguments),
        Step::Fuzz(arguments) => fuzz::run(&arguments),
        Step::Vm(arguments) => vm::run(arguments),
        Step::Bench(arguments) => bench::run(&arguments),
        Step::Lab(arguments) => lab::run(&arguments),
        Step::Demo(arguments) => demo::run(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("xtask: {error:?}");
        ExitCode::FAILURE
    })
}
