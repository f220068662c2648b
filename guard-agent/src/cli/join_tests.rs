//! The end of a join's command, and the text that an operator reads about it.

use super::super::fake::{self, FakeAgent};
use std::ffi::OsString;
use std::io;
use std::process::Command;

use super::*;

/// Lets a join end in a state; returns the text for the operator, and the requests to the agent.
fn concluded(state: &'static str, pools: Vec<PoolReport>) -> (String, Vec<&'static str>) {
    let agent = FakeAgent::start(move |request| match request {
        Request::RollbackStatus { .. } => fake::rollback_status(state),
        Request::Pools => Reply::Pools(pools.clone()),
        other => panic!("{other:?}"),
    });
    let global = agent.global();
    let args = fake::join_args(&["--on-failure", "rollback", "--", "true"]);
    let (node, interrupt) = (fake::node(), fake::uninterrupted());
    let host = crate::host::service::Host::this();
    let (args, preseed, interrupt) = (&args, None, &interrupt.0);
    let join = Join { global: &global, args, preseed, node: &node, host: &host, interrupt };
    let mut report = JoinReport {
        root: node.root.clone(),
        preflight: Vec::new(),
        command: Some("exit status: 1".to_owned()),
        state: state.to_owned(),
        joined: false,
        warning: None,
        rollback: None,
    };
    let mut text = String::new();
    join.conclude(&mut report, &mut |line| {
        text.push_str(line);
        text.push('\n');
        Ok(())
    })
    .unwrap();
    (text, agent.asked())
}

#[test]
fn an_early_failure_stops_nothing_and_is_told_as_it_is() {
    // A join that ended before it mounted anything: nothing is sealed, and there is nothing to roll
    // back.
    let (text, asked) = concluded("standalone", Vec::new());
    assert!(text.contains("the node is standalone; no pool of it is mounted"), "{text}");
    assert!(text.contains("no rollback: refused (node-state)"), "{text}");
    assert!(text.contains("Incus was left as it is"), "{text}");
    assert!(!text.contains("sealed") && !text.contains("stop"), "{text}");
    assert_eq!(asked, ["pools", "rollback-status"]);
    let own = fake::pool("local", guard_common::Mode::Guarded);
    let (text, _) = concluded("standalone", vec![own]);
    assert!(text.contains("its pools: local is guarded"), "{text}");
}

#[test]
fn a_command_that_hangs_is_ended_and_its_end_told() {
    let (reader, _writer) = io::pipe().unwrap();
    let interrupt = Interrupt::by(reader.into());
    let (limit, every) = (Duration::from_millis(100), Duration::from_millis(10));
    let patience = Patience { limit, every, interrupt: &interrupt };
    let mut command = Command::new("sleep");
    command.arg("1000");
    let mut lines = Vec::new();
    let ended = join_command::run(&mut command, &patience, &mut |line| {
        lines.push(line.to_owned());
        Ok(())
    });
    assert!(ended.unwrap().starts_with("no end within"));
    assert!(lines.iter().any(|line| line.starts_with("the command runs")), "{lines:?}");
}

#[test]
fn an_interrupted_command_is_ended_and_its_end_told() {
    let (reader, writer) = io::pipe().unwrap();
    drop(writer);
    let interrupt = Interrupt::by(reader.into());
    let patience = Patience::new(Duration::from_secs(1000), &interrupt);
    let mut command = Command::new("sleep");
    command.arg("1000");
    let ended = join_command::run(&mut command, &patience, &mut |_| Ok(())).unwrap();
    assert!(ended.starts_with("an interruption"));
}

#[test]
fn every_command_talks_to_the_nodes_own_daemon() {
    let host = tempfile::tempdir().unwrap();
    let node = fake::node_in(host.path());
    let own = ["sh", "-c", "incus admin init"].map(OsString::from);
    for (preseed, command) in [(Some("cluster: {}"), &[][..]), (None, &own[..])] {
        let command = join_command::build(&node, preseed, command, false).unwrap();
        let variables: Vec<_> = command.get_envs().collect();
        let root = host.path().join("incus");
        let expected = [("INCUS_DIR", root.clone()), ("INCUS_SOCKET", root.join("unix.socket"))];
        let expected =
            expected.each_ref().map(|(name, value)| (name.as_ref(), Some(value.as_os_str())));
        assert_eq!(variables, expected, "{command:?}");
    }
}
