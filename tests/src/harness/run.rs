//! Runs tests in sequence. What is printed here is read by `cargo xtask test`: one result line for
//! each test, the explanation of a failure behind `  | `, and a closing line.

use std::any::Any;
use std::fs;
use std::io::{self, Write as _};
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow};

use super::registry::{Selection, Test};

/// Prints name and profile of the selected tests.
pub fn list(selection: &Selection) -> ExitCode {
    for test in selection.tests() {
        println!("{}\t{}\t{}", test.name, test.profile.name(), test.incus.unwrap_or("any"));
    }
    ExitCode::SUCCESS
}

/// Runs the selected tests. After a test that hangs the machine's state is unknown, so the others
/// are reported as not run.
pub fn all(selection: &Selection) -> ExitCode {
    let (mut passed, mut failed) = (0, 0);
    let mut hung = None;
    for test in selection.tests() {
        let name = format!("{}::{}", selection.suite.name(), test.name);
        let start = Instant::now();
        let outcome = match hung {
            Some(earlier) => Ended::Failed(anyhow!("did not run: {earlier} hung before it")),
            None => in_time(test),
        };
        let seconds = start.elapsed().as_secs_f64();
        let (word, explanation) = match outcome {
            Ended::Passed => ("ok", None),
            Ended::Failed(error) => ("FAILED", Some(format!("{error:#}"))),
            Ended::Hung(explanation) => {
                hung = Some(test.name);
                ("FAILED", Some(explanation))
            }
        };
        say(&result(&name, word, seconds, explanation.as_deref()));
        if word == "ok" { passed += 1 } else { failed += 1 }
    }
    say(&format!("\nguard-tests: {passed} passed, {failed} failed\n"));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The line of a result and its explanation. It starts a line of its own: a test's child shares
/// this output, and one that is killed while it writes (`rm` writes an error in four pieces) leaves
/// half a line.
fn result(name: &str, word: &str, seconds: f64, explanation: Option<&str>) -> String {
    let mut text = format!("\ntest {name} ... {word} ({seconds:.1} s)\n");
    for line in explanation.into_iter().flat_map(str::lines) {
        text.push_str(&format!("  | {line}\n"));
    }
    text
}

/// One write, so that nobody else's output comes between the lines.
fn say(text: &str) {
    // Nobody reads any more: then there is nobody to tell it either.
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

/// For commands that are not a test: the error goes to stderr.
pub fn report(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guard-tests: {error:?}");
            ExitCode::FAILURE
        }
    }
}

enum Ended {
    Passed,
    Failed(anyhow::Error),
    Hung(String),
}

/// Each test has a thread of its own: namespaces it enters end with it, and it can be waited for.
fn in_time(test: Test) -> Ended {
    let (sender, receiver) = mpsc::channel();
    let spawned = thread::Builder::new().name(test.name.to_owned()).spawn(move || {
        let outcome = panic::catch_unwind(AssertUnwindSafe(test.body));
        // The receiver is gone only after this test was reported as hanging.
        let _ = sender.send(
            outcome.unwrap_or_else(|payload| Err(anyhow!("panicked: {}", message(&*payload)))),
        );
    });
    if let Err(error) = spawned {
        return Ended::Failed(anyhow!(error).context("start the test's thread"));
    }
    match receiver.recv_timeout(test.limit) {
        Ok(Ok(())) => Ended::Passed,
        Ok(Err(error)) => Ended::Failed(error),
        Err(RecvTimeoutError::Disconnected) => {
            Ended::Failed(anyhow!("the test's thread ended without a result"))
        }
        Err(RecvTimeoutError::Timeout) => Ended::Hung(format!(
            "still running after {} s; every process that is stuck in the kernel:\n{}",
            test.limit.as_secs(),
            kernel_stacks()
        )),
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "(no message)".to_owned())
}

/// Kernel stacks of the threads of this process and all other processes with a user's memory.
pub fn kernel_stacks() -> String {
    let mut text = String::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path()) {
        // Kernel threads have no command line.
        let Ok(command) = fs::read_to_string(process.join("cmdline")) else { continue };
        if command.is_empty() {
            continue;
        }
        for task in fs::read_dir(process.join("task"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
        {
            let stack = fs::read_to_string(task.join("stack")).unwrap_or_default();
            let top: Vec<&str> =
                stack.lines().take(6).map(|line| line.split(' ').nth(1).unwrap_or(line)).collect();
            let id = task.file_name().unwrap_or_default().display().to_string();
            text.push_str(&format!("{id} {}: {}\n", command.replace('\0', " "), top.join(" < ")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_starts_its_own_line_whatever_a_killed_child_has_left() {
        let output =
            format!("rm: cannot remove{}", result("s::t", "FAILED", 1.25, Some("why\nand how")));
        assert_eq!(
            output,
            "rm: cannot remove\ntest s::t ... FAILED (1.2 s)\n  | why\n  | and \
             how\n"
        );
    }
}
