//! The agent. Everything is in the library; this is the log and the signals.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use guard_agent::daemon::command_line::{Cli, Command};
use guard_agent::daemon::{self, DaemonError, Options};
use guard_agent::host::logging;
use guard_agent::host::rollback::helper;
use guard_agent::model::exit::Exit;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// How long readings of files that still run may hold up the end.
const GRACE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse();
    // A helper's lines belong to the agent that has started it, wherever systemd has put the
    // helper.
    let agent = matches!(cli.command, Command::Helper(_)).then(std::os::unix::process::parent_id);
    logging::begin(agent);
    let result = match cli.command {
        Command::Run(options) => run(options),
        Command::Unload { pin_dir, state_dir } => daemon::unload(&pin_dir, &state_dir),
        Command::Helper(command) => return helper::run(&command).into(),
    };
    match result {
        Ok(()) => Exit::Ok.into(),
        Err(error) => {
            let exit = error.exit();
            let message = format!("{:#}", anyhow::Error::new(error));
            tracing::error!(exit_code = exit as u8, "{message}");
            daemon::tell_failure(exit, &message);
            exit.into()
        }
    }
}

fn run(options: Options) -> Result<(), DaemonError> {
    let failed = |operation| move |source| DaemonError::Io { operation, source };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("start the runtime"))?;
    let result = runtime.block_on(async {
        let mut hangup = signal(SignalKind::hangup()).map_err(failed("catch SIGHUP"))?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed("catch SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("catch SIGINT"))?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let (reload, reloads) = mpsc::channel(1);
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                // One that waits already stands for this one too.
                let _ = reload.try_send(());
            }
        });
        daemon::run(options, shutdown, reloads).await
    });
    // One that hangs is left behind.
    runtime.shutdown_timeout(GRACE);
    result
}
