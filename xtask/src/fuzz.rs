//! Fuzzes the readers of bytes from outside (package `guard-fuzz`): builds it with coverage
//! counters and libFuzzer, and runs each target for a set time. Inputs that reach more go to the
//! cache, from where the next run starts.
//!
//! These are the flags of `cargo fuzz` without a sanitizer, so that the stable toolchain will do:
//! the decoders are safe Rust, and a panic is the fault to find. With a nightly one, `cargo fuzz
//! run TARGET` adds the address sanitizer.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::setup::{self, Use};
use crate::{progress, workspace};

const PACKAGE: &str = "guard-fuzz";
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    // Branches that stay branches are counted one by one.
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
];
/// For one input, in seconds: a longer run counts as a fault.
const TIMEOUT: u32 = 20;

#[derive(Args)]
pub(crate) struct Arguments {
    /// How long to run each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Add to the committed corpora the inputs of at most so many bytes that reach more than they
    /// do
    #[arg(long, value_name = "BYTES")]
    keep: Option<u64>,
    /// The targets to run; without any: all of them
    targets: Vec<String>,
}

/// The command `cargo xtask fuzz`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let known = targets()?;
    for name in &arguments.targets {
        ensure!(
            known.contains(name),
            "there is no target `{name}`; there are {}",
            known.join(", ")
        );
    }
    let wanted = if arguments.targets.is_empty() { &known } else { &arguments.targets };
    setup::ensure(&[Use::Fuzz], &[])?;
    let binaries = build()?;
    let mut failed = Vec::new();
    for name in wanted {
        let target = Target::new(name, &binaries)?;
        match target.fuzz(arguments.seconds) {
            Ok(summary) => println!("{name}: {summary}"),
            Err(error) => {
                eprintln!("xtask: {error:?}");
                failed.push(name.as_str());
            }
        }
        if let Some(longest) = arguments.keep {
            target.keep(longest)?;
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("faults found in {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn home() -> PathBuf {
    workspace::root().join("fuzz")
}

fn targets() -> Result<Vec<String>> {
    let directory = home().join("fuzz_targets");
    let entries =
        fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        names.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Builds all targets; the directory of the binaries.
fn build() -> Result<PathBuf> {
    // With a target named, build scripts and macros go without the flags.
    let triple = format!("{ARCH}-unknown-linux-gnu");
    let directory = workspace::target().join("fuzz");
    let mut cargo = workspace::cargo();
    cargo
        .args([
            "build",
            "--package",
            PACKAGE,
            "--bins",
            "--release",
            "--target",
            &triple,
            "--target-dir",
        ])
        .arg(&directory)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"))
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "line-tables-only")
        .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true")
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true");
    progress::run("build the fuzz targets", &mut cargo)?;
    Ok(directory.join(triple).join("release"))
}

struct Target {
    name: String,
    binary: PathBuf,
    /// The committed corpus.
    corpus: PathBuf,
    /// Inputs of earlier runs that reach more.
    found: PathBuf,
    artifacts: PathBuf,
    log: PathBuf,
}

impl Target {
    fn new(name: &str, binaries: &Path) -> Result<Self> {
        let target = Self {
            name: name.to_owned(),
            binary: binaries.join(name),
            corpus: home().join("corpus").join(name),
            found: workspace::cache()?.join("fuzz").join(name),
            artifacts: home().join("artifacts").join(name),
            log: workspace::target().join("fuzz").join(format!("{name}.log")),
        };
        for directory in [&target.found, &target.artifacts] {
            fs::create_dir_all(directory)
                .with_context(|| format!("create {}", directory.display()))?;
        }
        Ok(target)
    }

    fn command(&self) -> Command {
        let mut command = workspace::without_package_variables(Command::new(&self.binary));
        // A slash at the end makes it a directory.
        command.arg(format!("-artifact_prefix={}/", self.artifacts.display()));
        command.arg(format!("-timeout={TIMEOUT}"));
        command
    }

    /// Runs it; how far it came.
    fn fuzz(&self, seconds: u32) -> Result<String> {
        let mut command = self.command();
        command.arg(format!("-max_total_time={seconds}")).arg("-print_final_stats=1");
        command.arg(&self.found).arg(&self.corpus);
        progress::run_logged(
            &format!("fuzz {} for {seconds} s", self.name),
            &mut command,
            &self.log,
        )
        .with_context(|| self.advice())?;
        let log = fs::read(&self.log).with_context(|| format!("read {}", self.log.display()))?;
        summary(&String::from_utf8_lossy(&log))
            .with_context(|| format!("{} does not end as libFuzzer's does", self.log.display()))
    }

    fn advice(&self) -> String {
        format!(
            "{0}: a fault. The input is in {1}: see it with `cargo run -p {PACKAGE} --bin {0} -- \
             FILE`, mend it, and put the file into {2} under a name that says what it is",
            self.name,
            self.artifacts.display(),
            self.corpus.display()
        )
    }

    fn keep(&self, longest: u64) -> Result<()> {
        let staged = workspace::fresh_directory(workspace::target().join("fuzz/keep"))?;
        let list = || format!("list {}", self.found.display());
        for entry in fs::read_dir(&self.found).with_context(list)? {
            let entry = entry.with_context(list)?;
            if entry.metadata().with_context(list)?.len() <= longest {
                fs::copy(entry.path(), staged.join(entry.file_name())).with_context(list)?;
            }
        }
        let mut command = self.command();
        // Not how often a place was reached, which would keep thousands of files.
        command.args(["-set_cover_merge=1", "-use_counters=0"]).arg(&self.corpus).arg(&staged);
        progress::run(&format!("keep what reaches more in {}", self.name), &mut command)
    }
}

/// Of libFuzzer's output: inputs, and the code that they reached.
fn summary(log: &str) -> Option<String> {
    let done = log.lines().rfind(|line| line.contains("DONE"))?;
    let reached = done.split_once("DONE")?.1.split(" lim:").next()?.trim();
    let stat =
        |name: &str| log.lines().rev().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let inputs = stat("stat::number_of_executed_units:")?;
    let speed = stat("stat::average_exec_per_sec:")?;
    let slowest = stat("stat::slowest_unit_time_sec:")?;
    Some(format!("{inputs} inputs ({speed} a second, the slowest {slowest} s), {reached}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_run_is_summed_up() {
        let log = "#64\tpulse  cov: 3 ft: 4 corp: 1/5b lim: 4 exec/s: 32 rss: 30Mb\n\
                   #128\tDONE   cov: 10 ft: 20 corp: 3/40b lim: 4096 exec/s: 64 rss: 31Mb\nDone \
                   128 runs in 2 second(s)\nstat::number_of_executed_units: \
                   128\nstat::average_exec_per_sec:     64\nstat::new_units_added:          \
                   2\nstat::slowest_unit_time_sec:    0\n";
        let expected = "128 inputs (64 a second, the slowest 0 s), cov: 10 ft: 20 corp: 3/40b";
        assert_eq!(summary(log).as_deref(), Some(expected));
        assert_eq!(summary("#64 pulse"), None);
    }
}
