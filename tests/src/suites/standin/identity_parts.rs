//! Superblocks that several mounts share although they show nothing of each other, as those of one
//! NFS server do: two pools below a root, and a home directory elsewhere.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::harness::attempt::{denied, in_new_namespace, passes, rm_is_denied, rm_passes};
use crate::harness::guarded::{Guarded, populate};
use crate::harness::mount::Mount;
use crate::harness::registry::Test;
use crate::harness::scratch::Scratch;
use crate::harness::wait;
use crate::peers::container;
use crate::peers::nfsd::Server;

pub(super) const TESTS: &[Test] = &[
    Test::new("identity_each_export_of_a_server_is_its_own", each_its_own),
    Test::new("identity_exports_that_came_without_an_agent", without_an_agent),
    Test::new("identity_a_sealed_export_stays_sealed_when_another_comes", sealed_before),
];

/// A server that exports three directories of one filesystem.
struct Nas {
    server: Server,
    _disk: Mount,
    scratch: Scratch,
    ground: Guarded,
}

impl Nas {
    fn new(name: &str) -> Result<Self> {
        let (ground, scratch) = (Guarded::new(name, "")?, Scratch::new(name)?);
        ground.installation.write_policy(&ground.policy("").replace("tmpfs", "nfs4"))?;
        let disk = Mount::tmpfs(scratch.join("disk"))?;
        for directory in ["home", "one", "two"] {
            let directory = disk.path().join(directory);
            fs::create_dir(&directory)
                .with_context(|| format!("create {}", directory.display()))?;
            populate(&directory)?;
        }
        Ok(Self { server: Server::start(disk.path())?, _disk: disk, scratch, ground })
    }

    fn home(&self) -> Result<Mount> {
        self.server.mount("home", &self.scratch.join("home"))
    }

    fn pool(&self, name: &str) -> Result<Mount> {
        self.server.mount(name, &self.ground.root().join(name))
    }

    /// All three are of one superblock: else there is nothing to show.
    fn share(&self, mounts: &[&Mount]) -> Result<()> {
        let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
        let device = |mount: &Mount| {
            let place = format!(" {} ", mount.path().display());
            table.lines().find(|line| line.contains(&place)).and_then(|line| line.split(' ').nth(2))
        };
        let devices: Vec<_> = mounts.iter().map(|mount| device(mount)).collect();
        ensure!(
            devices.iter().all(|device| device.is_some() && *device == devices[0]),
            "{devices:?}: {table}"
        );
        Ok(())
    }

    fn pool_id(&self, mount: &Mount) -> Result<String> {
        let report =
            self.ground.report(mount.path())?.context("the agent does not know the export")?;
        Ok(report["pool_id"].as_str().context("its id")?.to_owned())
    }
}

fn file(mount: &Mount, name: &str) -> PathBuf {
    mount.path().join(name)
}

/// Deletes in a copy of the host's mounts.
fn deletes_in_a_copy(path: &Path) -> Result<bool> {
    Ok(in_new_namespace("rm -f \"$1\"", &[path])?.status.success() && !path.exists())
}

fn each_its_own() -> Result<()> {
    let nas = Nas::new("exports")?;
    let ground = &nas.ground;
    let home = nas.home()?;
    let (one, two) = (nas.pool("one")?, nas.pool("two")?);
    nas.share(&[&home, &one, &two])?;
    let agent = ground.installation.start()?;
    for pool in [&one, &two] {
        ground.wait_for_mode(pool.path(), "guarded")?;
        rm_is_denied(&file(pool, "file0"))?;
        ensure!(!deletes_in_a_copy(&file(pool, "file0"))?, "deleted in a copy of the mounts");
    }
    let shown = ground.report(one.path())?.context("the export")?["mountpoints"]
        .as_array()
        .map_or(0, Vec::len);
    ensure!(shown == 1, "{shown} mounts of one export");
    ensure!(nas.pool_id(&one)? != nas.pool_id(&two)?, "two exports with one id");
    rm_passes(&file(&home, "file0"))?;
    ensure!(deletes_in_a_copy(&file(&home, "file1"))?, "denied in a copy of the home directory");

    // A directory of a pool, elsewhere on the host.
    let elsewhere = Mount::bind(&one.path().join("volume"), nas.scratch.join("elsewhere"))?;
    rm_is_denied(&file(&elsewhere, "file0"))?;

    // A seal, and a release, is one export's.
    ground.guardctl(&["seal", &one.path().to_string_lossy()])?;
    ground.wait_for_mode(one.path(), "sealed")?;
    ground.guardctl(&[
        "release",
        &two.path().to_string_lossy(),
        "--ttl",
        "5m",
        "--reason",
        "test",
    ])?;
    ground.wait_for_mode(two.path(), "released")?;
    rm_is_denied(&file(&one, "file1"))?;
    denied("truncation in the sealed one", fs::write(file(&one, "file1"), ""))?;
    rm_is_denied(&file(&elsewhere, "file1"))?;
    rm_passes(&file(&two, "file1"))?;
    rm_passes(&file(&home, "file2"))?;
    container::with_own_root(&one.path().join("volume"), |data| {
        denied("unlink by a guest of the sealed one", fs::remove_file(data.join("file3")))
    })?;
    ground.guardctl(&["unseal", &one.path().to_string_lossy()])?;
    ground.wait_for_mode(one.path(), "guarded")?;
    container::with_own_root(&one.path().join("volume"), |data| {
        passes("unlink by a guest", fs::remove_file(data.join("file3")))
    })?;

    // Without an agent all of it holds; and an export that comes then is a pool that nobody knows.
    agent.stop()?;
    rm_is_denied(&file(&one, "file2"))?;
    rm_is_denied(&file(&elsewhere, "file2"))?;
    rm_passes(&file(&two, "file2"))?;
    rm_passes(&file(&home, "file3"))?;
    let again = nas.server.mount("home", &ground.root().join("again"))?;
    rm_is_denied(&file(&again, "file4"))?;
    rm_passes(&file(&home, "file4"))
}

/// Nothing has an entry: an export belongs where its own oldest mount is.
fn without_an_agent() -> Result<()> {
    let nas = Nas::new("unknown-exports")?;
    let ground = &nas.ground;
    ground.installation.start()?.stop()?;
    let one = nas.pool("one")?;
    let home = nas.home()?;
    nas.share(&[&home, &one])?;
    let elsewhere = Mount::bind(&one.path().join("volume"), nas.scratch.join("elsewhere"))?;
    rm_is_denied(&file(&one, "file0"))?;
    rm_is_denied(&file(&elsewhere, "file0"))?;
    rm_passes(&file(&home, "file0"))?;
    let _agent = ground.installation.start()?;
    ground.wait_for_mode(one.path(), "guarded")?;
    rm_is_denied(&file(&one, "file1"))?;
    rm_is_denied(&file(&elsewhere, "file1"))?;
    rm_passes(&file(&home, "file1"))
}

/// A pool that has had its superblock for itself.
fn sealed_before() -> Result<()> {
    let nas = Nas::new("sealed-export")?;
    let ground = &nas.ground;
    let _agent = ground.installation.start()?;
    let one = nas.pool("one")?;
    ground.wait_for_mode(one.path(), "guarded")?;
    let generation = |mount: &Mount| -> Result<Value> {
        Ok(ground.report(mount.path())?.context("the pool is not known")?["generation"].clone())
    };
    let before = generation(&one)?;
    ground.guardctl(&["seal", &one.path().to_string_lossy()])?;
    ground.wait_for_mode(one.path(), "sealed")?;
    let home = nas.home()?;
    nas.share(&[&home, &one])?;
    let freed = file(&home, "file0");
    wait::until("the home directory is free", wait::LIMIT, || Ok(fs::remove_file(&freed).is_ok()))?;
    ground.wait_for_mode(one.path(), "sealed")?;
    rm_is_denied(&file(&one, "file0"))?;
    denied("truncation", fs::write(file(&one, "file0"), ""))?;
    ensure!(generation(&one)? == before, "the pool is another one: a lease would have ended");
    Ok(())
}
