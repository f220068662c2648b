//! `guardctl wipe`: empties a node's directory for a fresh start, without ever crossing a mount. Without `--yes` it
//! only says what it would do.
//!
//! The order: stop Incus, have the agent unmount what a join left and prove that it is gone, unmount what Incus had
//! mounted for itself, delete. Each step that does not come out well ends it, and the same command goes on later.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::node::{self, Node, NodeError};
use super::rollback::{self, Follow};
use super::stop::{self, Say, Stop, StopArgs};
use super::text::safe;
use super::{CliError, Global, expect_reply, parse_duration, text, write_json};
use crate::control::report::{PoolReport, RollbackReport};
use crate::control::{Reply, Request};
use crate::exit::Exit;
use crate::incus;
use crate::join::Daemon;
use crate::rollback::helper::{Helper, UnmountArgs};
use crate::rollback::{Allowed, UnmountOutcome};
use crate::roots;
use crate::service::Manager;
use crate::wait::Interrupt;
use crate::wipe::instances::Instance;
use crate::wipe::local_pools::{self, LocalPool};
use crate::wipe::{self, Census, Deleted, InTheWay, MountsBelow, OwnMount, Root};

#[derive(Debug, clap::Args)]
pub struct WipeArgs {
    /// The node's guarded root; may be left out if there is only one node.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Only say what would be done (the default).
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// Do it.
    #[arg(long)]
    pub yes: bool,
    /// Detach pools that are busy. Their superblocks must be gone all the same before anything is deleted.
    #[arg(long)]
    pub lazy: bool,
    /// Delete images of local pools too, and the database that knows local ZFS and LVM pools.
    #[arg(long)]
    pub despite_local_pools: bool,
    #[command(flatten)]
    pub stop: StopArgs,
    /// How long to follow a rollback, which goes on in the agent afterwards.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    pub wait: Duration,
}

/// What would be done.
#[derive(Debug, Serialize)]
pub struct Plan {
    pub root: PathBuf,
    /// What would be stopped: the daemon's unit with its sockets, or its process.
    pub unit: Option<String>,
    pub daemon: Daemon,
    /// Pools that would be rolled back.
    pub pools: Vec<String>,
    /// What Incus has mounted for itself, and would be unmounted.
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

/// What was done.
#[derive(Debug, Default, Serialize)]
pub struct Done {
    pub root: PathBuf,
    pub rollback: Option<RollbackReport>,
    pub unmounted: Vec<PathBuf>,
    pub deleted: Deleted,
    /// What was started again.
    pub started: Vec<String>,
}

/// Shows the plan, or carries it out.
pub fn run(global: &Global, args: &WipeArgs, out: &mut impl Write) -> Result<Exit, CliError> {
    let node = Node::find(global, args.root.as_deref())?;
    node::require_host()?;
    if roots::is_on_network(&node.root, &node::mount_table()?) {
        return Err(NodeError::OnNetwork { root: node.root }.into());
    }
    if args.yes { wipe(global, args, &node, out) } else { dry_run(global, &node, out) }
}

fn dry_run(global: &Global, node: &Node, out: &mut impl Write) -> Result<Exit, CliError> {
    let plan = plan(global, node)?;
    if global.json {
        write_json(out, &plan)?;
    } else {
        out.write_all(render(&plan).as_bytes())?;
    }
    Ok(if plan.obstacles.is_empty() { Exit::Ok } else { Exit::Degraded })
}

fn plan(global: &Global, node: &Node) -> Result<Plan, CliError> {
    let snapshot = node::mount_table()?;
    let MountsBelow { own, in_the_way } = wipe::below(&snapshot, &node.root);
    let pools = pools(global, node)?;
    let is_pool = |mount: &InTheWay| pools.iter().any(|pool| pool.device == mount.device);
    let mut obstacles: Vec<Obstacle> =
        in_the_way.into_iter().filter(|mount| !is_pool(mount)).map(Obstacle::Mount).collect();
    let ticks = crate::events::process::ticks_per_second();
    let daemon = incus::sight(&node.incus, &snapshot, ticks).daemon;
    let pid = match &daemon {
        Daemon::Running { incarnation, .. } => Some(incarnation.pid),
        Daemon::Stopped | Daemon::Unknown => None,
    };
    obstacles.extend(stop::instances(node, pid)?.into_iter().map(Obstacle::Instance));
    obstacles.extend(local_pools(node)?.into_iter().map(Obstacle::LocalPool));
    Ok(Plan {
        unit: (Manager::of_host() == Manager::Systemd).then(|| node.unit.clone()),
        daemon,
        pools: pools.iter().map(|pool| format!("{} at {}", pool.name, pool.mountpoints.join(", "))).collect(),
        unmounts: own,
        obstacles,
        census: wipe::census(&Root::open(&node.root)?, &node.root)?,
        root: node.root.clone(),
    })
}

fn pools(global: &Global, node: &Node) -> Result<Vec<PoolReport>, CliError> {
    let pools = expect_reply!(global, Request::Pools, Reply::Pools(pools) => pools);
    Ok(pools
        .into_iter()
        .filter(|pool| pool.root.as_deref().is_some_and(|root| Path::new(root) == node.root))
        .collect())
}

fn local_pools(node: &Node) -> Result<Vec<LocalPool>, NodeError> {
    let snapshot = node::mount_table()?;
    let found = local_pools::find(&node.root, &snapshot, Path::new("/proc"), Path::new("/sys"));
    found.map_err(|source| NodeError::Io { operation: "look for local pools", source })
}

fn render(plan: &Plan) -> String {
    let root = safe(&plan.root.display().to_string());
    let mut text = format!("guardctl wipe --yes would empty {root}:\n");
    let running = if matches!(plan.daemon, Daemon::Stopped) { "Incus does not run" } else { "Incus runs" };
    let stop = match &plan.unit {
        Some(unit) => format!("keep {unit} from starting, stop it and its sockets"),
        None => "SIGTERM to incusd".to_owned(),
    };
    text.push_str(&format!("  1. {stop} ({running})\n"));
    let or_none = |list: Vec<String>| if list.is_empty() { "none".to_owned() } else { list.join("; ") };
    text.push_str(&format!(
        "  2. roll back pools: {}\n",
        or_none(plan.pools.iter().map(|pool| safe(pool)).collect())
    ));
    let own =
        |mount: &OwnMount| format!("{} ({})", safe(&mount.mountpoint.display().to_string()), mount.fs_type);
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
        text.push_str(&format!("     counted up to the mountpoint {}\n", safe(&path.display().to_string())));
    }
    for failure in &plan.census.failures {
        text.push_str(&format!("     not counted: {}\n", safe(failure)));
    }
    for obstacle in &plan.obstacles {
        text.push_str(&match obstacle {
            Obstacle::Mount(mount) => format!(
                "IN THE WAY: {} ({} {}) is neither a pool nor Incus's own: unmount it if it may go\n",
                safe(&mount.mountpoint.display().to_string()),
                safe(&mount.fs_type),
                safe(&mount.source)
            ),
            Obstacle::Instance(instance) => format!(
                "IN THE WAY: {}: stop it (incus stop NAME), or let this command stop all: --stop-instances\n",
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
fn size(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}

fn wipe(global: &Global, args: &WipeArgs, node: &Node, out: &mut impl Write) -> Result<Exit, CliError> {
    let interrupt = Interrupt::catch()?;
    let mut say = |line: &str| if global.json { Ok(()) } else { Ok(writeln!(out, "{line}")?) };
    let stop = Stop { node, args: &args.stop, interrupt: &interrupt };
    may_wipe(global, args, node)?;
    let hold = stop.stop(&mut say)?.hold;
    let mut done = Done { root: node.root.clone(), ..Done::default() };
    if !pools(global, node)?.is_empty() {
        let follow = Follow { global, interrupt: &interrupt, limit: args.wait };
        let allowed = Allowed { lazy: args.lazy, force: false };
        let report = follow.carry_out(&node.root, allowed, &mut say)?;
        let released = rollback::is_released(&report);
        say(rollback::verdict(&report).trim_end())?;
        done.rollback = Some(report);
        if !released {
            say("nothing was deleted: first the pools must be gone")?;
            hold.iter().try_for_each(|hold| say(&stop::held(hold)))?;
            return finish(global, &done, None, out);
        }
    }
    let result = empty(node, &interrupt, &mut done, &mut say);
    // An empty directory is a fresh node's: there is nothing that Incus could mount.
    if result.is_ok() && done.deleted.failed == 0 {
        if let Some(hold) = &hold {
            stop.lift(hold, &mut say)?;
            done.started = stop.start(&hold.ran, &mut say)?;
        }
    } else {
        hold.iter().try_for_each(|hold| say(&stop::held(hold)))?;
    }
    finish(global, &done, result.err(), out)
}

/// Asked before anything is stopped.
fn may_wipe(global: &Global, args: &WipeArgs, node: &Node) -> Result<(), CliError> {
    let running = stop::instances(node, None)?;
    if !running.is_empty() && !args.stop.stop_instances {
        return Err(NodeError::instances(node, &running).into());
    }
    let local = local_pools(node)?;
    if !local.is_empty() && !args.despite_local_pools {
        let pools = local.iter().map(|pool| format!("{} (fix: {})", pool.describe(), pool.fix())).collect();
        return Err(NodeError::LocalPools { root: node.root.clone(), pools }.into());
    }
    if !pools(global, node)?.is_empty() {
        rollback::ask(global, &node.root)?;
    }
    Ok(())
}

fn empty(node: &Node, interrupt: &Interrupt, done: &mut Done, say: &mut Say<'_>) -> Result<(), CliError> {
    done.unmounted = unmount_own(node, say)?;
    let snapshot = node::mount_table()?;
    if let Some(mount) = wipe::below(&snapshot, &node.root).in_the_way.first() {
        return Err(wipe::WipeError::Mountpoint { path: mount.mountpoint.clone() }.into());
    }
    let root = Root::open(&node.root)?;
    let (deleted, result) = wipe::delete(&root, &mut |so_far| {
        let count = so_far.files + so_far.directories;
        say(&format!("{count} deleted …")).is_ok() && !interrupt.came()
    });
    done.deleted = deleted;
    Ok(result?)
}

fn unmount_own(node: &Node, say: &mut Say<'_>) -> Result<Vec<PathBuf>, CliError> {
    let helper = Helper::this_program();
    let limit = crate::rollback::Limits::default().unmount;
    let mut unmounted = Vec::new();
    for mount in wipe::below(&node::mount_table()?, &node.root).own {
        let OwnMount { mount_id, dev, mountpoint, .. } = mount;
        let path = mountpoint.clone();
        let args = UnmountArgs { mount_id, dev, lazy: false, enter: false, mountpoint };
        let outcome = helper.unmount(&args, None, limit).map_err(CliError::Helper)?;
        say(&format!("Incus's own: {}: {outcome}", safe(&path.display().to_string())))?;
        if matches!(outcome, UnmountOutcome::Unmounted | UnmountOutcome::Gone) {
            unmounted.push(path);
            continue;
        }
        return Err(wipe::WipeError::Mountpoint { path }.into());
    }
    Ok(unmounted)
}

fn finish(
    global: &Global,
    done: &Done,
    error: Option<CliError>,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let released = done.rollback.as_ref().is_none_or(rollback::is_released);
    if global.json {
        write_json(out, done)?;
    } else if released {
        let Deleted { files, directories, failures, failed } = &done.deleted;
        writeln!(out, "deleted: {files} files, {directories} directories")?;
        for failure in failures {
            let path = safe(&failure.path.display().to_string());
            writeln!(out, "stays: {path}: {} (fix: {})", safe(&failure.error), safe(&failure.fix))?;
        }
        if *failed > failures.len() as u64 {
            writeln!(out, "stays: {} more", failed - failures.len() as u64)?;
        }
        if error.is_none() && *failed == 0 {
            writeln!(out, "{} is empty", safe(&done.root.display().to_string()))?;
        }
    }
    match error {
        Some(error) => Err(error),
        None if released && done.deleted.failed == 0 => Ok(Exit::Ok),
        None => Ok(Exit::Failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wipe::Part;

    #[test]
    fn the_plan_names_every_step_and_what_is_in_the_way() {
        let part = Part { files: 3, directories: 1, bytes: 5 << 20 };
        let census = Census {
            all: part,
            parts: [("storage-pools".to_owned(), part)].into(),
            stopped_at: Some(PathBuf::from("/var/lib/incus/storage-pools/shared")),
            ..Census::default()
        };
        let plan = Plan {
            root: PathBuf::from("/var/lib/incus"),
            unit: Some("incus.service".to_owned()),
            daemon: Daemon::Stopped,
            pools: vec!["shared at /var/lib/incus/storage-pools/shared".to_owned()],
            unmounts: vec![OwnMount {
                mount_id: 4,
                dev: 51,
                mountpoint: PathBuf::from("/var/lib/incus/devices"),
                fs_type: "tmpfs".to_owned(),
            }],
            obstacles: vec![Obstacle::Mount(InTheWay {
                mountpoint: PathBuf::from("/var/lib/incus/x"),
                fs_type: "ext4".to_owned(),
                source: "/dev/vdb".to_owned(),
                device: "8:17".to_owned(),
            })],
            census,
        };
        let text = render(&plan);
        for part in [
            "1. keep incus.service from starting, stop it and its sockets (Incus does not run)",
            "2. roll back pools: shared at",
            "3. unmount Incus's own: /var/lib/incus/devices (tmpfs)",
            "4. delete 3 files and 1 directories, 5.0 MiB",
            "counted up to the mountpoint /var/lib/incus/storage-pools/shared",
            "IN THE WAY: /var/lib/incus/x (ext4 /dev/vdb)",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn sizes() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 40, "3.0 TiB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
