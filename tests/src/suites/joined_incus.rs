//! A healthy join ends guarded, without an operator, and a member's legitimate work is never denied.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::harness::command;
use crate::harness::incus::Stage;
use crate::harness::incus::cluster::{MOUNTPOINT, POOL};
use crate::harness::incus::node::Role;
use crate::harness::registry::Test;

pub const TESTS: &[Test] =
    &[Test::new("healthy_join_ends_guarded_and_works", healthy_join).within_seconds(400)];

fn healthy_join() -> Result<()> {
    let mut stage = Stage::new("healthy join")?;
    stage.join("node2")?.succeeds()?;
    stage.becomes(&["joined"], "guarded")?;

    let denied = stage.denied()?;
    work(&mut stage).context("with the agent running")?;
    ensure!(stage.denied()? == denied, "a member's own work was denied");
    stage.is_intact()?;
    stage.note("volumes, snapshots, copies and an import, nothing denied")?;

    if let Some(agent) = stage.agent.take() {
        agent.kill()?;
    }
    work(&mut stage).context("with the agent killed")?;
    stage.is_intact()?;
    stage.agent = Some(stage.installation.start()?);
    stage.becomes(&["joined"], "guarded")?;
    ensure!(stage.denied()? == denied, "a member's work was denied while the agent was dead");
    stage.note("the same with the agent killed, and started again")
}

/// A file's deletion by a process that incusd has started.
fn delete_as_descendant(file: &Path) -> Result<()> {
    let line = format!("echo 0 >{}/cgroup.procs && rm {}", Role::Joiner.cgroup().display(), file.display());
    command::run("sh", &["-c", &line]).map(drop)
}

/// What a member does with its volumes all day. Files in a custom volume cannot be deleted over SFTP in Incus
/// 6.0.4: that serves instances only, and they cannot live on CephFS.
fn work(stage: &mut Stage) -> Result<()> {
    let joiner = stage.joiner()?;
    joiner.client(&["storage", "volume", "create", POOL, "work"])?;
    let data = Path::new(MOUNTPOINT).join("custom/default_work");
    for file in ["a", "b", "c"] {
        fs::write(data.join(file), file).with_context(|| format!("write {file}"))?;
    }
    joiner.client(&["storage", "volume", "snapshot", "create", POOL, "work", "snap"])?;
    // With its snapshots, Incus 6.0.4 trips over the snapshot's directory: "mkdir …/.snap/snap: file exists".
    let (work, copy) = (format!("{POOL}/work"), format!("{POOL}/copy"));
    joiner.client(&["storage", "volume", "copy", &work, &copy, "--volume-only"])?;
    joiner.client(&["storage", "volume", "export", POOL, "copy", "/run/exported.tar.gz", "--volume-only"])?;
    joiner.client(&["storage", "volume", "import", POOL, "/run/exported.tar.gz", "imported"])?;
    // A restore deletes what came after the snapshot, by rsync.
    fs::write(data.join("later"), "later").context("write later")?;
    joiner.client(&["storage", "volume", "snapshot", "restore", POOL, "work", "snap"])?;
    ensure!(!data.join("later").exists(), "the restore deleted nothing");
    delete_as_descendant(&data.join("b"))?;
    joiner.client(&["storage", "volume", "snapshot", "delete", POOL, "work", "snap"])?;
    for volume in ["work", "copy", "imported"] {
        joiner.client(&["storage", "volume", "delete", POOL, volume])?;
        let directory = Path::new(MOUNTPOINT).join(format!("custom/default_{volume}"));
        ensure!(!directory.exists(), "{} is still there", directory.display());
    }
    fs::remove_file("/run/exported.tar.gz").context("remove the export")
}
