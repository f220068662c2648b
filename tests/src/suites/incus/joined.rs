//! A healthy join ends guarded, without an operator, and a member's legitimate work is never
//! denied.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::harness::attempt::denied;
use crate::harness::command;
use crate::harness::incus::cluster::{MOUNTPOINT, POOL};
use crate::harness::incus::node::{Node, Role};
use crate::harness::incus::{Container, Stage, container};
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] =
    &[Test::new("healthy_join_ends_guarded_and_works", healthy_join).within_seconds(900)];

/// Number of denied attempts of the host in [`guest`] each time.
const HOST_ATTEMPTS: u64 = 4;

fn healthy_join() -> Result<()> {
    let mut stage = Stage::new("healthy join")?;
    container::create_pool(&stage.seed)?;
    stage.join("node2")?.succeeds()?;
    stage.becomes(&["joined"], "guarded")?;
    let mut container = Container::create(stage.joiner()?, "node2")?;

    let before = stage.denied()?;
    work(&mut stage, &mut container).context("with the agent running")?;
    only_the_host_was_denied(&stage, before, HOST_ATTEMPTS)?;
    stage.is_intact()?;
    stage.note(
        "volumes, snapshots, copies, an import, a container and SFTP; only the host was denied",
    )?;

    if let Some(agent) = stage.agent.take() {
        agent.kill()?;
    }
    work(&mut stage, &mut container).context("with the agent killed")?;
    container.delete(stage.joiner()?)?;
    stage.is_intact()?;
    stage.agent = Some(stage.installation.start()?);
    stage.becomes(&["joined"], "guarded")?;
    only_the_host_was_denied(&stage, before, 2 * HOST_ATTEMPTS)?;
    stage.note("the same with the agent killed, and started again")
}

/// Each of the host's attempts counts once, and nothing else does.
fn only_the_host_was_denied(stage: &Stage, before: u64, attempts: u64) -> Result<()> {
    let counted = stage.denied()?.saturating_sub(before);
    ensure!(
        counted == attempts,
        "the host tried {attempts} deletions in vain, and {counted} were denied: the rest was a \
         member's own work (see `guardctl audit` or the agent's log)"
    );
    Ok(())
}

/// A file's deletion by a process that incusd has started.
fn delete_as_descendant(file: &Path) -> Result<()> {
    let line = format!(
        "echo 0 >{}/cgroup.procs && rm {}",
        Role::Joiner.cgroup().display(),
        file.display()
    );
    command::run("sh", &["-c", &line]).map(drop)
}

/// A member's daily work with its volumes.
fn work(stage: &mut Stage, container: &mut Container) -> Result<()> {
    let joiner = stage.joiner()?;
    joiner.client(&["storage", "volume", "create", POOL, "work"])?;
    let data = Path::new(MOUNTPOINT).join("custom/default_work");
    for file in ["a", "b", "c"] {
        fs::write(data.join(file), file).with_context(|| format!("write {file}"))?;
    }
    joiner.client(&["storage", "volume", "snapshot", "create", POOL, "work", "snap"])?;
    // With its snapshots, Incus 6.0.4 trips over the snapshot's directory: "mkdir …/.snap/snap:
    // file exists".
    let (work, copy) = (format!("{POOL}/work"), format!("{POOL}/copy"));
    joiner.client(&["storage", "volume", "copy", &work, &copy, "--volume-only"])?;
    joiner.client(&[
        "storage",
        "volume",
        "export",
        POOL,
        "copy",
        "/run/exported.tar.gz",
        "--volume-only",
    ])?;
    joiner.client(&["storage", "volume", "import", POOL, "/run/exported.tar.gz", "imported"])?;
    // A restore deletes files newer than the snapshot, by rsync.
    fs::write(data.join("later"), "later").context("write later")?;
    joiner.client(&["storage", "volume", "snapshot", "restore", POOL, "work", "snap"])?;
    ensure!(!data.join("later").exists(), "the restore deleted nothing");
    delete_as_descendant(&data.join("b"))?;
    guest(joiner, container, &data).context("a container with the volume")?;
    joiner.client(&["storage", "volume", "snapshot", "delete", POOL, "work", "snap"])?;
    for volume in ["work", "copy", "imported"] {
        joiner.client(&["storage", "volume", "delete", POOL, volume])?;
        let directory = Path::new(MOUNTPOINT).join(format!("custom/default_{volume}"));
        ensure!(!directory.exists(), "{} is still there", directory.display());
    }
    fs::remove_file("/run/exported.tar.gz").context("remove the export")
}

/// Acts that are allowed to a guest in its volume, and to Incus for it over SFTP, and to nobody
/// else on the same host. The first time the container starts with the volume, the second time it
/// gets it while it runs.
///
/// Incus 6.0.4 serves SFTP for instances only, not for custom volumes.
fn guest(node: &Node, container: &mut Container, data: &Path) -> Result<()> {
    fs::create_dir(data.join("tree")).context("create tree")?;
    for file in ["file", "tree/file", "new", "replaced", "sftp"] {
        fs::write(data.join(file), file).with_context(|| format!("write {file}"))?;
    }
    container.attach(node, POOL, "work")?;
    container.start(node)?;

    for file in ["file", "tree/file", "sftp"] {
        denied(&format!("the host deletes {file}"), fs::remove_file(data.join(file)))?;
    }
    denied("the host replaces a file", fs::rename(data.join("new"), data.join("replaced")))?;

    container.run(node, "cd /data; rm file; rm -r tree; mv -f new replaced")?;
    container.delete_file(node, "/data/sftp")?;
    for gone in ["file", "tree", "new", "sftp"] {
        ensure!(
            !data.join(gone).exists(),
            "{gone} was deleted in the container, and is still there"
        );
    }
    let replaced = fs::read_to_string(data.join("replaced")).context("read what was replaced")?;
    ensure!(replaced == "new", "replaced in the container, and it still says {replaced:?}");
    container.detach(node, POOL, "work")
}
