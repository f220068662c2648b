//! The command that joins: its daemon, its time limit, and its end.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::error::{CliError, NodeError};
use super::node::Node;
use super::stop::Say;
use crate::host::wait;
use crate::host::wait::{Patience, Waited};

/// The operator's command, or `incus admin init` with a preseed. Its output is the operator's; with
/// `json` both go to standard error.
pub(super) fn build(
    node: &Node,
    preseed: Option<&str>,
    command: &[OsString],
    json: bool,
) -> Result<Command, CliError> {
    let io = |operation| move |source| CliError::from(NodeError::Io { operation, source });
    let mut built = match (preseed, command.split_first()) {
        (Some(text), _) => {
            let mut built = Command::new("incus");
            built.args(["admin", "init", "--preseed"]);
            built.stdin(input(text).map_err(io("hand over the preseed"))?);
            built
        }
        (None, Some((program, arguments))) => {
            let mut built = Command::new(program);
            built.args(arguments);
            built
        }
        (None, None) => {
            let source = io::ErrorKind::InvalidInput.into();
            return Err(NodeError::Io { operation: "run the command", source }.into());
        }
    };
    node.address(&mut built);
    if json {
        let errors = std::os::fd::AsFd::as_fd(&io::stderr())
            .try_clone_to_owned()
            .map_err(io("share standard error"))?;
        built.stdout(Stdio::from(errors));
    }
    Ok(built)
}

/// The text as a file in memory: Incus reads exactly the checked text, even if the operator's file
/// changes.
fn input(text: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"preseed", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// Runs a command, ends it when it takes too long, and returns its end.
pub(super) fn run(
    command: &mut Command,
    patience: &Patience<'_>,
    say: &mut Say<'_>,
) -> Result<String, CliError> {
    let io = |operation| move |source| CliError::from(NodeError::Io { operation, source });
    let limit = patience.limit.as_secs();
    // One that cannot be started has changed nothing; the preparation ends by itself.
    let mut child = command.spawn().map_err(io("start the command"))?;
    let mut alive = |passed: Duration| {
        let passed = passed.as_secs();
        drop(say(&format!("the command runs: {passed} s of at most {limit} s (Ctrl-C ends it)")));
    };
    let early = match wait::for_child(&mut child, patience, &mut alive)
        .map_err(io("wait for the command"))?
    {
        Ok(status) => return Ok(status.to_string()),
        Err(early) => early,
    };
    // Only the client ends by that: the join that Incus has begun goes on, and is sealed.
    child.kill().map_err(io("end the command"))?;
    child.wait().map_err(io("wait for the command"))?;
    Ok(match early {
        Waited::Interrupted => "an interruption: it was ended".to_owned(),
        Waited::Overdue | Waited::Ended => format!("no end within {limit} s: it was ended"),
    })
}
