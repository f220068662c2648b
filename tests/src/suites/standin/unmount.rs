//! The rollback's engine on real mounts: in every mount namespace, with people who hold things, and
//! with mounts that are not ours. (The state machine's part: `rollback_standin`.)

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use guard_agent::host::rollback::LiveHost;
use guard_agent::host::rollback::helper::Helper;
use guard_agent::model::rollback::{Allowed, Limits, RollbackOutcome, Target, Via, run};

use crate::harness::agent::binary;
use crate::harness::attempt::rm_is_denied;
use crate::harness::guarded::{Guarded, populate};
use crate::harness::mount::{Mount, mountinfo_of};
use crate::harness::registry::Test;
use crate::harness::scratch::Scratch;
use crate::peers::holder::Holder;

pub(super) const TESTS: &[Test] = &[
    Test::new("unmount_every_mount_in_every_namespace_and_the_superblock_ends", everywhere),
    Test::new("unmount_names_holders_and_detaches_only_if_asked", holders),
    Test::new("unmount_leaves_what_is_not_incus_own_and_names_it", strangers),
];

/// The pool as the engine is told of it.
fn target(ground: &Guarded, mountpoint: &Path) -> Result<Target> {
    let report = ground.report(mountpoint)?.context("the pool is reported")?;
    let generation = report["generation"].as_u64().context("its generation")?;
    let device = report["device"].as_str().context("its device")?;
    let (major, minor) = device.split_once(':').context("major:minor")?;
    let dev = guard_common::policy::kernel_dev(major.parse()?, minor.parse()?);
    Ok(Target { dev, generation, name: report["name"].as_str().unwrap_or_default().to_owned() })
}

fn unmount(ground: &Guarded, target: &Target, lazy: bool) -> Result<RollbackOutcome> {
    let maps = ground.installation.maps_dir()?;
    let helper = Helper::of(binary("GUARD_AGENT")?);
    let mut host = LiveHost::new(maps, helper, Limits::default());
    let mut steps = 0;
    let allowed = Allowed { lazy, force: true };
    let outcome =
        run(&mut host, std::slice::from_ref(target), ground.root(), allowed, &mut |_| steps += 1);
    ensure!(outcome.steps.len() <= steps, "progress was not told");
    Ok(outcome)
}

fn must_be_complete(outcome: &RollbackOutcome) -> Result<()> {
    ensure!(outcome.is_complete() && outcome.problems.is_empty(), "{outcome:#?}");
    Ok(())
}

fn ended(ground: &Guarded, target: &Target) -> Result<()> {
    ground.wait_for_record("the pool's end", |record| {
        record["kind"] == "pool"
            && record["pool"]["change"] == "ended"
            && record["pool"]["generation"] == target.generation
    })?;
    Ok(())
}

fn everywhere() -> Result<()> {
    let ground = Guarded::new("unmount", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let target = target(&ground, pool.path())?;
    let scratch = Scratch::new("unmount")?;
    // Two names in the host's namespace, a mount of the same superblock on itself, and a private
    // copy of all of it with one more.
    let alias = Mount::bind(&pool.path().join("volume"), scratch.join("alias"))?;
    let stacked = Mount::bind(pool.path(), pool.path())?;
    let place = scratch.join("guest");
    fs::create_dir(&place)?;
    let mut guest = Holder::in_copy(&pool.path().join("volume"), &place)?;
    // A tmpfs of somebody else's, elsewhere: same kind, another superblock.
    let other = Mount::tmpfs(scratch.join("other"))?;

    let outcome = unmount(&ground, &target, false)?;
    must_be_complete(&outcome)?;
    let namespaces: std::collections::BTreeSet<u64> =
        outcome.steps.iter().map(|step| step.place.namespace).collect();
    ensure!(
        namespaces.len() == 2,
        "unmounted in {} mount namespaces, not 2: {outcome:#?}",
        namespaces.len()
    );
    ensure!(outcome.steps.len() >= 7, "fewer unmounts than mounts: {outcome:#?}");
    for path in [pool.path(), alias.path(), stacked.path()] {
        ensure!(mountinfo_of(path)?.is_empty(), "{} is still mounted", path.display());
    }
    ended(&ground, &target)?;
    guest.must_run()?;
    ensure!(mountinfo_of(other.path())?.len() == 1, "another's mount was unmounted");
    // Once more: nothing is there, and that is no error.
    must_be_complete(&unmount(&ground, &target, true)?)
}

fn holders() -> Result<()> {
    let ground = Guarded::new("holders", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let target = target(&ground, pool.path())?;
    let file = Holder::of_file(&pool.path().join("volume/file0"))?;
    let directory = Holder::in_directory(&pool.path().join("volume"))?;

    let outcome = unmount(&ground, &target, false)?;
    let [remaining] = &outcome.remaining[..] else {
        anyhow::bail!("the pool is held: {outcome:#?}")
    };
    let pids: Vec<u32> = remaining.holders.iter().map(|holder| holder.pid).collect();
    ensure!(
        pids.contains(&file.pid()) && pids.contains(&directory.pid()),
        "not named: {remaining:#?}"
    );
    let via =
        |pid| remaining.holders.iter().filter(move |h| h.pid == pid).flat_map(|holder| &holder.via);
    ensure!(
        via(file.pid()).any(|via| matches!(via, Via::OpenFile { descriptor: 9, .. })),
        "{remaining:#?}"
    );
    ensure!(
        via(directory.pid())
            .any(|via| matches!(via, Via::WorkingDirectory { path } if path.ends_with("/volume"))),
        "{remaining:#?}"
    );
    ensure!(mountinfo_of(pool.path())?.len() == 1, "it was busy, and is unmounted");
    rm_is_denied(&pool.path().join("file0"))?;

    let outcome = unmount(&ground, &target, true)?;
    ensure!(mountinfo_of(pool.path())?.is_empty(), "it was to be detached");
    let [remaining] = &outcome.remaining[..] else {
        anyhow::bail!("the superblock lives: {outcome:#?}")
    };
    ensure!(remaining.mounts.is_empty() && remaining.holders.len() == 2, "{remaining:#?}");
    // Still denied, through the directory that is held.
    let inside = format!("/proc/{}/cwd/file1", directory.pid());
    rm_is_denied(Path::new(&inside))?;

    drop((file, directory));
    ended(&ground, &target)?;
    must_be_complete(&unmount(&ground, &target, false)?)
}

fn strangers() -> Result<()> {
    let ground = Guarded::new("strangers", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let target = target(&ground, pool.path())?;
    let scratch = Scratch::new("strangers")?;
    let mut ramfs = Mount::new("ramfs", "standin", pool.path().join("disk"), "mode=755")?;
    populate(ramfs.path())?;
    // Made afterwards, so that nothing is mounted on this one.
    let alias = Mount::bind(pool.path(), scratch.join("alias"))?;

    let outcome = unmount(&ground, &target, true)?;
    let [remaining] = &outcome.remaining[..] else { anyhow::bail!("it is kept: {outcome:#?}") };
    ensure!(
        remaining.obstacles.len() == 1 && remaining.fix.contains("/pool/disk"),
        "{remaining:#?}"
    );
    ensure!(mountinfo_of(ramfs.path())?.len() == 1, "the stranger's mount was unmounted");
    ensure!(ramfs.path().join("file0").exists(), "the stranger's file is gone");
    ensure!(mountinfo_of(alias.path())?.is_empty(), "what nothing is in the way of stayed");
    rm_is_denied(&pool.path().join("file0"))?;
    ramfs.unmount()?;
    must_be_complete(&unmount(&ground, &target, false)?)
}
