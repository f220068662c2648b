//! Ways around by filesystems and servers on a pool: an overlay's upper layer, an eCryptfs, the
//! kernel's NFS server. None of them passes the `path_*` hooks with the pool's mount (see
//! `docs/BYPASSES.md`).

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::harness::attempt::{
    denied, exchange, failed_with, has_content, open_truncating, passes, rm_is_denied, truncate,
    truncate_open,
};
use crate::harness::command;
use crate::harness::guarded::{Guarded, populate};
use crate::harness::mount::Mount;
use crate::harness::registry::Test;
use crate::harness::scratch::Scratch;
use crate::peers::ecryptfs;
use crate::peers::nfsd::Exported;

pub(super) const TESTS: &[Test] = &[
    Test::new("bypass_overlay_with_its_upper_layer_on_a_pool", overlay),
    Test::new("bypass_ecryptfs_over_a_pool", encrypted),
    Test::new("bypass_nfsd_exports_a_pool", nfsd),
    Test::new("bypass_nfs_rename_over_a_name_that_was_not_looked_up", nfs),
];

const CONTENT: &str = "content\n";

fn write_over(path: &Path) -> std::io::Result<()> {
    File::options().write(true).open(path)?.write_all(b"written\n")
}

fn overlay() -> Result<()> {
    let scratch = Scratch::new("bypass-overlay")?;
    let ground = Guarded::new("bypass-overlay", "truncate = \"guard\"")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let upper = pool.path().join("volume");
    let (lower, work) = (scratch.join("lower"), pool.path().join("work"));
    for directory in [&lower, &work] {
        fs::create_dir(directory)?;
    }
    fs::write(lower.join("below"), CONTENT)?;
    command::run("modprobe", &["overlay"])?;
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let merged = Mount::new("overlay", "overlay", scratch.join("merged"), &layers)?;
    let at = |name: &str| merged.path().join(name);

    ground.guardctl(&["seal", "pool"])?;
    denied("unlink", fs::remove_file(at("file0")))?;
    denied("rename over", fs::rename(at("file0"), at("file1")))?;
    denied("exchange", exchange(&at("file0"), &at("file1")))?;
    denied("truncate", truncate(&at("file0")))?;
    denied("ftruncate", truncate_open(&at("file0")))?;
    denied("O_TRUNC", open_truncating(&at("file0")))?;
    for number in 0..10 {
        has_content(&upper.join(format!("file{number}")), CONTENT)?;
    }
    passes("write", write_over(&at("file5")))?;
    has_content(&upper.join("file5"), "written\n")?;
    passes("read of the lower layer", fs::read(at("below")))?;

    // In guarded mode the pool's hooks see a user's process and no mount: a documented limit.
    ground.guardctl(&["unseal", "pool"])?;
    rm_is_denied(&upper.join("file0"))?;
    denied("truncate, by the pool", truncate(&upper.join("file1")))?;
    passes("unlink", fs::remove_file(at("file0")))?;
    passes("truncate", truncate(&at("file1")))?;
    ensure!(!upper.join("file0").exists(), "the upper layer still has what was unlinked");
    has_content(&upper.join("file1"), "")?;
    passes("unlink of the lower layer's", fs::remove_file(at("below")))?;
    has_content(&lower.join("below"), CONTENT)
}

fn encrypted() -> Result<()> {
    let scratch = Scratch::new("bypass-ecryptfs")?;
    let ground = Guarded::new("bypass-ecryptfs", "truncate = \"guard\"")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let lower = pool.path().join("encrypted");
    fs::create_dir(&lower)?;
    let clear = ecryptfs::mount(&lower, &scratch.join("clear"))?;
    let at = |name: &str| clear.path().join(name);
    for name in ["one", "other"] {
        fs::write(at(name), CONTENT)?;
    }
    fs::create_dir(at("empty"))?;
    let stored = fs::read(lower.join("one")).context("read what is in the pool")?;
    ensure!(stored.len() > CONTENT.len(), "in the pool it is not encrypted");

    ground.guardctl(&["seal", "pool"])?;
    denied("unlink", fs::remove_file(at("one")))?;
    denied("rmdir", fs::remove_dir(at("empty")))?;
    denied("rename over", fs::rename(at("one"), at("other")))?;
    ensure!(fs::read(lower.join("one"))? == stored, "what is in the pool has changed");
    has_content(&at("one"), CONTENT)?;
    // A documented limit: before it cuts a file, which is denied, it writes zeros and the new size
    // into it.
    denied("truncate", truncate(&at("other")))?;
    ensure!(
        fs::metadata(lower.join("other"))?.len() == stored.len() as u64,
        "the pool's file has been cut"
    );
    has_content(&at("other"), "")?;

    // In guarded mode as with an overlay: a documented limit.
    ground.guardctl(&["unseal", "pool"])?;
    rm_is_denied(&lower.join("one"))?;
    denied("truncate, by the pool", truncate(&lower.join("one")))?;
    passes("truncate", truncate(&at("one")))?;
    ensure!(
        fs::metadata(lower.join("one"))?.len() < stored.len() as u64,
        "the pool's file has not been cut"
    );
    passes("rename over", fs::rename(at("other"), at("one")))?;
    passes("unlink", fs::remove_file(at("one")))?;
    passes("rmdir", fs::remove_dir(at("empty")))?;
    ensure!(fs::read_dir(&lower)?.next().is_none(), "the pool still has what was removed");
    Ok(())
}

fn nfsd() -> Result<()> {
    let scratch = Scratch::new("bypass-nfsd")?;
    let ground = Guarded::new("bypass-nfsd", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let exported = Exported::new(pool.path(), &scratch.join("client"))?;
    let at = |name: &str| exported.path().join(name);
    has_content(&at("file0"), CONTENT).context("the client does not see the pool")?;
    fs::create_dir(at("empty")).context("make a directory by NFS")?;
    let deletes = |denies: bool| -> Result<()> {
        let attempts = [
            ("unlink", fs::remove_file(at("file0"))),
            ("rmdir", fs::remove_dir(at("empty"))),
            ("rename over", fs::rename(at("file1"), at("file2"))),
        ];
        for (what, outcome) in attempts {
            let what = format!("{what} by NFS");
            if denies { denied(&what, outcome)? } else { passes(&what, outcome)? }
        }
        Ok(())
    };
    // In guarded mode nobody deletes by NFS; truncation is no deletion, unless policy says so.
    deletes(true)?;
    let decision = ground.wait_for_decision("kernel-thread", "/file0")?;
    ensure!(decision["hook"] == "inode_unlink", "recorded as {decision}");
    passes("truncate by NFS", truncate(&at("file3")))?;
    has_content(&pool.path().join("file3"), "")?;
    let edit = |settings: &str| -> Result<()> {
        ground.installation.write_policy(&ground.policy(settings))?;
        ground.guardctl(&["policy", "reload"]).map(drop)
    };
    edit("truncate = \"guard\"")?;
    denied("truncate by NFS, guarded", truncate(&at("file4")))?;
    denied("O_TRUNC by NFS, guarded", open_truncating(&at("file4")))?;
    has_content(&pool.path().join("file4"), CONTENT)?;
    passes("write by NFS", write_over(&at("file5")))?;
    passes("rename by NFS to a new name", fs::rename(at("file6"), at("new")))?;

    ground.guardctl(&["seal", "pool"])?;
    deletes(true)?;
    denied("truncate by NFS, sealed", truncate(&at("file4")))?;
    denied("O_TRUNC by NFS, sealed", open_truncating(&at("file4")))?;
    has_content(&pool.path().join("file4"), CONTENT)?;
    passes("create by NFS, sealed", fs::write(at("fresh"), "x"))?;
    ground.guardctl(&["unseal", "pool"])?;

    // An exported pool is the clients' to delete in, and no local process's.
    edit("truncate = \"guard\"\nexported = true")?;
    rm_is_denied(&pool.path().join("file0"))?;
    passes("truncate by NFS, exported", truncate(&at("file4")))?;
    deletes(false)?;
    ensure!(!pool.path().join("file0").exists(), "the pool still has what was unlinked by NFS");
    Ok(())
}

/// The client does not look a rename's target up: only the server knows whether something is
/// replaced.
fn nfs() -> Result<()> {
    let scratch = Scratch::new("bypass-nfs")?;
    let ground = Guarded::new("bypass-nfs", "")?;
    ground.installation.write_policy(&ground.policy("").replace("tmpfs", "nfs4"))?;
    let server = Mount::tmpfs(scratch.join("server"))?;
    populate(server.path())?;
    let _agent = ground.installation.start()?;
    let pool = Exported::new(server.path(), &ground.root().join("pool"))?;
    let at = |name: &str| pool.path().join(name);
    ground.wait_for_mode(pool.path(), "guarded")?;
    let forget =
        || fs::write("/proc/sys/vm/drop_caches", "2\n").context("drop the caches of names");
    for mode in ["guarded", "sealed"] {
        if mode == "sealed" {
            ground.guardctl(&["seal", "pool"])?;
        }
        forget()?;
        denied(
            &format!("rename over, not looked up, {mode}"),
            fs::rename(at("file0"), at("file1")),
        )?;
        has_content(&server.path().join("file1"), CONTENT)?;
        denied(&format!("rename over, looked up, {mode}"), fs::rename(at("file2"), at("file3")))?;
        rm_is_denied(&at("file4"))?;
        // A program that asks first, as mv does, is told from one that replaces.
        forget()?;
        ensure!(!at(mode).exists(), "{mode} exists");
        passes(&format!("rename to a new name, {mode}"), fs::rename(at("file5"), at(mode)))?;
        passes(&format!("rename back, {mode}"), {
            ensure!(!at("file5").exists(), "file5 is still there");
            fs::rename(at(mode), at("file5"))
        })?;
        // With RENAME_NOREPLACE nothing is replaced. NFS refuses that flag itself.
        forget()?;
        let cautious = renameat2(
            AT_FDCWD,
            &at("file6"),
            AT_FDCWD,
            &at("file7"),
            RenameFlags::RENAME_NOREPLACE,
        );
        failed_with(
            &format!("RENAME_NOREPLACE, {mode}"),
            cautious.map_err(Into::into),
            Errno::EINVAL,
        )?;
    }
    ground.guardctl(&["unseal", "pool"])?;
    ground.guardctl(&["release", "pool", "--ttl", "1m", "--reason", "test"])?;
    forget()?;
    passes("rename over, released", fs::rename(at("file0"), at("file1")))
}
