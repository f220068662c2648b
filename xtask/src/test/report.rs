//! The results of all tests: printed as they come, written as JSON at the end.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::workspace;

/// One test's result.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// `suite::test`; in a VM `suite[kernel]::test`.
    pub name: String,
    pub passed: bool,
    pub seconds: Option<f64>,
    /// Why it failed.
    pub detail: String,
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    entries: Vec<Entry>,
}

/// The report, for one of the threads that add to it. One that panicked has left it whole.
pub(super) fn lock(report: &Mutex<Report>) -> MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Report {
    /// Takes and prints a result: one line, and everything known if it is a failure.
    pub(crate) fn add(&mut self, entry: Entry) {
        let outcome = if entry.passed { "ok" } else { "FAILED" };
        let time = entry.seconds.map(|seconds| format!(" ({seconds:.1} s)")).unwrap_or_default();
        println!("test {} ... {outcome}{time}", entry.name);
        if !entry.passed {
            for line in entry.detail.lines() {
                println!("    | {line}");
            }
        }
        self.entries.push(entry);
    }

    /// Shows a line of a test's output if it is a figure that the test has measured.
    pub(crate) fn note(&self, part: &str, line: &str) {
        if let Some(figure) = line.strip_prefix("note: ") {
            println!("  note {part}: {figure}");
        }
    }

    /// A part that did not run, or not to its end, is a failure of its own.
    pub(crate) fn part_did_not_run(&mut self, part: &str, why: &str) {
        self.add(Entry {
            name: format!("{part}::runs_to_its_end"),
            passed: false,
            seconds: None,
            detail: why.to_owned(),
        });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn passed(&self) -> usize {
        self.entries.iter().filter(|entry| entry.passed).count()
    }

    pub(crate) fn failed(&self) -> usize {
        self.entries.len() - self.passed()
    }

    /// Writes `test-report.json` into the target directory.
    pub(crate) fn write(&self) -> Result<PathBuf> {
        let tests: Vec<_> = self
            .entries
            .iter()
            .map(|entry| {
                json!({
                    "name": entry.name,
                    "outcome": if entry.passed { "passed" } else { "failed" },
                    "seconds": entry.seconds,
                    "detail": entry.detail,
                })
            })
            .collect();
        let report = json!({ "passed": self.passed(), "failed": self.failed(), "tests": tests });
        let path = workspace::target().join("test-report.json");
        fs::write(&path, format!("{report:#}\n"))
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}
