//! The plan of `guardctl wipe`, and the obstacles to it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::{CliError, NodeError};
use super::global::Global;
use super::node::{self, Node};
use super::rollback::pools;
use super::stop;
use super::text::{self, safe};
use crate::host::service::Manager;
use crate::host::wipe;
use crate::host::wipe::instances::Instance;
use crate::host::wipe::local_pools;
use crate::host::wipe::local_pools::LocalPool;
use crate::host::wipe::{Census, InTheWay, MountsBelow, OwnMount, Root};
use crate::model::join::Daemon;

/// Plan of a wipe.
#[derive(Debug, Serialize)]
pub struct Plan {
    pub root: PathBuf,
    /// Target of the stop: the daemon's unit with its sockets, or its process.
    pub unit: Option<String>,
    pub daemon: Daemon,
    /// Pools that would be rolled back.
    pub pools: Vec<String>,
    /// Mounts that Incus made for itself, and that would be unmounted.
    pub unmounts: Vec<OwnMount>,
    pub obstacles: Vec<Obstacle>,
    pub census: Census,
}

/// Why it would not be done now.
#[derive(Debug, Serialize)]
#[serde(tag = "obstacle", rename_all = "kebab-case")]
pub enum Obstacle {
    /// A mount that is neither a pool nor Incus's own.
    Mount(InTheWay),
    /// An instance runs.
    Instance(Instance),
    /// A local pool that no mount shows.
    LocalPool(LocalPool),
}

/// The local pools that no mount shows.
pub(super) fn local_pools(node: &Node) -> Result<Vec<LocalPool>, NodeError> {
    let snapshot = node::mount_table()?;
    let root = &node.place;
    let found = local_pools::find(root, &snapshot, &node.incus.proc_root, Path::new("/sys"));
    found.map_err(|source| NodeError::Io { operation: "look for local pools", source })
}

/// Looks at everything, and changes nothing.
pub fn plan(global: &Global, node: &Node) -> Result<Plan, CliError> {
    let (snapshot, place) = (node::mount_table()?, &node.place);
    let MountsBelow { own, in_the_way } = wipe::below(&snapshot, place);
    let pools = pools(global, node)?;
    let is_pool = |mount: &InTheWay| pools.iter().any(|pool| pool.device == mount.device);
    let mut obstacles: Vec<Obstacle> =
        in_the_way.into_iter().filter(|mount| !is_pool(mount)).map(Obstacle::Mount).collect();
    obstacles.extend(
        stop::instances(node, stop::daemon_pid(node)?)?.into_iter().map(Obstacle::Instance),
    );
    obstacles.extend(local_pools(node)?.into_iter().map(Obstacle::LocalPool));
    Ok(Plan {
        unit: (Manager::of_host() == Manager::Systemd).then(|| node.unit.clone()),
        daemon: stop::daemon(node)?,
        pools: pools
            .iter()
            .map(|pool| format!("{} at {}", pool.name, pool.mountpoints.join(", ")))
            .collect(),
        unmounts: own,
        obstacles,
        census: wipe::census(&Root::open(place)?, place)?,
        root: node.root.clone(),
    })
}

/// As text.
pub fn render(plan: &Plan) -> String {
    let root = safe(&plan.root.display().to_string());
    let mut text = format!("guardctl wipe --yes would empty {root}:\n");
    let running =
        if matches!(plan.daemon, Daemon::Stopped) { "Incus does not run" } else { "Incus runs" };
    let stop = match &plan.unit {
        Some(unit) => format!("keep {unit} from starting, stop it and its sockets"),
        None => "SIGTERM to incusd".to_owned(),
    };
    text.push_str(&format!("  1. {stop} ({running})\n"));
    let or_none = |list: Vec<String>| {
        if list.is_empty() { "none".to_owned() } else { list.join("; ") }
    };
    text.push_str(&format!(
        "  2. roll back pools: {}\n",
        or_none(plan.pools.iter().map(|pool| safe(pool)).collect())
    ));
    let own = |mount: &OwnMount| {
        format!("{} ({})", safe(&mount.mountpoint.display().to_string()), mount.fs_type)
    };
    text.push_str(&format!(
        "  3. unmount Incus's own: {}\n",
        or_none(plan.unmounts.iter().map(own).collect())
    ));
    let all = plan.census.all;
    text.push_str(&format!(
        "  4. delete {} files and {} directories, {}\n",
        all.files,
        all.directories,
        size(all.bytes)
    ));
    let mut rows = vec![["IN", "FILES", "DIRECTORIES", "SIZE"].map(str::to_owned).to_vec()];
    rows.extend(plan.census.parts.iter().map(|(name, part)| {
        vec![safe(name), part.files.to_string(), part.directories.to_string(), size(part.bytes)]
    }));
    if rows.len() > 1 {
        text.push_str(&text::table("     ", &rows));
    }
    if let Some(path) = &plan.census.stopped_at {
        text.push_str(&format!(
            "     counted up to the mountpoint \
             {}\n",
            safe(&path.display().to_string())
        ));
    }
    for failure in &plan.census.failures {
        text.push_str(&format!("     not counted: {}\n", safe(failure)));
    }
    for obstacle in &plan.obstacles {
        text.push_str(&match obstacle {
            Obstacle::Mount(mount) => format!(
                "IN THE WAY: {} ({} {}) is neither a pool nor Incus's own: unmount it if it may \
                 go\n",
                safe(&mount.mountpoint.display().to_string()),
                safe(&mount.fs_type),
                safe(&mount.source)
            ),
            Obstacle::Instance(instance) => format!(
                "IN THE WAY: {}: stop it (incus stop NAME), or let this command stop all: \
                 --stop-instances\n",
                safe(&instance.to_string())
            ),
            Obstacle::LocalPool(pool) => {
                format!("IN THE WAY: {}\n  fix: {}\n", safe(&pool.describe()), safe(&pool.fix()))
            }
        });
    }
    text
}

/// In the unit that leaves at least one digit before the point.
pub(super) fn size(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}
