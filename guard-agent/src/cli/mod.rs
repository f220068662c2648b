//! `guardctl`: asks the agent and shows its answers. One file a subcommand.
//!
//! Output goes to a writer and is text for people, or one JSON document with `--json` (`events`:
//! one a line). A reader that has seen enough (`| head`) ends it quietly.

pub mod client;
pub mod doctor;
pub mod error;
pub mod events;
pub mod exec;
pub mod follow;
pub mod global;
pub mod history;
pub mod join;
mod join_command;
pub mod lease;
pub mod node;
pub mod offline;
pub mod operator_word;
pub mod own_cgroup;
pub mod policy;
pub mod pools;
pub mod preflight;
pub mod release;
mod reports;
pub mod rollback;
pub mod seal;
pub mod state_machine;
pub mod status;
pub mod stop;
pub mod text;
pub mod wipe;
pub mod wipe_plan;

pub use error::CliError;
pub use global::Global;

use std::ffi::OsString;
use std::io::{self, Write};

use clap::{Parser, Subcommand};

use crate::cli::offline::Places;
use crate::host::rollback::helper;
use crate::host::rollback::helper::HelperCommand;
use crate::model::errors::chain;
use crate::model::exit::Exit;

/// Queries and controls the guard-agent of this host.
#[derive(Debug, Parser)]
#[command(name = "guardctl", version, propagate_version = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done (status: enforcing), 1 failure, 2 wrong command line, \
                          3 policy file missing or wrong, 4 inactive, 5 agent unreachable (status, \
                          pools and events have answered from pins and files), 6 refused, 7 \
                          degraded, audit-only, or a failed check";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Posture, policy, pools, leases and counters.
    ///
    /// If no agent answers, pins and files are read instead, which proves nothing (exit 5; 4 if
    /// nothing is in force).
    Status(Places),
    /// The pools and their modes.
    ///
    /// If no agent answers, the kernel's map is read instead (exit 5).
    Pools(Places),
    /// Deny every deletion in a pool, including the storage daemon's.
    Seal(seal::SealArgs),
    /// Remove a seal. The pool returns to its mode by policy.
    Unseal(seal::SealArgs),
    /// Allow everyone to delete in a pool for a limited time.
    Release(release::ReleaseArgs),
    /// Allow one command and its child processes to delete in a pool.
    Exec(exec::ExecArgs),
    /// The running leases.
    #[command(subcommand)]
    Lease(lease::LeaseCommand),
    /// The state changes of each node, with their reasons.
    History(history::HistoryArgs),
    /// The join state machine as a drawing. Needs no agent.
    StateMachine(state_machine::StateMachineArgs),
    /// Tell the agent a fact about a node that it cannot observe.
    #[command(subcommand)]
    Node(operator_word::NodeCommand),
    /// Show the audit log: past records, and new ones with --follow.
    ///
    /// If no agent answers, its files are read instead (exit 5).
    Events(events::EventsArgs),
    /// Check every precondition on this host, with a fix for each failure. Needs no agent.
    Doctor(doctor::DoctorArgs),
    /// Check a policy file, show the policy in force, compare both.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Check whether this node can join a cluster. Each finding comes with a fix.
    Preflight(preflight::command::PreflightArgs),
    /// Join a cluster: checked before, sealed meanwhile, guarded once the node is a member.
    Join(join::JoinArgs),
    /// Unmount the pools of a failed join in every mount namespace, and prove that they are gone.
    Rollback(rollback::RollbackArgs),
    /// Empty a node's directory for a fresh start, without ever crossing a mount.
    Wipe(wipe::WipeArgs),
    /// Helper processes of guardctl.
    #[command(subcommand, hide = true)]
    Helper(HelperCommand),
}

/// The whole program: parses the command line, runs it, and reports errors on standard error.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" of clap that go to standard output.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok };
        }
    };
    let mut out = io::stdout().lock();
    let result =
        run(&cli, &mut out).and_then(|exit| out.flush().map(|()| exit).map_err(CliError::from));
    match result {
        Ok(exit) => exit,
        Err(error) => {
            let exit = error.exit();
            if exit != Exit::Ok {
                explain(&error, &mut io::stderr().lock());
            }
            exit
        }
    }
}

/// Runs one command.
pub fn run(cli: &Cli, out: &mut impl Write) -> Result<Exit, CliError> {
    let global = &cli.global;
    match &cli.command {
        Command::Status(places) => reports::status(global, places, out),
        Command::Pools(places) => reports::pools(global, places, out),
        Command::Seal(args) => seal::run(global, args, out),
        Command::Unseal(args) => seal::unseal(global, args, out),
        Command::Release(args) => release::run(global, args, out),
        Command::Exec(args) => exec::run(global, args),
        Command::Lease(command) => lease::run(global, command, out),
        Command::History(args) => history::run(global, args, out),
        Command::StateMachine(args) => state_machine::run(args, out),
        Command::Node(command) => operator_word::run(global, command, out),
        Command::Events(args) => reports::events(global, args, out),
        Command::Doctor(args) => doctor::run(global, args, out),
        Command::Policy(command) => policy::run(global, command, out),
        Command::Preflight(args) => preflight::command::run(global, args, out),
        Command::Join(args) => join::run(global, args, out),
        Command::Rollback(args) => rollback::run(global, args, out),
        Command::Wipe(args) => wipe::run(global, args, out),
        Command::Helper(command) => Ok(helper::run(command)),
    }
}

fn explain(error: &CliError, out: &mut impl Write) {
    let mut message = format!("guardctl: {}", text::safe(&chain(error)));
    if let Some(fix) = error.fix() {
        message.push_str(&format!("\n  fix: {}", text::safe(&fix)));
    }
    // Nobody is left to be told.
    let _ = writeln!(out, "{message}");
}

#[cfg(test)]
mod fake;
#[cfg(test)]
#[path = "tests.rs"]
mod tests;
