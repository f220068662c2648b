//! systemd as this program needs it: whether it manages the host, and a program in a scope of its
//! own.
//!
//! A scope is a cgroup that systemd makes for processes that it did not start. Nobody else may make
//! cgroups on such a host (one writer a hierarchy). `systemd-run --scope` puts itself into the
//! scope and becomes the program: same process, descriptors, terminal, working directory and
//! capabilities.

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

/// Exists where systemd is PID 1 (`sd_booted(3)`).
const RUNS: &str = "/run/systemd/system";
/// By absolute path: PATH is the caller's. The last one is NixOS's.
const SYSTEMD_RUN: [&str; 3] =
    ["/usr/bin/systemd-run", "/bin/systemd-run", "/run/current-system/sw/bin/systemd-run"];

/// Whether systemd manages this host.
pub fn manages_host() -> bool {
    Path::new(RUNS).is_dir()
}

/// For a unit's name: no other one has it, since of the processes with this pid only this one
/// started at this time.
pub fn unique() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_micros())
}

/// A command that becomes the program which is added to it as arguments, in the scope `unit`.
/// `None`: this host has no systemd-run. `properties` are the scope's, as in a unit file.
pub fn in_scope(unit: &str, description: &str, properties: &[&str]) -> Option<Command> {
    let program = SYSTEMD_RUN.iter().find(|program| Path::new(program).exists())?;
    let mut command = Command::new(program);
    // Collected: a scope whose program failed leaves nothing behind either.
    command.args(["--scope", "--collect", "--quiet", "--no-ask-password"]);
    command.arg(format!("--unit={unit}")).arg(format!("--description={description}"));
    command.args(properties.iter().map(|property| format!("--property={property}"))).arg("--");
    Some(command)
}
