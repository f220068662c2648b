//! Runs programs with their output captured.

use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// Runs a program that must succeed; returns its output, both streams.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = attempt(program, arguments)?;
    let text = text(&output);
    if !output.status.success() {
        bail!("{program} {}: {}: {}", arguments.join(" "), output.status, text.trim());
    }
    Ok(text)
}

/// Runs a program that must fail; returns its output, both streams.
pub fn run_failing(program: &str, arguments: &[&str]) -> Result<String> {
    let output = attempt(program, arguments)?;
    let text = text(&output);
    if output.status.success() {
        bail!("{program} {} succeeded, but had to fail: {}", arguments.join(" "), text.trim());
    }
    Ok(text)
}

/// Runs a program, with any result.
pub fn attempt(program: &str, arguments: &[&str]) -> Result<Output> {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {program} {}", arguments.join(" ")))
}

/// Both streams of a finished program.
pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
