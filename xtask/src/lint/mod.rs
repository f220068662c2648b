//! Everything that is checked without running the product: formatting, clippy, licences and
//! advisories, and the project's own rules about its sources.

mod imports;
mod source_rules;

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::setup::find_command;
use crate::{progress, workspace};

/// Runs every check, also after one has failed.
pub(crate) fn run() -> Result<ExitCode> {
    ensure_components()?;
    let mut failures = Vec::new();
    let mut check = |name: &str, outcome: Result<()>| match outcome {
        Ok(()) => eprintln!("xtask: lint {name}: ok"),
        Err(error) => {
            eprintln!("xtask: lint {name}: FAILED: {error:#}");
            failures.push(name.to_owned());
        }
    };
    check("formatting", cargo(&["fmt", "--all", "--", "--check"]));
    check(
        "clippy of the host crates",
        cargo(&[
            "clippy",
            "--workspace",
            "--exclude",
            "guard-ebpf",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]),
    );
    // For the host: clippy needs no BPF core. Without panic=abort a no_std binary does not check
    // there.
    check(
        "clippy of the kernel program",
        cargo(&[
            "clippy",
            "--package",
            "guard-ebpf",
            "--config",
            "profile.dev.panic='abort'",
            "--",
            "-D",
            "warnings",
        ]),
    );
    if find_command("cargo-deny").is_some() {
        check("licences, bans and sources of dependencies", dependencies());
        match advisories() {
            Ok(Some(outcome)) => check("advisories", outcome),
            Ok(None) => {
                eprintln!(
                    "xtask: lint advisories: NOT RUN, their database cannot be reached from here"
                )
            }
            Err(error) => check("advisories", Err(error)),
        }
    } else {
        eprintln!(
            "xtask: lint dependencies: NOT RUN, cargo-deny is not installed (`cargo install \
             cargo-deny`)"
        );
    }
    check("rules about the sources", source_rules::check(workspace::root()));
    let imports = imports::check(workspace::root());
    let name = match &imports {
        Ok(counts) => format!("imports of the agent's files ({counts})"),
        Err(_) => "imports of the agent's files".to_owned(),
    };
    check(&name, imports.map(drop));
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("xtask: lint failed: {}", failures.join(", "));
    Ok(ExitCode::FAILURE)
}

fn cargo(arguments: &[&str]) -> Result<()> {
    // Arguments after `--` are not cargo's own.
    let own = arguments.iter().position(|argument| *argument == "--").unwrap_or(arguments.len());
    let (own, passed_on) = arguments.split_at(own);
    let status = workspace::cargo()
        .args(own)
        .arg("--quiet")
        .args(passed_on)
        .status()
        .with_context(|| format!("start cargo {}", arguments.join(" ")))?;
    anyhow::ensure!(status.success(), "cargo {} ({status})", arguments.join(" "));
    Ok(())
}

fn dependencies() -> Result<()> {
    let mut command = workspace::cargo();
    let output = command.args(["deny", "check", "licenses", "bans", "sources"]).output();
    let output = output.context("start cargo deny check")?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Whether a dependency has a known hole; `None` if the database of advisories cannot be fetched.
fn advisories() -> Result<Option<Result<()>>> {
    let mut command = workspace::cargo();
    command.args(["deny", "check", "advisories"]).env("GIT_TERMINAL_PROMPT", "0");
    let output = command.output().context("start cargo deny check advisories")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Ok(Some(Ok(())));
    }
    if said.contains("failed to fetch advisory database") {
        return Ok(None);
    }
    Ok(Some(Err(anyhow::anyhow!("{said}"))))
}

/// A minimal rustup toolchain has neither.
fn ensure_components() -> Result<()> {
    let missing: Vec<&str> = [("rustfmt", "cargo-fmt"), ("clippy", "cargo-clippy")]
        .into_iter()
        .filter(|(_, command)| progress::capture(Command::new(command).arg("--version")).is_err())
        .map(|(component, _)| component)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("xtask: setup: adding {} to the Rust toolchain with rustup", missing.join(" and "));
    progress::run(
        "add the toolchain's components",
        Command::new("rustup").args(["component", "add"]).args(&missing),
    )
    .with_context(|| {
        format!("{} not installed: install it for your Rust toolchain", missing.join(", "))
    })
}
