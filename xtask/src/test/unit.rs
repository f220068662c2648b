//! The unprivileged tests: `cargo test` of the default members, its output read into the report.

use std::io::{self, BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Context as _, Result};

use super::report::{Entry, Report};
use crate::workspace;

/// Runs them; errors around them are in the report too.
pub(super) fn run(filters: &[String], report: &mut Report) {
    eprintln!("xtask: unprivileged tests (cargo test) …");
    if let Err(error) = run_cargo(filters, report) {
        report.part_did_not_run("unit", &format!("{error:?}"));
    }
}

fn run_cargo(filters: &[String], report: &mut Report) -> Result<()> {
    let (reader, writer) = io::pipe().context("make a pipe")?;
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--no-fail-fast", "--color", "never"]);
    // For the figures that tests measure.
    cargo.args(["--", "--show-output"]).args(filters);
    // Both streams in one: cargo says on one of them whose results come next on the other.
    cargo.env("CARGO_TERM_PROGRESS_WHEN", "never").stdin(Stdio::null());
    cargo.stdout(writer.try_clone()?).stderr(writer);
    let mut child = cargo.spawn().context("start cargo test")?;
    // The command keeps its ends of the pipe open: reading would never end.
    drop(cargo);
    let mut parser = Parser::default();
    for line in BufReader::new(reader).lines() {
        parser.line(&line.context("read the output of cargo test")?, report);
    }
    let status = child.wait().context("wait for cargo test")?;
    parser.end(status.success(), report);
    Ok(())
}

/// Reads libtest's output, as cargo prints it.
#[derive(Default)]
struct Parser {
    /// The crate or target whose tests are running.
    target: String,
    /// Announced by `running N tests`, not yet seen.
    expected: usize,
    seen: usize,
    failed: Vec<String>,
    failures: Vec<String>,
    /// Within the output of the tests that passed.
    in_successes: bool,
    all: Vec<String>,
    any_failed: bool,
}

impl Parser {
    fn line(&mut self, line: &str, report: &mut Report) {
        let trimmed = line.trim_start();
        self.all.push(line.to_owned());
        if let Some(target) = trimmed.strip_prefix("Running ").filter(|_| line.starts_with(' ')) {
            self.target = target_name(target);
        } else if let Some(name) = trimmed.strip_prefix("Doc-tests ") {
            self.target = format!("{name}::doc");
        } else if let Some(count) =
            line.strip_prefix("running ").and_then(|rest| rest.split(' ').next())
        {
            self.expected = count.parse().unwrap_or_default();
            self.seen = 0;
            self.failures.clear();
        } else if line.starts_with("test result: ") {
            self.close(report);
        } else if line == "successes:" || line == "failures:" {
            self.in_successes = line == "successes:";
        } else if self.in_successes {
            report.note(&format!("unit::{}", self.target), line);
        } else if let Some((name, outcome)) =
            line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "))
        {
            self.outcome(name, outcome, report);
        } else {
            self.failures.push(line.to_owned());
        }
    }

    fn outcome(&mut self, name: &str, outcome: &str, report: &mut Report) {
        let name = format!("unit::{}::{}", self.target, name.trim_end_matches(" - should panic"));
        match outcome.split(' ').next() {
            Some("ok") => {
                report.add(Entry { name, passed: true, seconds: None, detail: String::new() })
            }
            // Its output comes later, with that of the others.
            Some("FAILED") => self.failed.push(name),
            Some("ignored") => eprintln!("xtask: ignored: {name}"),
            _ => return,
        }
        self.seen += 1;
    }

    /// The end of one test binary.
    fn close(&mut self, report: &mut Report) {
        let detail = self.failures.join("\n");
        for name in self.failed.drain(..) {
            self.any_failed = true;
            report.add(Entry { name, passed: false, seconds: None, detail: detail.clone() });
        }
        self.missing(report);
        (self.expected, self.seen, self.in_successes) = (0, 0, false);
        self.failures.clear();
    }

    /// A test that printed into its own line, or took its binary down with it.
    fn missing(&mut self, report: &mut Report) {
        if self.seen < self.expected {
            self.any_failed = true;
            let why =
                format!("{} of {} tests gave no result", self.expected - self.seen, self.expected);
            report.part_did_not_run(
                &format!("unit::{}", self.target),
                &format!("{why}\n{}", self.failures.join("\n")),
            );
        }
    }

    fn end(&mut self, success: bool, report: &mut Report) {
        if self.expected > 0 {
            self.close(report);
        }
        if !success && !self.any_failed {
            let tail = &self.all[self.all.len().saturating_sub(60)..];
            report.part_did_not_run("unit", &format!("cargo test failed:\n{}", tail.join("\n")));
        }
    }
}

/// From `unittests src/lib.rs (target/debug/deps/guard_agent-0123)` to `guard_agent`.
fn target_name(running: &str) -> String {
    let file = running.rsplit('/').next().unwrap_or(running).trim_end_matches(')');
    file.rsplit_once('-').map_or(file, |(name, _)| name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, success: bool) -> Report {
        let (mut parser, mut report) = (Parser::default(), Report::default());
        text.lines().for_each(|line| parser.line(line, &mut report));
        parser.end(success, &mut report);
        report
    }

    const HEAD: &str = "     Running unittests src/lib.rs \
                        (target/debug/deps/guard_agent-0123)\n\nrunning 2 tests\n";

    #[test]
    fn counts_passed_and_failed() {
        let text = format!(
            "{HEAD}test a::b ... ok\ntest c ... FAILED\n\nfailures:\nwhy\n\ntest result: FAILED. 1 \
             passed\n"
        );
        let report = parse(&text, false);
        assert_eq!((report.passed(), report.failed()), (1, 1));
    }

    #[test]
    fn the_output_of_what_passed_is_no_result() {
        let text = format!(
            "{HEAD}test a ... ok\ntest b ... FAILED\n\nsuccesses:\n\n---- a stdout ----\nnote: \
             7\ntest c ... ok\n\nsuccesses:\n    a\n\nfailures:\n\n---- b stdout ----\nwhy\n\ntest \
             result: FAILED. 1 passed\n"
        );
        let report = parse(&text, false);
        assert_eq!((report.passed(), report.failed()), (1, 1));
    }

    #[test]
    fn a_binary_that_dies_is_a_failure() {
        let report = parse(&format!("{HEAD}test a ... ok\n"), false);
        assert_eq!((report.passed(), report.failed()), (1, 1));
    }

    #[test]
    fn a_failed_build_is_a_failure() {
        let report = parse("error: no\n", false);
        assert_eq!((report.passed(), report.failed()), (0, 1));
    }
}
