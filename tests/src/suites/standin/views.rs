//! Through which mounts a pool is reached: guests' views pass, the host's ways around do not.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::harness::attempt::{denied, in_new_namespace, passes, rm_is_denied, rm_passes};
use crate::harness::guarded::{Guarded, populate};
use crate::harness::mount::Mount;
use crate::harness::registry::Test;
use crate::harness::scratch::Scratch;
use crate::harness::{command, tree};
use crate::peers::{calls, container};

pub(super) const TESTS: &[Test] = &[
    Test::new("views_of_guests_pass_and_the_hosts_aliases_do_not", views),
    Test::new("views_outside_every_root_and_other_filesystems_pass", outside),
];

fn must_be_denied(what: &str, output: &Output) -> Result<()> {
    let text = command::text(output);
    ensure!(
        !output.status.success() && text.contains("Operation not permitted"),
        "{what}: not denied: {text}"
    );
    Ok(())
}

fn views() -> Result<()> {
    let ground = Guarded::new("views", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let volume = pool.path().join("volume");
    let scratch = Scratch::new("views")?;
    let place = scratch.join("guest");
    fs::create_dir(&place)?;

    let before = ground.counter("allowed_guest_view")?;
    // A volume in a container, which has a root directory of its own: a guest's own business.
    container::with_own_root(&volume, |data| {
        passes("unlink by the guest", fs::remove_file(data.join("file0")))?;
        fs::create_dir(data.join("d"))?;
        passes("rmdir by the guest", fs::remove_dir(data.join("d")))
    })?;
    ensure!(!volume.join("file0").exists(), "the guest's deletion did not reach the volume");
    let counted = ground.counter("allowed_guest_view")? - before;
    ensure!(counted == 2, "2 deletions by the guest, {counted} counted");

    // The whole pool is no volume, in a container neither.
    container::with_own_root(pool.path(), |data| {
        denied("unlink in a container that has the whole pool", fs::remove_file(data.join("file1")))
    })?;
    // A private copy of the host's mounts is no guest: nothing in it, however it came there.
    let whole =
        in_new_namespace("mount --bind \"$1\" \"$2\" && rm \"$2/file1\"", &[pool.path(), &place])?;
    must_be_denied("the whole pool in another namespace", &whole)?;
    must_be_denied("a private copy", &in_new_namespace("rm \"$1/file1\"", &[&volume])?)?;
    let below = ground.root().join("below");
    fs::create_dir(&below)?;
    let bound =
        in_new_namespace("mount --bind \"$1\" \"$2\" && rm \"$2/file1\"", &[&volume, &below])?;
    must_be_denied("a volume bound below the root in a private copy", &bound)?;
    let part =
        in_new_namespace("mount --bind \"$1\" \"$2\" && rm \"$2/file1\"", &[&volume, &place])?;
    must_be_denied("a volume bound in a private copy", &part)?;
    // The same volume at the same place, in the host's namespace, and in copies that follow it:
    // what a unit with `PrivateTmp=` or `ProtectSystem=` has, and what any user can make.
    let alias = Mount::bind(&volume, &place)?;
    rm_is_denied(&alias.path().join("file1"))?;
    let file = alias.path().join("file1").display().to_string();
    for options in [&["-m", "--propagation", "slave"][..], &["-U", "-r", "-m"]] {
        let copy = command::attempt("unshare", &[options, &["rm", &file]].concat())?;
        must_be_denied(&format!("unshare {options:?} and a bind of before"), &copy)?;
    }
    let whole_alias = Mount::bind(pool.path(), scratch.join("whole"))?;
    rm_is_denied(&whole_alias.path().join("file1"))?;
    // A mount in no namespace at all.
    let detached = calls::detached_copy(&volume).context("open_tree")?;
    denied("unlink in a detached mount", unlink_in(&detached))?;
    ensure!(tree::count(pool.path())? == 19, "{} of 19 files are left", tree::count(pool.path())?);
    Ok(())
}

fn unlink_in(directory: &OwnedFd) -> std::io::Result<()> {
    Ok(unlinkat(directory, "file1", UnlinkatFlags::NoRemoveDir)?)
}

fn outside() -> Result<()> {
    let ground = Guarded::new("outside", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    rm_is_denied(&pool.path().join("volume"))?;
    // The same kind of filesystem, outside every root.
    let elsewhere = Mount::tmpfs("/var/lib/guard-standin-elsewhere")?;
    populate(elsewhere.path())?;
    rm_passes(&elsewhere.path().join("volume"))?;
    // Another kind, below the root.
    let ramfs = Mount::new("ramfs", "standin", ground.root().join("ramfs"), "mode=755")?;
    populate(ramfs.path())?;
    rm_passes(&ramfs.path().join("volume"))?;
    // No mount, below the root.
    let directory = ground.root().join("directory");
    populate(&directory)?;
    rm_passes(&directory)?;
    // A path that only begins like the root's.
    let sibling = Mount::tmpfs(ground.root().with_extension("old"))?;
    populate(sibling.path())?;
    rm_passes(&sibling.path().join("volume"))?;
    rm_is_denied(&pool.path().join("file0"))
}
