//! `guardctl doctor`: every precondition, its state, and the fix of what fails.

use std::fmt::Write as _;
use std::io::Write;

use super::host::{Check, CheckState, checks};
use super::text::safe;
use super::{CliError, Global, write_json};
use crate::exit::Exit;

/// Checks this host. A warning is no failure.
pub fn run(global: &Global, out: &mut impl Write) -> Result<Exit, CliError> {
    let checks = checks()?;
    if global.json {
        write_json(out, &checks)?;
    } else {
        out.write_all(render(&checks).as_bytes())?;
    }
    Ok(if checks.iter().any(|check| check.state == CheckState::Fail) { Exit::Degraded } else { Exit::Ok })
}

fn render(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let state = match check.state {
            CheckState::Ok => "ok",
            CheckState::Warn => "warn",
            CheckState::Fail => "FAIL",
        };
        let _ = writeln!(text, "{state:<4}  {:<width$}  {}", safe(&check.name), safe(&check.found));
        if let Some(fix) = check.fix.as_ref().filter(|_| check.state != CheckState::Ok) {
            let _ = writeln!(text, "      fix: {}", safe(fix));
        }
    }
    let failed = checks.iter().filter(|check| check.state == CheckState::Fail).count();
    let _ = writeln!(text, "\n{} checks, {failed} failed", checks.len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixes_are_shown_for_what_is_not_in_order() {
        let check = |name: &str, state, fix: Option<&str>| Check {
            name: name.to_owned(),
            code: "c".to_owned(),
            state,
            found: "found".to_owned(),
            fix: fix.map(str::to_owned),
        };
        let text = render(&[
            check("kernel", CheckState::Ok, Some("not shown")),
            check("bpf in lsm=", CheckState::Fail, Some("add it")),
        ]);
        let expected =
            "ok    kernel       found\nFAIL  bpf in lsm=  found\n      fix: add it\n\n2 checks, 1 failed\n";
        assert_eq!(text, expected);
    }
}
