//! Requests to the agent, and the users who may make them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use guard_agent::host::audit_log::{AuditFile, AuditOptions};
use guard_agent::model::audit::Origin;
use nix::unistd::Gid;

use crate::harness::agent::binary;
use crate::harness::attempt::rm_is_denied;
use crate::harness::guarded::{Guarded, exit_code};
use crate::harness::registry::Test;
use crate::harness::scratch::Scratch;
use crate::harness::{command, wait};

pub(super) const TESTS: &[Test] = &[
    Test::new("control_changes_need_root_and_reading_root_or_the_group", control),
    Test::new("control_audit_log_is_the_groups_to_read_also_after_a_rotation", audit_log),
];

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

/// Reads a file as the user nobody, in this group.
fn read_as_nobody(group: &str, file: &Path) -> Result<Output> {
    Command::new("setpriv")
        .args(["--reuid", NOBODY, "--regid", group, "--clear-groups", "--", "cat"])
        .arg(file)
        .output()
        .context("start setpriv")
}

/// The log is there, for root to write and the group to read.
fn is_the_groups(log: &Path) -> Result<bool> {
    let Ok(found) = fs::metadata(log) else { return Ok(false) };
    Ok(found.mode() & 0o7777 == 0o640 && found.uid() == 0 && found.gid().to_string() == GROUP)
}

fn audit_log() -> Result<()> {
    let _group = GuardGroup::new()?;
    let ground = Guarded::new("audit-group", "")?;
    let log = ground.installation.audit();
    let agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    ensure!(is_the_groups(&log)?, "the log is {:?}", fs::metadata(&log)?);
    let read = read_as_nobody(GROUP, &log)?;
    ensure!(
        read.status.success() && !read.stdout.is_empty(),
        "the group: {}",
        command::text(&read)
    );
    let read = read_as_nobody(NOBODY, &log)?;
    ensure!(!read.status.success(), "a stranger reads the log: {}", command::text(&read));

    // As logrotate does it.
    let rotated = log.with_file_name("audit.jsonl.1");
    fs::rename(&log, &rotated).context("rotate the log")?;
    wait::until("the agent goes on in a new log", wait::LIMIT, || is_the_groups(&log))?;
    ensure!(is_the_groups(&rotated)?, "the rotated log is {:?}", fs::metadata(&rotated)?);
    let before = fs::read_to_string(&rotated)?.lines().count();
    rm_is_denied(&pool.path().join("file0"))?;
    wait::until("the new log has a line", wait::LIMIT, || {
        Ok(!fs::read_to_string(&log)?.is_empty())
    })?;
    // Through the agent, and with no agent from the files: reading goes on into the rotated one.
    let wanted = before + 1;
    let line = ["events", "--json", "-n", &wanted.to_string()];
    let output = as_nobody(&ground, GROUP, &line)?;
    let lines = String::from_utf8_lossy(&output.stdout).lines().count();
    ensure!(
        output.status.success() && lines == wanted,
        "{lines} of {wanted}: {}",
        command::text(&output)
    );
    ensure!(agent.stop()?.success(), "the agent did not end well");
    let line = ["events", "--json", "-n", &wanted.to_string(), "--audit", &log.to_string_lossy()];
    let output = as_nobody(&ground, GROUP, &line)?;
    let lines = String::from_utf8_lossy(&output.stdout).lines().count();
    ensure!(
        exit_code(&output)? == 5 && lines == wanted,
        "{lines} of {wanted}: {}",
        command::text(&output)
    );

    // The directory that the agent makes is the group's too; one that somebody else has set up is
    // theirs.
    let scratch = Scratch::new("audit-directory")?;
    let origin = Origin { host: "h".to_owned(), boot_id: "b".to_owned() };
    let readers = Some(Gid::from_raw(GROUP.parse()?));
    let options = AuditOptions { readers, ..AuditOptions::default() };
    let made = scratch.join("guard-agent");
    AuditFile::open(&made.join("audit.jsonl"), origin.clone(), options)?;
    let found = fs::metadata(&made)?;
    ensure!(found.gid().to_string() == GROUP && found.mode() & 0o7777 == 0o750, "{found:?}");
    AuditFile::open(&scratch.join("audit.jsonl"), origin, options)?;
    let found = fs::metadata(scratch.path())?;
    ensure!(found.gid() == 0, "a directory of somebody else's was changed: {found:?}");
    Ok(())
}

fn control() -> Result<()> {
    let _group = GuardGroup::new()?;
    let ground = Guarded::new("control", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let socket = ground.installation.run_dir().join("control.sock");
    let found = fs::metadata(&socket)?;
    ensure!(
        found.mode() & 0o777 == 0o660 && found.uid() == 0,
        "the socket has mode {:o}",
        found.mode()
    );
    ensure!(found.gid().to_string() == GROUP, "the socket's group is {}", found.gid());

    let changes: [&[&str]; 4] = [
        &["seal", "pool"],
        &["unseal", "pool"],
        &["release", "pool", "--ttl", "1m", "--reason", "x"],
        &["lease", "revoke", "lease-1"],
    ];
    let readings: [&[&str]; 4] =
        [&["status"], &["pools"], &["lease", "list"], &["events", "-n", "1"]];
    // Members of the group read, and change nothing.
    for reading in readings {
        let output = as_nobody(&ground, GROUP, reading)?;
        ensure!(output.status.success(), "the group's {reading:?}: {}", command::text(&output));
    }
    for change in changes {
        let output = as_nobody(&ground, GROUP, change)?;
        let text = command::text(&output);
        ensure!(
            exit_code(&output)? == 6 && text.contains("changes need uid 0"),
            "{change:?}: {text}"
        );
    }
    // Others do not even reach the socket; and if its mode were wrong, the agent would still
    // refuse.
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
