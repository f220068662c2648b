//! `guardctl state-machine`: the join state machine as a drawing. Needs no agent.

use std::io::Write;

use super::error::CliError;
use crate::model::exit::Exit;
use crate::model::join::diagram::{Format, draw};

#[derive(Debug, clap::Args)]
pub struct StateMachineArgs {
    /// Language of the drawing.
    #[arg(long, value_enum, default_value = "mermaid")]
    pub format: Format,
}

/// Prints the drawing.
pub fn run(args: &StateMachineArgs, out: &mut impl Write) -> Result<Exit, CliError> {
    out.write_all(draw(args.format).as_bytes())?;
    Ok(Exit::Ok)
}
