//! `guardctl` as a process: exit codes, and a reader that has seen enough.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use guard_agent::daemon::control::{Access, Server, ServerOptions};
use guard_agent::host::audit_log::{AuditFile, AuditOptions};
use guard_agent::model::audit::record::{AgentBody, AgentChange};
use guard_agent::model::audit::{Body, Origin};
use guard_agent::model::time::BootOffset;

fn guardctl(run_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_guardctl"));
    command.arg("--run-dir").arg(run_dir);
    command
}

fn write_events(path: &Path, count: u32) {
    let origin = Origin { host: "h".to_owned(), boot_id: "b".to_owned() };
    let mut audit = AuditFile::open(path, origin, AuditOptions::default()).unwrap();
    for pid in 0..count {
        let (version, build) = ("0".repeat(100), "b".to_owned());
        let body =
            AgentBody { change: AgentChange::Started, version, build, pid, previous_build: None };
        audit.append(
            BootOffset::between(Duration::ZERO, Duration::ZERO).stamp(0),
            Body::Agent(body),
        );
    }
}

/// An agent that serves events and nothing else, until the returned sender is dropped.
fn serve(run_dir: &Path) -> (tokio::sync::oneshot::Sender<()>, JoinHandle<()>) {
    let mut options = ServerOptions::new(run_dir.to_owned(), run_dir.join("audit.jsonl"));
    options.group = None;
    options.access = |_| Access::Change;
    let server = Server::bind(options).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let (ready, is_ready) = channel();
    let thread = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (commands, _inbox) = tokio::sync::mpsc::channel(1);
        let (events, _) = tokio::sync::broadcast::channel(1);
        ready.send(()).unwrap();
        runtime.block_on(server.run(commands, events, async { drop(stopped.await) })).unwrap();
    });
    is_ready.recv().unwrap();
    (stop, thread)
}

#[test]
fn a_closed_pipe_ends_events_quietly() {
    let directory = tempfile::tempdir().unwrap();
    write_events(&directory.path().join("audit.jsonl"), 2_000);
    let (stop, thread) = serve(directory.path());
    let mut child = guardctl(directory.path())
        .args(["events", "-n", "2000", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::with_capacity(512, child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert!(line.starts_with("{\"schema\":"), "{line}");
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
    drop(stop);
    thread.join().unwrap();
}

#[test]
fn exit_codes_are_the_documented_ones() {
    let directory = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| -> Output {
        guardctl(directory.path()).args(arguments).output().unwrap()
    };
    for (arguments, code) in [
        (&["--version"][..], 0),
        (&["release", "default"], 2),
        (&["policy", "check", "/nonexistent/policy.toml"], 3),
        (&["lease", "list"], 5),
        (&["events"], 5),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    }
}
