//! The options of every subcommand, and their common use.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::error::CliError;
use crate::cli::client::ANSWER_TIMEOUT;
use crate::cli::client::Client;
use crate::host::paths;
use crate::model::control::{Reply, Request};
use crate::model::policy::duration;

/// Options of every subcommand.
#[derive(Debug, Args)]
pub struct Global {
    /// Directory of the agent's control socket.
    #[arg(long, global = true, value_name = "DIR", default_value = paths::RUN_DIR)]
    pub run_dir: PathBuf,
    /// JSON instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    /// Longest wait for the agent, such as 10s. Default: 35s; 1s for `status`, `pools` and
    /// `events`, which can answer without the agent.
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_duration, env = "GUARDCTL_TIMEOUT")]
    pub timeout: Option<Duration>,
}

impl Global {
    /// One request on a connection of its own.
    pub(super) fn ask(&self, request: &Request) -> Result<Reply, CliError> {
        let limit = self.timeout.unwrap_or(ANSWER_TIMEOUT);
        Ok(Client::connect(&self.run_dir, limit)?.request(request)?)
    }
}

/// The one kind of reply that answers `request`.
macro_rules! expect_reply {
    ($global:expr, $request:expr, $pattern:pat => $value:expr) => {{
        let request = $request;
        match $global.ask(&request)? {
            $pattern => $value,
            _ => {
                return Err($crate::cli::client::ClientError::OtherAnswer {
                    request: request.name(),
                }
                .into());
            }
        }
    }};
}
pub(super) use expect_reply;

/// One JSON document, for people's eyes too.
pub(super) fn write_json(out: &mut impl Write, value: &impl Serialize) -> Result<(), CliError> {
    serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

/// A duration on the command line, such as `10m`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    duration::parse(text)
        .ok_or_else(|| format!("`{text}` is no duration: write it like 90s, 10m or 1h30m"))
}
