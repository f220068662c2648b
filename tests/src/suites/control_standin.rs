//! Who may ask the agent for what.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};

use crate::harness::agent::binary;
use crate::harness::attempt::rm_is_denied;
use crate::harness::command;
use crate::harness::guarded::{Guarded, exit_code};
use crate::harness::registry::Test;

pub const TESTS: &[Test] = &[Test::new("control_changes_need_root_and_reading_root_or_the_group", control)];

const NOBODY: &str = "65534";
const GROUP: &str = "4242";
const GROUPS: &str = "/etc/group";

/// The group `guard`, for as long as this lives. (The machine is the test's own.)
struct GuardGroup(String);

impl GuardGroup {
    fn new() -> Result<Self> {
        let before = fs::read_to_string(GROUPS).context("read the groups")?;
        ensure!(!before.contains("\nguard:"), "there is a group `guard` already");
        fs::write(GROUPS, format!("{}\nguard:x:{GROUP}:\n", before.trim_end()))?;
        Ok(Self(before))
    }
}

impl Drop for GuardGroup {
    fn drop(&mut self) {
        let _ = fs::write(GROUPS, &self.0);
    }
}

/// Runs guardctl as nobody, in this group.
fn as_nobody(ground: &Guarded, group: &str, arguments: &[&str]) -> Result<Output> {
    Command::new("setpriv")
        .args(["--reuid", NOBODY, "--regid", group, "--clear-groups", "--"])
        .arg(binary("GUARDCTL")?)
        .args(arguments)
        .arg("--run-dir")
        .arg(ground.installation.run_dir())
        .output()
        .context("start setpriv")
}

fn control() -> Result<()> {
    let _group = GuardGroup::new()?;
    let ground = Guarded::new("control", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let socket = ground.installation.run_dir().join("control.sock");
    let found = fs::metadata(&socket)?;
    ensure!(found.mode() & 0o777 == 0o660 && found.uid() == 0, "the socket has mode {:o}", found.mode());
    ensure!(found.gid().to_string() == GROUP, "the socket's group is {}", found.gid());

    let changes: [&[&str]; 4] = [
        &["seal", "pool"],
        &["unseal", "pool"],
        &["release", "pool", "--ttl", "1m", "--reason", "x"],
        &["lease", "revoke", "lease-1"],
    ];
    let readings: [&[&str]; 4] = [&["status"], &["pools"], &["lease", "list"], &["events", "-n", "1"]];
    // Members of the group read, and change nothing.
    for reading in readings {
        let output = as_nobody(&ground, GROUP, reading)?;
        ensure!(output.status.success(), "the group's {reading:?}: {}", command::text(&output));
    }
    for change in changes {
        let output = as_nobody(&ground, GROUP, change)?;
        let text = command::text(&output);
        ensure!(exit_code(&output)? == 6 && text.contains("changes need uid 0"), "{change:?}: {text}");
    }
    // Others do not even reach the socket; and if its mode were wrong, the agent would still refuse.
    let output = as_nobody(&ground, NOBODY, &["status"])?;
    ensure!(exit_code(&output)? == 5, "a stranger's status: {}", command::text(&output));
    fs::set_permissions(&socket, Permissions::from_mode(0o666))?;
    for reading in readings {
        let output = as_nobody(&ground, NOBODY, reading)?;
        let text = command::text(&output);
        ensure!(
            exit_code(&output)? == 6 && text.contains("neither root nor a member"),
            "{reading:?}: {text}"
        );
    }
    for change in changes {
        let output = as_nobody(&ground, NOBODY, change)?;
        ensure!(exit_code(&output)? == 6, "a stranger's {change:?}: {}", command::text(&output));
    }
    rm_is_denied(&pool.path().join("file0"))?;
    let pools = ground.installation.guardctl_json(&["pools"])?;
    ensure!(pools[0]["mode"] == "guarded", "somebody changed the mode: {pools}");
    // Root does both.
    ground.guardctl(&["seal", "pool"])?;
    ground.wait_for_mode(pool.path(), "sealed")
}
