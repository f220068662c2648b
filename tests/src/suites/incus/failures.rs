//! The table of failed joins: each way in which a join ends without membership, and an operator's
//! next steps. Judged by the files that the independent mount sees.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::harness::incus::Stage;
use crate::harness::incus::Step;
use crate::harness::incus::cluster::{pool_mounts, remember_old_member};
use crate::harness::incus::machine::{self, JOINER_ADDRESS};
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] = &[
    case("killed_after_the_mount", killed_after_mount),
    case("killed_after_the_seed_accepted", killed_when_accepted).only_in_full(),
    case("killed_in_the_raft_join", killed_in_raft).only_in_full(),
    case("killed_while_migrating", killed_while_migrating).only_in_full(),
    case("link_down_after_the_mount", link_down_after_mount).only_in_full(),
    case("link_down_in_the_raft_join_and_joined_again", link_down_in_raft).only_in_full(),
    case("name_conflict", name_conflict).only_in_full(),
    case("mount_error", mount_error).only_in_full(),
    case("member_removed_by_force_while_away", removed_by_force).only_in_full(),
    case("online_member_removed", removed_online).only_in_full(),
];

const fn case(name: &'static str, body: fn() -> Result<()>) -> Test {
    Test::new(name, body).within_seconds(900)
}

/// Possible states of a failed join; always sealed.
const FAILED: &[&str] = &["join-failed", "join-partial"];

fn killed_after_mount() -> Result<()> {
    let mut stage = Stage::new("SIGKILL after the mount")?;
    ensure!(
        stage.join_killed_at("node2", Step::Mounted)?,
        "the pool is not mounted after the kill"
    );
    stage.becomes(&["join-failed"], "sealed")?;
    stage.clean_up()?;
    ensure!(stage.denied()? > 0, "nothing was denied");
    stage.note("restarted, storage delete, stopped, rm -rf")
}

fn killed_when_accepted() -> Result<()> {
    let mut stage = Stage::new("SIGKILL after the seed accepted")?;
    stage.join_killed_at("node2", Step::Accepted)?;
    stage.becomes(FAILED, "sealed")?;
    stage.clean_up()?;
    stage.note("restarted, storage delete, stopped, rm -rf")
}

fn killed_in_raft() -> Result<()> {
    let mut stage = Stage::new("SIGKILL in the raft join")?;
    stage.join_killed_at("node2", Step::Raft)?;
    stage.becomes(&["join-partial"], "sealed")?;
    stage.clean_up()?;
    stage.note("storage delete as far as incusd came up, stopped, rm -rf")
}

fn killed_while_migrating() -> Result<()> {
    let mut stage = Stage::new("SIGKILL while migrating")?;
    stage.join_killed_at("node2", Step::Migrating)?;
    stage.becomes(&["join-partial"], "sealed")?;
    // Started again it may well be a member: it has nothing to clean up then.
    stage.remove_directory()?;
    stage.note("rm -rf")
}

fn link_down_after_mount() -> Result<()> {
    let mut stage = Stage::new("link down after the mount")?;
    let joined = stage.join_and("node2", Step::Mounted, || machine::link(false))?;
    ensure!(!joined.success, "the join succeeded without a link");
    ensure!(!pool_mounts()?.is_empty(), "the failed join left no pool mounted: {}", joined.text);
    // incusd may wait for the seed longer than its client did.
    stage.becomes(&["join-failed", "join-partial", "joining"], "sealed")?;
    stage.joiner()?.kill()?;
    stage.becomes(FAILED, "sealed")?;
    machine::link(true)?;
    stage.clean_up()?;
    stage.note("SIGKILL, restarted, storage delete, stopped, rm -rf")
}

fn link_down_in_raft() -> Result<()> {
    let mut stage = Stage::new("link down in the raft join, joined again")?;
    let joined = stage.join_and("node2", Step::Raft, || machine::link(false))?;
    ensure!(!joined.success, "the join succeeded without a link");
    // The operation may still hang; it is over, or it runs: sealed in any case.
    stage.becomes(&["join-failed", "join-partial", "joining"], "sealed")?;
    machine::link(true)?;
    let again = stage.join("node2b").and_then(|joining| joining.end());
    if let Ok(again) = &again {
        ensure!(!again.success, "a broken node joined again");
    }
    stage.becomes(&["join-failed", "join-partial", "joining"], "sealed")?;
    stage.clean_up()?;
    stage.note("joined again in vain, storage delete, stopped, rm -rf")
}

fn name_conflict() -> Result<()> {
    let mut stage = Stage::new("name conflict")?;
    let preseed = crate::harness::incus::join::preseed(&stage.seed, "node2")?;
    remember_old_member(&stage.seed, "node2", "10.0.2.99")?;
    let said = crate::harness::incus::join::begin("node2", &preseed)?.fails()?;
    stage.becomes(FAILED, "sealed").with_context(|| format!("the join said: {said}"))?;
    stage.clean_up()?;
    stage.note("storage delete, stopped, rm -rf")
}

fn mount_error() -> Result<()> {
    const KEYRING: &str = "/etc/ceph/ceph.client.admin.keyring";
    let mut stage = Stage::new("mount error")?;
    let keyring = fs::read(KEYRING).with_context(|| format!("read {KEYRING}"))?;
    fs::write(KEYRING, "[client.admin]\n\tkey = AQAAAAAAAAAAABAAAAAAAAAAAAAAAAAAAAAAAA==\n")?;
    let ended = stage.join("node2").and_then(|joining| joining.fails());
    fs::write(KEYRING, keyring).with_context(|| format!("restore {KEYRING}"))?;
    let said = ended?;
    ensure!(pool_mounts()?.is_empty(), "the pool is mounted: {said}");
    stage.becomes(FAILED, "sealed")?;
    stage.clean_up()?;
    stage.note("storage delete, stopped, rm -rf")
}

fn removed_by_force() -> Result<()> {
    let mut stage = Stage::new("member removed by force while away")?;
    stage.join("node2")?.succeeds()?;
    stage.becomes(&["joined"], "guarded")?;
    stage.joiner()?.stop()?;
    stage.forget_member("node2")?;
    // Nobody tells the node. A member without its daemon keeps its guests' mode; nobody else
    // deletes.
    stage.becomes(&["unconfirmed"], "guarded")?;
    stage.remove_directory()?;
    stage.note("rm -rf")
}

fn removed_online() -> Result<()> {
    let mut stage = Stage::new("online member removed")?;
    let address = format!("{JOINER_ADDRESS}:8443");
    stage.join("node2")?.succeeds()?;
    stage.becomes(&["joined"], "guarded")?;
    stage.seed.client(&["cluster", "remove", "node2", "--yes"])?;
    let members = stage.seed.client(&["cluster", "list", "--format", "csv"])?;
    ensure!(!members.contains(&address), "still a member: {members}");
    // Its cluster address stays set, as after a join that failed; but no join has.
    stage.becomes(&["left"], "guarded")?;
    stage.stop_joiner()?;
    stage.remove_directory()?;
    stage.note("stopped, rm -rf")
}
