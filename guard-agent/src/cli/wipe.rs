//! `guardctl wipe`: empties a node's directory for a fresh start, without ever crossing a mount.
//! Without `--yes` it only shows its plan.
//!
//! The order: stop Incus, have the agent unmount a join's remains and prove that they are gone,
//! unmount Incus's own mounts, delete. A failed step ends the wipe, and the same command goes on
//! later.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::error::{CliError, NodeError};
use super::follow::Follow;
use super::global::{Global, parse_duration, write_json};
use super::node::{self, Node};
use super::rollback::{self, pools};
use super::stop::{self, Say, Stop, StopArgs};
use super::text::safe;
use super::wipe_plan::{local_pools, plan, render};
use crate::host::rollback::helper::{Helper, UnmountArgs};
use crate::host::roots;
use crate::host::service::{Hold, Host, Scope};
use crate::host::wait::{EVERY, Interrupt};
use crate::host::wipe;
use crate::host::wipe::{Deleted, OwnMount, Root};
use crate::model::control::report::RollbackReport;
use crate::model::exit::Exit;
use crate::model::rollback::{Allowed, UnmountOutcome};

#[derive(Debug, clap::Args)]
pub struct WipeArgs {
    /// The node's guarded root. Needed only if there are several nodes.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Only print the steps (the default).
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// Delete, instead of only printing the steps.
    #[arg(long)]
    pub yes: bool,
    /// Detach busy pools. Their superblocks must still be gone before anything is deleted.
    #[arg(long)]
    pub lazy: bool,
    /// Delete images of local pools too, and the database that knows local ZFS and LVM pools.
    #[arg(long)]
    pub despite_local_pools: bool,
    #[command(flatten)]
    pub stop: StopArgs,
    /// Time to follow a rollback, which continues in the agent afterwards.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    pub wait: Duration,
}

/// Result of a wipe.
#[derive(Debug, Default, Serialize)]
pub struct Done {
    pub root: PathBuf,
    pub rollback: Option<RollbackReport>,
    pub unmounted: Vec<PathBuf>,
    pub deleted: Deleted,
    /// Units that were started again.
    pub started: Vec<String>,
}

/// Shows the plan, or carries it out.
pub fn run(global: &Global, args: &WipeArgs, out: &mut impl Write) -> Result<Exit, CliError> {
    let node = Node::find(global, args.root.as_deref())?;
    node::require_host()?;
    if roots::is_on_network(&node.place, &node::mount_table()?) {
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

fn wipe(
    global: &Global,
    args: &WipeArgs,
    node: &Node,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let (interrupt, host) = (Interrupt::catch()?, Host::this());
    let mut say = |line: &str| if global.json { Ok(()) } else { Ok(writeln!(out, "{line}")?) };
    let stop = Stop {
        node,
        host: &host,
        args: &args.stop,
        interrupt: &interrupt,
        scope: Scope::Directory,
    };
    may_wipe(global, args, node)?;
    let hold = stop.stop(&mut say)?.hold;
    let mut done = Done { root: node.root.clone(), ..Done::default() };
    if !pools(global, node)?.is_empty() {
        let follow =
            Follow { global, interrupt: &interrupt, limit: args.wait, every: EVERY, stopped: true };
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
            done.started = start_again(&stop, hold, &mut say)?;
        }
    } else {
        hold.iter().try_for_each(|hold| say(&stop::held(hold)))?;
    }
    finish(global, &done, result.err(), out)
}

/// A daemon that did not run before stays stopped.
fn start_again(stop: &Stop<'_>, hold: &Hold, say: &mut Say<'_>) -> Result<Vec<String>, CliError> {
    if !hold.ran.is_empty() {
        return stop.start(&hold.ran, say);
    }
    let command = stop.start_command(say)?;
    say(&format!("Incus stays stopped, as it was found: guardctl join starts it, or {command}"))?;
    Ok(Vec::new())
}

/// Asked before anything is stopped.
fn may_wipe(global: &Global, args: &WipeArgs, node: &Node) -> Result<(), CliError> {
    let running = stop::instances(node, stop::daemon_pid(node)?)?;
    if !running.is_empty() && !args.stop.stop_instances {
        return Err(NodeError::instances(node, &running).into());
    }
    let local = local_pools(node)?;
    if !local.is_empty() && !args.despite_local_pools {
        let pools =
            local.iter().map(|pool| format!("{} (fix: {})", pool.describe(), pool.fix())).collect();
        return Err(NodeError::LocalPools { root: node.root.clone(), pools }.into());
    }
    let pools = pools(global, node)?;
    if !pools.is_empty() {
        rollback::ask(global, Some(&node.root))?;
    }
    if !args.stop.stop_instances {
        rollback::no_guests(node, &pools)?;
    }
    Ok(())
}

fn empty(
    node: &Node,
    interrupt: &Interrupt,
    done: &mut Done,
    say: &mut Say<'_>,
) -> Result<(), CliError> {
    let place = &node.place;
    done.unmounted = unmount_own(place, say)?;
    let snapshot = node::mount_table()?;
    if let Some(mount) = wipe::below(&snapshot, place).in_the_way.first() {
        return Err(wipe::WipeError::Mountpoint { path: mount.mountpoint.clone() }.into());
    }
    // One that has begun since Incus was stopped.
    let running = stop::instances(node, None)?;
    if !running.is_empty() {
        return Err(NodeError::instances(node, &running).into());
    }
    let root = Root::open(place)?;
    let (deleted, result) = wipe::delete(&root, &mut |so_far| {
        let count = so_far.files + so_far.directories;
        say(&format!("{count} deleted …")).is_ok() && !interrupt.came()
    });
    done.deleted = deleted;
    Ok(result?)
}

fn unmount_own(root: &Path, say: &mut Say<'_>) -> Result<Vec<PathBuf>, CliError> {
    let helper = Helper::this_program();
    let limit = crate::model::rollback::Limits::default().unmount;
    let mut unmounted = Vec::new();
    for mount in wipe::below(&node::mount_table()?, root).own {
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
#[path = "wipe_tests.rs"]
mod tests;
