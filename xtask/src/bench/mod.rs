//! Runs the benchmarks in a VM that counts instructions, with a Ceph cluster beside it. The
//! measurements are package `guard-tests`' business (`guard-tests bench`); this boots, streams,
//! keeps the results, draws them, and compares them with those that are committed.

mod plot;
mod results;

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::kernel::Kernel;
use crate::test::guest;
use crate::vm::{self, Outcome};
use crate::{build, setup, workspace};
use results::Results;

/// Longest time for all of it.
const LIMIT: Duration = Duration::from_secs(3600);
/// Starts the line that ends the run.
const CLOSING: &str = "results: ";

#[derive(Args)]
pub(crate) struct Arguments {
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Kernel,
    /// Only this part, which may be named more than once: its figures are shown and compared, and
    /// kept nowhere
    #[arg(long, value_enum, value_name = "PART", conflicts_with = "bless")]
    only: Vec<Part>,
    /// Make this run the committed one: results, plots and table in docs/benchmarks
    #[arg(long)]
    bless: bool,
}

/// A part of the benchmarks. `guard-tests bench` knows the same names.
#[derive(Clone, Copy, ValueEnum)]
enum Part {
    /// Nothing, other watchers, and the tier bpf-lsm
    Unlink,
    /// Growth with pools, actors, depth and threads
    Growth,
    /// The agent's own figures
    Agent,
    /// The tier fmod-ret
    FmodRet,
    /// The tier fanotify
    Fanotify,
    /// The kernel's audit
    Audit,
}

impl Arguments {
    /// Command that runs in the machine.
    fn command(&self) -> String {
        let names = self.only.iter().filter_map(Part::to_possible_value);
        names.fold("bench".to_owned(), |line, part| format!("{line} --only {}", part.get_name()))
    }
}

/// The command `cargo xtask bench`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&setup::Use::BENCH, &[arguments.kernel])?;
    let binaries = build::for_benchmarks()?;
    let mut boot = guest::machine(arguments.kernel, &binaries, &arguments.command());
    boot.icount = true;
    boot.ceph = true;
    boot.limit = Some(LIMIT);
    eprintln!("xtask: booting a VM with one CPU that counts instructions, and a Ceph cluster …");
    let mut lines = Lines::default();
    let outcome = vm::boot(&boot, &mut |output| lines.take(output))?;
    let Some(text) = lines.results.filter(|_| matches!(outcome, Outcome::Ended { status: 0, .. }))
    else {
        eprintln!("xtask: the benchmarks did not run to their end: {outcome:?}");
        return Ok(ExitCode::FAILURE);
    };
    let results = Results::parse(&text)?;
    let is_whole = arguments.only.is_empty();
    if is_whole {
        keep(&results, &text, &workspace::target().join("benchmarks"))?;
    }
    let committed = workspace::root().join("docs/benchmarks");
    if arguments.bless {
        keep(&results, &text, &committed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let path = committed.join(RESULTS);
    if !path.exists() {
        eprintln!(
            "xtask: {} is not there: nothing to compare with. `cargo xtask bench --bless` makes it",
            path.display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    let baseline = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let slower = results.slower_than(&Results::parse(&baseline)?, is_whole);
    for line in &slower {
        println!("SLOWER: {line}");
    }
    Ok(if slower.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const RESULTS: &str = "results.json";

/// Writes results, table and plots into a directory.
fn keep(results: &Results, text: &str, directory: &std::path::Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let write = |name: &str, content: String| -> Result<PathBuf> {
        let path = directory.join(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    };
    let json: serde_json::Value = serde_json::from_str(text).context("parse the results")?;
    write(RESULTS, format!("{json:#}\n"))?;
    write("unlink.svg", plot::unlink(results)?)?;
    write("growth.svg", plot::growth(results)?)?;
    let table = write("README.md", results.table())?;
    eprintln!("xtask: results, plots and table: {}", table.display());
    Ok(())
}

/// Shows the guest's output, and keeps the line with the results to itself.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    results: Option<String>,
}

impl Lines {
    fn take(&mut self, output: &[u8]) -> io::Result<()> {
        for &byte in output {
            self.line.push(byte);
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
                match line.strip_prefix(CLOSING) {
                    Some(results) => self.results = Some(results.trim_end().to_owned()),
                    None => io::stdout().lock().write_all(line.as_bytes())?,
                }
            }
        }
        Ok(())
    }
}
