//! Work that must still succeed, beside a guarded pool of real CephFS.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::harness::cephfs_host::{POOL, ROOT, WITNESS, as_actor, on_guarded};
use crate::harness::registry::Test;
use crate::harness::{command, scratch, tree};
use crate::peers::{container, go};

pub(super) const TESTS: &[Test] = &[
    Test::new("allowed_outside_every_guarded_root", outside_every_guarded_root),
    Test::new("allowed_below_the_root_on_other_filesystems", below_the_root_on_other_filesystems),
    Test::new("allowed_on_cephfs_elsewhere", on_cephfs_elsewhere),
    Test::new("allowed_for_the_actors_process_tree", for_the_actors_process_tree),
    Test::new("allowed_in_a_container", in_a_container),
    Test::new("allowed_creating_and_writing_in_the_pool", creating_and_writing_in_the_pool),
];

fn outside_every_guarded_root() -> Result<()> {
    on_guarded(|_| {
        let scratch = scratch::Scratch::new("outside")?;
        for parent in [scratch.path(), Path::new("/var/tmp"), Path::new("/srv")] {
            let tree = parent.join("tree");
            tree::fill(&tree, 50, 7)?;
            command::run("rm", &["-r", &tree.to_string_lossy()])?;
            ensure!(!tree.exists(), "{} is still there", tree.display());
        }
        Ok(())
    })
}

fn below_the_root_on_other_filesystems() -> Result<()> {
    on_guarded(|host| {
        let before = host.counted("denied")?;
        let tree = Path::new(ROOT).join("images");
        tree::fill(&tree, 50, 7)?;
        ensure!(
            go::remove_all(&tree).is_ok() && !tree.exists(),
            "{} is still there",
            tree.display()
        );
        let denied = host.counted("denied")? - before;
        ensure!(denied == 0, "denied {denied} times");
        Ok(())
    })
}

fn on_cephfs_elsewhere() -> Result<()> {
    on_guarded(|_| {
        let tree = Path::new(WITNESS).join("elsewhere");
        tree::fill(&tree, 50, 7)?;
        command::run("rm", &["-r", &tree.to_string_lossy()])?;
        ensure!(!tree.exists(), "{} is still there", tree.display());
        Ok(())
    })
}

/// The same command, from the cgroup of the storage daemon and from elsewhere.
fn for_the_actors_process_tree() -> Result<()> {
    on_guarded(|host| {
        let before = host.counted("allowed")?;
        let volume = host.scratch("actor")?;
        let path = volume.to_string_lossy();
        host.withstands(12, || command::run_failing("rm", &["-r", &path]))?;
        fs::write(volume.join("d0/new"), "new\n")?;
        as_actor(&format!("mv -f {path}/d0/new {path}/d0/e0/f0; rm -r {path}"))?;
        ensure!(!host.on_ceph().join("actor").exists(), "the volume is still there");
        // 12 files, 4 directories (d0, d1, d2, and the volume) and 3 below them; one replaced.
        let allowed = host.counted("allowed")? - before;
        ensure!(allowed == 20, "allowed {allowed} times");
        Ok(())
    })
}

fn in_a_container() -> Result<()> {
    on_guarded(|host| {
        let before = host.counted("allowed")?;
        let volume = host.scratch("volume")?;
        container::with_own_root(&volume, |data| {
            ensure!(tree::count(data)? == 12, "the container sees {} files", tree::count(data)?);
            fs::rename(data.join("d0/e0/f0"), data.join("d0/e0/f1"))?;
            fs::remove_dir_all(data.join("d0"))?;
            Ok(())
        })?;
        // A service with private mounts is no container, even where it has the volume alone.
        container::beside_the_host(&volume, |data| {
            command::run_failing("rm", &["-r", &data.join("d1").to_string_lossy()])?;
            command::run_failing("rm", &["-r", &volume.join("d2").to_string_lossy()]).map(drop)
        })?;
        let left = tree::count(&host.on_ceph().join("volume"))?;
        ensure!(left == 8, "{left} files are left of the volume, not 8");
        let allowed = host.counted("allowed")? - before;
        ensure!(allowed == 6, "allowed {allowed} times");
        host.clear("volume")
    })
}

fn creating_and_writing_in_the_pool() -> Result<()> {
    on_guarded(|host| {
        let before = host.counted("denied")?;
        let place = host.scratch("written")?;
        let file = place.join("file");
        fs::write(&file, "first")?;
        OpenOptions::new().append(true).open(&file)?.write_all(b", second")?;
        fs::rename(&file, place.join("renamed"))?;
        symlink("renamed", place.join("link"))?;
        fs::hard_link(place.join("renamed"), place.join("other-name"))?;
        fs::create_dir(place.join("directory"))?;
        let seen = host.on_ceph().join("written");
        ensure!(
            fs::read_to_string(seen.join("link"))? == "first, second",
            "another client reads otherwise"
        );
        // Truncation is no deletion in guarded mode, unless policy says so.
        fs::write(place.join("renamed"), "short")?;
        OpenOptions::new().write(true).open(place.join("renamed"))?.set_len(2)?;
        ensure!(
            fs::read_to_string(seen.join("other-name"))? == "sh",
            "another client reads otherwise"
        );
        ensure!(Path::new(POOL).join("written").exists(), "the pool is gone");
        let denied = host.counted("denied")? - before;
        ensure!(denied == 0, "denied {denied} times");
        host.clear("written")
    })
}
