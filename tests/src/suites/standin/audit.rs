//! The audit log: numbered without a gap, whole, for few eyes.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::harness::attempt::{rm_is_denied, rm_passes};
use crate::harness::guarded::Guarded;
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] =
    &[Test::new("audit_is_whole_numbered_and_survives_a_torn_line", audit)];

/// Fields that the issue promises of each decision, by type.
const TEXTS: [&str; 12] = [
    "hook",
    "operation",
    "verdict",
    "reason",
    "mode",
    "pool_id",
    "pool",
    "mountpoint",
    "comm",
    "device",
    "target_name",
    "path",
];
const NUMBERS: [&str; 14] = [
    "generation",
    "pid",
    "tgid",
    "ppid",
    "start_boot_ns",
    "uid",
    "euid",
    "cgroup_id",
    "mnt_ns",
    "mount_ns",
    "mount_id",
    "parent_ino",
    "target_ino",
    "incident_count",
];

fn audit() -> Result<()> {
    let ground = Guarded::new("audit", "")?;
    let agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let file = pool.path().join("volume/file0");
    let inodes = (fs::metadata(pool.path().join("volume"))?.ino(), fs::metadata(&file)?.ino());
    rm_is_denied(&file)?;
    let decision = ground.wait_for_decision("guarded", "/volume/file0")?;
    for field in TEXTS {
        ensure!(decision[field].is_string(), "`{field}` is no text: {decision}");
    }
    for field in NUMBERS {
        ensure!(decision[field].is_u64(), "`{field}` is no number: {decision}");
    }
    let expected = [
        ("hook", "path_unlink"),
        ("operation", "unlink"),
        ("verdict", "denied"),
        ("mode", "guarded"),
        ("pool", "pool"),
        ("comm", "rm"),
        ("target_name", "file0"),
    ];
    for (field, value) in expected {
        ensure!(decision[field] == value, "`{field}` is {}, not {value}", decision[field]);
    }
    ensure!(decision["mountpoint"] == *pool.path().to_string_lossy(), "{decision}");
    ensure!(decision["parent_ino"] == inodes.0 && decision["target_ino"] == inodes.1, "{decision}");
    ensure!(decision["ppid"] == std::process::id(), "{decision}");
    ensure!(
        decision["path_truncated"] == false && decision["kernel_thread"] == false,
        "{decision}"
    );
    ensure!(decision.get("login_uid").is_some(), "`login_uid` is missing: {decision}");
    let mount_ns = fs::metadata("/proc/1/ns/mnt")?.ino();
    ensure!(decision["mnt_ns"] == mount_ns && decision["mount_ns"] == mount_ns, "{decision}");

    let mode = fs::metadata(ground.installation.audit())?.permissions().mode() & 0o7777;
    ensure!(mode == 0o640, "the audit log has mode {mode:o}");
    ensure!(agent.stop()?.success(), "the agent did not end well");

    // A machine that lost power in the middle of a line.
    let torn = "{\"schema\":\"guard-agent.audit/1\",\"seque";
    File::options().append(true).open(ground.installation.audit())?.write_all(torn.as_bytes())?;
    let agent = ground.installation.start()?;
    rm_is_denied(&file)?;
    ensure!(agent.stop()?.success(), "the agent did not end well");
    contiguous(&fs::read_to_string(ground.installation.audit())?, torn)?;
    // Nothing of this concerns files outside.
    let outside = ground.root().join("outside");
    fs::write(&outside, "")?;
    rm_passes(&outside)
}

/// Every line but the torn one is a record; numbers follow each other, and the torn line has used
/// one up.
fn contiguous(text: &str, torn: &str) -> Result<()> {
    let mut expected = 1;
    let mut torn_lines = 0;
    for line in text.lines() {
        if line == torn {
            torn_lines += 1;
            expected += 1;
            continue;
        }
        let record: Value = serde_json::from_str(line).with_context(|| format!("parse {line}"))?;
        ensure!(record["sequence"] == expected, "{expected} had to follow: {line}");
        for field in ["schema", "time", "boot_id", "host", "kind"] {
            ensure!(record[field].is_string(), "`{field}` is no text: {line}");
        }
        ensure!(record["boot_ns"].is_u64(), "`boot_ns` is no number: {line}");
        expected += 1;
    }
    ensure!(torn_lines == 1, "the torn line is there {torn_lines} times");
    ensure!(text.ends_with('\n'), "the last line is torn");
    Ok(())
}
