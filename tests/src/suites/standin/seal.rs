//! An operator's seal, in any state of the agent's files; and a node whose root is a link.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::node::{ground, is_sealed, member, wait_until_guarded};
use crate::harness::guarded::{Guarded, exit_code};
use crate::harness::mount::mountinfo_of;
use crate::harness::registry::Test;
use crate::harness::standin_node::{StandinNode, settings};
use crate::harness::{command, wait};

pub(super) const TESTS: &[Test] = &[
    Test::new("seal_on_a_member_survives_damaged_state_files", damaged).within_seconds(300),
    Test::new("recovery_of_a_node_whose_root_is_a_link", linked_root).within_seconds(240),
];

/// Codes of the posture's reasons.
fn reasons(ground: &Guarded) -> Result<Vec<String>> {
    let status = ground.status()?;
    let reasons = status["posture"]["reasons"].as_array().context("a posture without reasons")?;
    let codes = reasons.iter().filter_map(|reason| reason["code"].as_str().map(str::to_owned));
    Ok(codes.collect())
}

fn damaged() -> Result<()> {
    let (ground, mut node) = ground("seal-damaged", "")?;
    node.start()?;
    let agent = ground.installation.start()?;
    let pool = member(&ground, &mut node)?;
    ground.guardctl(&["seal", "shared"])?;
    is_sealed(&node, pool.path())?;
    ensure!(agent.stop()?.success(), "the agent did not end well");

    // One file is cut: nothing is lost.
    let files =
        ["state.json", "state.json.copy"].map(|name| ground.installation.state_dir().join(name));
    let cut = |file: &PathBuf| {
        let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
        fs::write(file, &text[..text.len() / 8])
            .with_context(|| format!("write {}", file.display()))
    };
    cut(&files[0])?;
    let agent = ground.installation.start()?;
    node.wait_for_state(&ground, "joined")?;
    is_sealed(&node, pool.path())?;
    ensure!(!reasons(&ground)?.contains(&"state-lost".to_owned()), "{:?}", reasons(&ground)?);
    wait::until("both files are whole again", wait::LIMIT, || {
        let whole =
            |file| serde_json::from_slice::<Value>(&fs::read(file).unwrap_or_default()).is_ok();
        Ok(files.iter().all(whole))
    })?;
    agent.kill()?;

    // Both are: the seal is found in the kernel's maps, although the node's state would have it
    // guarded.
    files.iter().try_for_each(cut)?;
    let _agent = ground.installation.start()?;
    node.wait_for_state(&ground, "joined")?;
    is_sealed(&node, pool.path())?;
    ensure!(reasons(&ground)?.contains(&"state-lost".to_owned()), "{:?}", reasons(&ground)?);
    ground.guardctl(&["unseal", "shared"])?;
    wait_until_guarded(&ground, &node, pool.path())?;
    ensure!(!reasons(&ground)?.contains(&"state-lost".to_owned()), "{:?}", reasons(&ground)?);
    Ok(())
}

fn linked_root() -> Result<()> {
    let unit = "linked-root.service";
    let ground = Guarded::new("linked-root", &settings(unit))?;
    let node = StandinNode::new(ground.root(), unit)?;
    node.write_config(Some("10.0.0.9:8443"), 0)?;
    let link = ground.root().with_extension("link");
    let _ = fs::remove_file(&link);
    symlink(ground.root(), &link).with_context(|| format!("link {}", link.display()))?;
    let written = ground.root().display().to_string();
    let policy = ground.policy(&settings(unit)).replace(&written, &link.display().to_string());
    ground.installation.write_policy(&policy)?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("shared")?;
    ground.wait_for_mode(pool.path(), "sealed")?;

    // Found below the directory that the link leads to, by either name.
    for root in [&link, &ground.root().to_owned()] {
        let root = root.display().to_string();
        let output = ground.installation.guardctl(&["preflight", "--json", "--root", &root])?;
        let text = command::text(&output);
        let checks: Vec<Value> =
            serde_json::from_slice(&output.stdout).with_context(|| format!("parse: {text}"))?;
        let is_found = checks
            .iter()
            .any(|check| check["code"] == "leftover-mounts" && check["state"] == "fail");
        ensure!(exit_code(&output)? == 7 && is_found, "{root}: {text}");
    }
    let text = ground.guardctl(&["wipe", "--dry-run"])?;
    ensure!(text.contains("roll back pools: shared at") && !text.contains("IN THE WAY"), "{text}");
    let text = ground.guardctl(&["wipe", "--yes"])?;
    ensure!(text.contains("is empty") && mountinfo_of(pool.path())?.is_empty(), "{text}");
    ensure!(fs::read_dir(ground.root())?.next().is_none(), "something is left: {text}");
    ensure!(fs::symlink_metadata(&link)?.is_symlink(), "the link itself is gone");
    fs::remove_file(&link).with_context(|| format!("remove {}", link.display()))
}
