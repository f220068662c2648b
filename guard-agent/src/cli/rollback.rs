//! `guardctl rollback`: has the agent unmount the remains of a failed join, shows the progress, and
//! the mounts that stay.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guard_common::policy::kernel_dev;

use super::error::{CliError, NodeError};
use super::follow::Follow;
use super::global::{Global, expect_reply, parse_duration, write_json};
use super::node::Node;
use super::stop::{Say, Stop, StopArgs, held};
use super::text::safe;
use crate::cli::client::ClientError;
use crate::host::rollback::{all_namespaces, name_of};
use crate::host::service::{Hold, Host, Places, Scope};
use crate::host::wait::{EVERY, Interrupt};
use crate::model::control::report::{PoolReport, RollbackReport};
use crate::model::control::{Reply, Request};
use crate::model::exit::Exit;
use crate::model::rollback::guests::guests;
use crate::model::rollback::{Allowed, Remaining, RollbackOutcome, Target};

#[derive(Debug, clap::Args)]
pub struct RollbackArgs {
    /// The node's guarded root. Needed only if there are several nodes.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Detach busy mounts: they leave the tree at once, and the kernel when their last user ends.
    #[arg(long)]
    pub lazy: bool,
    /// Unmount from running containers and other guests too. They keep running and write to their
    /// own disk instead.
    #[arg(long)]
    pub force: bool,
    /// Stop Incus first. A running Incus would mount its pools again.
    #[arg(long)]
    pub stop_incus: bool,
    /// Do not roll back: remove the hold that an earlier rollback or wipe has put on Incus, and
    /// start its sockets.
    #[arg(long, conflicts_with_all = ["lazy", "force", "stop_incus", "stop_instances"])]
    pub release_hold: bool,
    #[command(flatten)]
    pub stop: StopArgs,
    /// Time to follow the rollback, which continues in the agent afterwards.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    pub wait: Duration,
}

/// Default time for which a rollback is followed.
pub const WAIT: Duration = Duration::from_secs(600);

/// Rolls back.
pub fn run(global: &Global, args: &RollbackArgs, out: &mut impl Write) -> Result<Exit, CliError> {
    let (interrupt, host) = (Interrupt::catch()?, Host::this());
    let mut say = |line: &str| if global.json { Ok(()) } else { Ok(writeln!(out, "{line}")?) };
    if args.release_hold {
        let node = Node::find(global, args.root.as_deref())?;
        let stop = Stop {
            node: &node,
            host: &host,
            args: &args.stop,
            interrupt: &interrupt,
            scope: Scope::Daemon,
        };
        return release_hold(&stop, &mut say);
    }
    // Asked before anything is stopped.
    let asked = match ask(global, args.root.as_deref()) {
        Err(refusal) if refusal.exit() == Exit::Refused => {
            // A node that is well again, and whose Incus an earlier command keeps from starting.
            if let Some(hold) = left_hold(global, args)? {
                say(&held(&hold))?;
            }
            return Err(refusal);
        }
        asked => asked?,
    };
    let node = Node::find(global, Some(Path::new(&asked.root)))?;
    let stop = Stop {
        node: &node,
        host: &host,
        args: &args.stop,
        interrupt: &interrupt,
        scope: Scope::Daemon,
    };
    if !args.force && !args.stop.stop_instances {
        // Asked before Incus is stopped, which has to stop its containers.
        no_guests(&node, &pools(global, &node)?)?;
    }
    let stops = args.stop_incus || args.stop.stop_instances;
    let hold = if stops { stop.stop(&mut say)?.hold } else { stop.hold(&mut say)? };
    let follow =
        Follow { global, interrupt: &interrupt, limit: args.wait, every: EVERY, stopped: stops };
    let allowed = Allowed { lazy: args.lazy, force: args.force };
    let report = match follow.carry_out(&node.root, allowed, &mut say) {
        Err(refusal) if refusal.exit() == Exit::Refused => {
            // Nothing was begun: the units that were stopped for it start again.
            if let Some(hold) = &hold {
                stop.lift(hold, &mut say)?;
                stop.start(&hold.ran, &mut say)?;
            }
            return Err(refusal);
        }
        report => report?,
    };
    let released = is_released(&report);
    if !global.json {
        say(verdict(&report).trim_end())?;
    }
    after(&stop, hold.as_ref(), stops, released, &mut say)?;
    if global.json {
        write_json(out, &report)?;
    }
    Ok(if released { Exit::Ok } else { Exit::Failure })
}

/// The node's pools that live.
pub fn pools(global: &Global, node: &Node) -> Result<Vec<PoolReport>, CliError> {
    let pools = expect_reply!(global, Request::Pools, Reply::Pools(pools) => pools);
    let is_its = |pool: &PoolReport| pool.root.as_deref().map(Path::new) == Some(&*node.root);
    Ok(pools.into_iter().filter(is_its).collect())
}

/// Fails if a guest has one of the pools mounted. If that cannot be seen from here, the agent
/// looks.
pub fn no_guests(node: &Node, pools: &[PoolReport]) -> Result<(), CliError> {
    let target = |pool: &PoolReport| {
        let (major, minor) = pool.device.split_once(':')?;
        let dev = kernel_dev(major.parse().ok()?, minor.parse().ok()?);
        Some(Target { dev, generation: pool.generation, name: pool.name.clone() })
    };
    let targets: Vec<Target> = pools.iter().filter_map(target).collect();
    let proc_root = &node.incus.proc_root;
    let Ok(tables) = all_namespaces(proc_root) else { return Ok(()) };
    let guests = guests(&tables, &targets, &node.place, &mut |pid| name_of(proc_root, pid));
    if guests.is_empty() {
        return Ok(());
    }
    let guests = guests.iter().map(ToString::to_string).collect();
    Err(NodeError::Guests { root: node.root.clone(), guests }.into())
}

fn left_hold(global: &Global, args: &RollbackArgs) -> Result<Option<Hold>, CliError> {
    match Node::find(global, args.root.as_deref()) {
        Ok(node) => Ok(Hold::find(&Places::default(), &node.unit)?),
        // The refusal says more.
        Err(_) => Ok(None),
    }
}

fn release_hold(stop: &Stop<'_>, say: &mut Say<'_>) -> Result<Exit, CliError> {
    let Some(hold) = stop.found_hold()? else {
        say("nothing keeps Incus from starting")?;
        return Ok(Exit::Ok);
    };
    stop.lift(&hold, say)?;
    stop.start(&hold.ran, say)?;
    Ok(Exit::Ok)
}

/// Fails if the node's state would refuse a rollback.
pub fn ask(global: &Global, root: Option<&Path>) -> Result<RollbackReport, CliError> {
    let root = root.map(|root| root.to_string_lossy().into_owned());
    let report =
        expect_reply!(global, Request::RollbackStatus { root }, Reply::Rollback(report) => *report);
    match report.refusal {
        // One that runs is followed.
        Some(refusal) if !report.running => Err(ClientError::Refused(refusal).into()),
        _ => Ok(report),
    }
}

/// Lets Incus start again once nothing is left, and shows the command; else says that it is held.
/// `stopped`: by this command. A socket that was left listening has failed if a client came
/// meanwhile, and is started again.
pub fn after(
    stop: &Stop<'_>,
    hold: Option<&Hold>,
    stopped: bool,
    released: bool,
    say: &mut Say<'_>,
) -> Result<(), CliError> {
    match hold {
        Some(hold) if released => {
            stop.lift(hold, say)?;
            if !stopped && !hold.ran.is_empty() {
                stop.start(&hold.ran, say)?;
                return say(
                    "Incus does not run; its next client starts it, and it mounts again what its \
                     database names",
                );
            }
            let command = stop.start_command(say)?;
            say(&format!(
                "Incus stays stopped: started now, it mounts again what its database names. \
                 guardctl join starts it; by hand: {command}"
            ))
        }
        Some(hold) => say(&held(hold)),
        None => Ok(()),
    }
}

/// Whether nothing is left, as kernel and state machine say.
pub fn is_released(report: &RollbackReport) -> bool {
    // An agent that has gone on with it from the journal alone knows no outcome if it was over by
    // then.
    let ended = report.outcome.as_ref().map(RollbackOutcome::is_complete);
    !report.running && ended.unwrap_or(report.state == "released")
}

/// Text about a rollback's end.
pub fn verdict(report: &RollbackReport) -> String {
    let root = safe(&report.root);
    let Some(outcome) = &report.outcome else {
        return format!("{root}: no rollback has run; the node is {}\n", report.state);
    };
    let mut text = String::new();
    if !outcome.guests.is_empty() {
        text.push_str(&format!("{root}: nothing was unmounted: guests use its pools\n"));
    }
    for guest in &outcome.guests {
        text.push_str(&format!("  in use: {}\n", safe(&guest.to_string())));
    }
    if outcome.is_complete() {
        text.push_str(&format!("{root}: every superblock is gone; the node is {}\n", report.state));
    } else {
        let count = outcome.remaining.len();
        text.push_str(&format!(
            "{root}: {count} superblocks remain, sealed; the node is \
             {}\n",
            report.state
        ));
    }
    for problem in &outcome.problems {
        text.push_str(&format!("  problem: {}\n", safe(problem)));
    }
    for remaining in &outcome.remaining {
        text.push_str(&remains(remaining));
    }
    text
}

fn remains(remaining: &Remaining) -> String {
    let mut text = format!("  pool {} (device {})\n", safe(&remaining.pool), remaining.device);
    for place in &remaining.mounts {
        text.push_str(&format!("    mounted: {}\n", safe(&place.to_string())));
    }
    for obstacle in &remaining.obstacles {
        text.push_str(&format!("    in the way: {}\n", safe(obstacle)));
    }
    for holder in &remaining.holders {
        let via: Vec<String> = holder.via.iter().map(ToString::to_string).collect();
        let command = safe(&holder.command);
        text.push_str(&format!(
            "    held by: {command} (process {}): {}\n",
            holder.pid,
            safe(&via.join(", "))
        ));
    }
    text.push_str(&format!("    fix: {}\n", safe(&remaining.fix)));
    text
}

#[cfg(test)]
#[path = "rollback_tests.rs"]
mod tests;
