//! `guardctl node`: an operator's word about a node, for what evidence cannot tell. A look judges
//! it at once.

use std::io::Write;
use std::path::PathBuf;

use super::error::CliError;
use super::global::{Global, expect_reply, write_json};
use super::text::safe;
use crate::model::control::{Reply, Request};
use crate::model::exit::Exit;

#[derive(Debug, clap::Subcommand)]
pub enum NodeCommand {
    /// The pools that are mounted now are this server's own, whatever a join has left beside them.
    ///
    /// For a standalone server whose own pools were sealed after a mistaken join. It is believed:
    /// of a pool that a join has brought, Incus may delete the cluster's data from then on. Refused
    /// while a join runs, and on a member of a cluster.
    Adopt(WordArgs),
    /// The node's state, and the list of pools that were taken for its own, are void: a look
    /// decides anew.
    ///
    /// Pools that joins and clusters have left stay known. Refused while a join or a rollback runs,
    /// and while pools are mounted that came with a cluster.
    Forget(WordArgs),
}

#[derive(Debug, clap::Args)]
pub struct WordArgs {
    /// The node's guarded root; needed only if there are several.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Why; it is written to the node's history and the audit log.
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
