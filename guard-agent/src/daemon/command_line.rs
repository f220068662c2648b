//! The command line of `guard-agent`, in the library so that its man pages and completions are made
//! from it. That of `guardctl` is [`crate::cli::Cli`].

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::daemon::options::Options;
use crate::host::rollback::helper::HelperCommand;
use crate::host::{bpf, paths};

/// Stops deletions in live shared-storage mounts, in the kernel.
#[derive(Debug, Parser)]
#[command(name = "guard-agent", version = bpf::object::BUILD)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent. Enforcement goes on when it ends.
    Run(Options),
    /// Remove all pins: nothing is protected afterwards. The agent must not run.
    Unload {
        /// Pins of programs, maps and links.
        #[arg(long, value_name = "DIR", default_value = paths::PIN_DIR)]
        pin_dir: PathBuf,
        /// State that survives a reboot.
        #[arg(long, value_name = "DIR", default_value = paths::STATE_DIR)]
        state_dir: PathBuf,
    },
    /// Helper processes of the agent.
    #[command(subcommand, hide = true)]
    Helper(HelperCommand),
}
