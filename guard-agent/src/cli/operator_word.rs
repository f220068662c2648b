//! `guardctl node`: an operator's word about a node, for facts that evidence cannot show. A look
//! judges it at once.

use std::io::Write;
use std::path::PathBuf;

use super::error::CliError;
use super::global::{Global, expect_reply, write_json};
use super::text::safe;
use crate::model::control::{Reply, Request};
use crate::model::exit::Exit;

#[derive(Debug, clap::Subcommand)]
pub enum NodeCommand {
    /// State that all pools mounted now are this server's own.
    ///
    /// For a standalone server whose own pools were sealed after a mistaken join. The agent
    /// believes this statement: if a join has brought one of the pools, Incus can delete the
    /// cluster's data from then on. Refused while a join runs, and on a member of a cluster.
    Adopt(WordArgs),
    /// Discard the node's state and its list of own pools. The next observation decides.
    ///
    /// The list of pools that joins and clusters have left is kept. Refused while a join or a
    /// rollback runs, and while pools of a cluster are mounted.
    Forget(WordArgs),
}

#[derive(Debug, clap::Args)]
pub struct WordArgs {
    /// The node's guarded root. Needed only if there are several nodes.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// The reason, which is written to the node's history and the audit log.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
}

/// Passes the word on.
pub fn run(global: &Global, command: &NodeCommand, out: &mut impl Write) -> Result<Exit, CliError> {
    let (NodeCommand::Adopt(args) | NodeCommand::Forget(args)) = command;
    let root = args.root.as_ref().map(|root| root.to_string_lossy().into_owned());
    let reason = args.reason.clone();
    let request = match command {
        NodeCommand::Adopt(_) => Request::NodeAdopt { root, reason },
        NodeCommand::Forget(_) => Request::NodeForget { root, reason },
    };
    let reply = expect_reply!(global, request, reply @ Reply::NodeState { .. } => reply);
    if global.json {
        write_json(out, &reply)?;
    } else if let Reply::NodeState { root, .. } = &reply {
        writeln!(out, "recorded; the next observation of {} decides: guardctl status", safe(root))?;
    }
    Ok(Exit::Ok)
}
