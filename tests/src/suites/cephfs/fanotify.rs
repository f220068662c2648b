//! The tier without programs on real CephFS, judged by the independent mount.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

use crate::harness::attempt::{failed_with, passes};
use crate::harness::cephfs_host::{Host, POOL, POOLS, ROOT, as_actor, furnish};
use crate::harness::registry::Test;
use crate::harness::{command, wait};

pub(super) const TESTS: &[Test] =
    &[Test::new("fanotify_wipes_of_a_real_pool_lose_nothing", wipes).only_in_full()];

/// Programs that wipe a directory: each must fail and leave every file.
fn wipe(host: &Host) -> Result<()> {
    let python = "import shutil, sys; shutil.rmtree(sys.argv[1])";
    for (program, arguments) in [
        ("rm", vec!["-rf", ROOT]),
        ("sh", vec!["-c", "rm -rf \"$1\"/*", "sh", POOLS]),
        ("find", vec![POOL, "-delete"]),
        ("python3", vec!["-c", python, POOL]),
    ] {
        furnish()?;
        command::run_failing(program, &arguments)?;
        host.is_intact().with_context(|| format!("after {program} {}", arguments.join(" ")))?;
    }
    Ok(())
}

fn wipes() -> Result<()> {
    let mut host = Host::with("[enforcement]\ntier = \"fanotify\"\n")?;
    let outcome = on(&mut host);
    // Responders and seals outlive agents.
    drop(host.agent.take());
    host.installation.unload().and(outcome)
}

fn on(host: &mut Host) -> Result<()> {
    let status = host.installation.status()?;
    ensure!(status["posture"]["tier"] == "fanotify", "the tier is another: {status}");
    wipe(host)?;
    ensure!(host.counted("denied")? >= 4, "{} were denied", host.counted("denied")?);

    // The storage daemon works on, and deletions that are not stopped are seen.
    let single = Path::new(POOL).join("single");
    host.scratch("volume")?;
    as_actor(&format!("rm -r {POOL}/volume"))?;
    ensure!(!host.on_ceph().join("volume").exists(), "the actor's deletion left the volume");
    passes("write a file", fs::write(&single, "x"))?;
    passes("a single deletion of a known path", fs::remove_file(&single))?;
    wait::until("the deletion is recorded", wait::LIMIT, || {
        let records = host.installation.audit_records()?;
        let is_it = |decision: &serde_json::Value| {
            decision["hook"] == "fanotify_delete"
                && decision["path"] == "/single"
                && decision["verdict"] == "would-deny"
        };
        Ok(records.iter().any(|record| is_it(&record["decision"])))
    })?;

    host.direct(&["seal", "shared"])?;
    wipe(host)?;
    let file = Path::new(POOL).join("custom/default_data/d0/e0/f0");
    let refused = |what| failed_with(what, fs::remove_file(&file), Errno::EROFS);
    refused("a single deletion")?;
    host.agent.take().context("no agent runs")?.kill()?;
    refused("a single deletion without an agent")?;
    wipe(host)?;
    host.agent = Some(host.installation.start()?);
    refused("a single deletion after the restart")?;
    host.direct(&["unseal", "shared"])?;
    wait::until("the pool can be written", wait::LIMIT, || Ok(fs::write(&single, "x").is_ok()))?;
    passes("a single deletion of a known path", fs::remove_file(&single))?;

    // The mark holds neither mount nor superblock.
    wait::until("the pool is unmounted", wait::LIMIT, || Ok(host.pool.mount().unmount().is_ok()))?;
    let none = || Ok(host.ask(&["pools"])?.as_array().is_some_and(Vec::is_empty));
    wait::until("the pool has ended", wait::LIMIT, none)
}
