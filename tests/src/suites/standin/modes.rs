//! The four modes: the deletions that each denies, and those that it must not.

use std::fs::{self, File};

use anyhow::{Result, ensure};

use crate::harness::attempt::{
    copy_rm, denied, exchange, open_truncating, passes, rm_is_denied, rm_passes, truncate,
    truncate_open,
};
use crate::harness::command;
use crate::harness::guarded::Guarded;
use crate::harness::registry::Test;
use crate::harness::scratch::Scratch;
use crate::harness::tree;

pub(super) const TESTS: &[Test] = &[
    Test::new("modes_guarded_denies_deletion_and_allows_all_else", guarded),
    Test::new("modes_guarded_with_truncate_guard_denies_truncation", guarded_truncation),
    Test::new("modes_sealed_denies_everyone_and_truncation", sealed),
    Test::new("modes_observed_allows_and_records_would_deny", observed),
    Test::new("modes_release_and_seal_are_the_operators_and_audited", released),
];

fn guarded() -> Result<()> {
    let ground = Guarded::new("guarded", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let at = |name: &str| pool.path().join(name);

    denied("unlink", fs::remove_file(at("file0")))?;
    fs::create_dir(at("empty"))?;
    denied("rmdir", fs::remove_dir(at("empty")))?;
    denied("rename over a file", fs::rename(at("file1"), at("file2")))?;
    denied("rename over a directory", fs::rename(at("volume"), at("empty")))?;
    denied("exchange", exchange(&at("file1"), &at("volume")))?;
    fs::write(ground.root().join("outside"), "")?;
    rm_is_denied(&at("volume"))?;
    rm_is_denied(ground.root())?;
    ensure!(tree::count(pool.path())? == 20, "{} of 20 files are left", tree::count(pool.path())?);

    passes("create", File::create_new(at("new")))?;
    passes("write", fs::write(at("new"), "more"))?;
    passes("rename without replacing", fs::rename(at("new"), at("renamed")))?;
    passes("link", fs::hard_link(at("renamed"), at("linked")))?;
    passes("O_TRUNC", open_truncating(&at("renamed")))?;
    passes("truncate", truncate(&at("renamed")))?;
    passes("ftruncate", truncate_open(&at("renamed")))?;
    ensure!(
        !ground.root().join("outside").exists(),
        "rm left what is below the root and in no pool"
    );
    Ok(())
}

fn guarded_truncation() -> Result<()> {
    let ground = Guarded::new("guarded-truncation", "truncate = \"guard\"")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let file = pool.path().join("file0");
    denied("O_TRUNC", open_truncating(&file))?;
    denied("truncate", truncate(&file))?;
    denied("ftruncate", truncate_open(&file))?;
    ensure!(fs::read_to_string(&file)? == "content\n", "the content is gone");
    passes("write", fs::write(pool.path().join("new"), "x"))?;
    let outside = ground.root().join("outside");
    fs::write(&outside, "x")?;
    passes("truncate outside", truncate(&outside))?;
    passes("unlink outside", fs::remove_file(&outside))
}

fn sealed() -> Result<()> {
    let scratch = Scratch::new("sealed-actor")?;
    let actor = scratch.join("rm");
    copy_rm(&actor)?;
    let settings = format!(
        "mode = \"sealed\"\nactors = [{{ executable = \"{}\" \
         }}]",
        actor.display()
    );
    let ground = Guarded::new("sealed", &settings)?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let at = |name: &str| pool.path().join(name);

    denied("unlink", fs::remove_file(at("file0")))?;
    command::run_failing(&actor.to_string_lossy(), &["-f", &at("file0").to_string_lossy()])?;
    rm_is_denied(&at("volume"))?;
    denied("exchange", exchange(&at("file1"), &at("file2")))?;
    denied("O_TRUNC", open_truncating(&at("file3")))?;
    denied("truncate", truncate(&at("file3")))?;
    denied("ftruncate", truncate_open(&at("file3")))?;
    ensure!(fs::read_to_string(at("file3"))? == "content\n", "the content is gone");
    ensure!(tree::count(pool.path())? == 20, "{} of 20 files are left", tree::count(pool.path())?);

    passes("create and write", fs::write(at("new"), "x"))?;
    passes("rename without replacing", fs::rename(at("new"), at("renamed")))?;
    let outside = ground.root().join("outside");
    fs::write(&outside, "x")?;
    rm_passes(&outside)?;
    ensure!(
        ground.wait_for_decision("sealed", "/file0")?["mode"] == "sealed",
        "recorded with another mode"
    );
    Ok(())
}

fn observed() -> Result<()> {
    let ground = Guarded::new("observed", "mode = \"observed\"")?;
    let _agent = ground.installation.start()?;
    // A root that only observes says so: its status is not that of a protected host.
    ensure!(
        ground.status()?["posture"]["state"] == "audit-only",
        "{}",
        ground.status()?["posture"]
    );
    let pool = ground.pool("pool")?;
    let before = ground.counter("would_deny")?;
    rm_passes(&pool.path().join("file0"))?;
    passes("rename over", fs::rename(pool.path().join("file1"), pool.path().join("file2")))?;
    rm_passes(&pool.path().join("volume"))?;
    let decision = ground.wait_for_decision("guarded", "/file0")?;
    ensure!(
        decision["verdict"] == "would-deny" && decision["mode"] == "observed",
        "recorded as {decision}"
    );
    // Ten files and their directory, one file, one replaced: exactly so many would have been
    // denied.
    let counted = ground.counter("would_deny")? - before;
    ensure!(counted == 13, "{counted} of 13 were counted");
    Ok(())
}

fn released() -> Result<()> {
    let ground = Guarded::new("released", "")?;
    let _agent = ground.installation.start()?;
    let (pool, other) = (ground.pool("pool")?, ground.pool("other")?);
    let at = |name: &str| pool.path().join(name);
    rm_is_denied(&at("file0"))?;

    let lease = ground
        .installation
        .guardctl_json(&["release", "pool", "--ttl", "10m", "--reason", "test"])?;
    rm_passes(&at("file0"))?;
    rm_is_denied(&other.path().join("file0"))?;
    let leases = ground.installation.guardctl_json(&["lease", "list"])?;
    ensure!(leases[0]["id"] == lease["id"] && leases[0]["reason"] == "test", "listed are {leases}");
    let decision = ground.wait_for_decision("released", "/file0")?;
    ensure!(
        decision["verdict"] == "allowed" && decision["pool"] == "pool",
        "recorded as {decision}"
    );
    let granted = ground.wait_for_record("the lease", |r| {
        r["kind"] == "lease" && r["lease"]["change"] == "granted"
    })?;
    ensure!(
        granted["lease"]["reason"] == "test" && granted["lease"]["uid"] == 0,
        "recorded as {granted}"
    );

    ground.guardctl(&["lease", "revoke", lease["id"].as_str().unwrap_or_default()])?;
    rm_is_denied(&at("file1"))?;
    ground.wait_for_record("the end", |r| {
        r["kind"] == "lease" && r["lease"]["change"] == "revoked"
    })?;
    ensure!(
        ground.installation.guardctl_json(&["lease", "list"])? == serde_json::json!([]),
        "still listed"
    );

    ground.guardctl(&["seal", &pool.path().to_string_lossy()])?;
    denied("truncation in a sealed pool", truncate(&at("file2")))?;
    passes("truncation in the other", truncate(&other.path().join("file2")))?;
    ground.guardctl(&["unseal", "pool"])?;
    passes("truncation after unseal", truncate(&at("file2")))?;
    rm_is_denied(&at("file2"))?;
    for wrong in [
        ["release", "pool", "--ttl", "25h", "--reason", "x"],
        ["release", "none", "--ttl", "1m", "--reason", "x"],
    ] {
        let refused = ground.installation.guardctl(&wrong)?;
        ensure!(refused.status.code() == Some(6), "{wrong:?}: {}", command::text(&refused));
    }
    Ok(())
}
