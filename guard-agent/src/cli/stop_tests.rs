//! Stopping Incus on a host whose `systemctl` is a script.

use std::fs;
use std::path::Path;

use super::super::fake;
use super::super::rollback::after;
use super::*;
use crate::host::service::Places;

/// A host with Debian's units, and the requests to its `systemctl`.
struct Machine {
    directory: tempfile::TempDir,
    host: Host,
    node: Node,
}

impl Machine {
    /// `stop`: the script's action for a stop.
    fn new(stop: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let places = Places { persistent: path("etc"), transient: path("run") };
        let drop_in = path("etc/incus.service.d/90-guard-agent-hold.conf");
        let script = format!(
            "#!/bin/sh\nshift 2\necho \"$*\" >>{log}\n\
             case \"$*\" in\n\
             *' incus.service'|*' incus.socket') ;;\n\
             show*) echo LoadState=not-found; exit;;\n\
             esac\n\
             case \"$1\" in\n\
             show) echo LoadState=loaded; echo KillMode=process; echo TriggeredBy=incus.socket\n\
             if test -e {stopped}; then echo ActiveState=inactive; else echo ActiveState=active; \
             fi\necho DropInPaths={drop_in};;\n\
             stop) {stop};;\n\
             start) rm {stopped};;\n\
             esac\n",
            log = path("log").display(),
            stopped = path("stopped").display(),
            drop_in = drop_in.display(),
            stop = stop.replace("STOPPED", &path("stopped").display().to_string()),
        );
        fake::script(&path("systemctl"), &script);
        let host = Host { manager: Manager::Systemd, places, systemctl: path("systemctl") };
        let node = fake::node_in(directory.path());
        Self { directory, host, node }
    }

    fn stop(&self, limit: Duration) -> (Result<Stopped, CliError>, String) {
        self.with(limit, |stop, say| stop.stop_here(say))
    }

    fn with<T>(
        &self,
        limit: Duration,
        work: impl FnOnce(&Stop<'_>, &mut Say<'_>) -> T,
    ) -> (T, String) {
        let interrupt = fake::uninterrupted();
        let args = StopArgs { stop_instances: false, stop_timeout: limit };
        let (node, host, scope) = (&self.node, &self.host, Scope::Daemon);
        let stop = Stop { node, host, args: &args, interrupt: &interrupt.0, scope };
        let mut text = String::new();
        let result = work(&stop, &mut |line| {
            text.push_str(line);
            text.push('\n');
            Ok(())
        });
        (result, text)
    }

    fn changes(&self) -> Vec<String> {
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap();
        log.lines().filter(|line| !line.starts_with("show")).map(str::to_owned).collect()
    }

    fn hold(&self) -> Option<Hold> {
        Hold::find(&self.host.places, "incus.service").unwrap()
    }
}

const STOP: &str = "stop --job-mode=ignore-requirements -- incus.socket incus.service";

#[test]
fn incus_is_held_before_it_is_stopped() {
    let machine = Machine::new("touch STOPPED");
    let (result, text) = machine.stop(Duration::from_secs(100));
    assert_eq!(result.unwrap().hold, machine.hold());
    assert_eq!(machine.hold().unwrap().ran, ["incus.socket", "incus.service"]);
    assert_eq!(machine.changes(), ["daemon-reload", STOP]);
    for part in ["kept from starting: ", "instances run on", "stopped: incus.socket, incus.service"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_join_starts_what_was_stopped() {
    let machine = Machine::new("touch STOPPED");
    let limit = Duration::from_secs(100);
    let hold = machine.stop(limit).0.unwrap().hold.unwrap();
    let reach = |machine: &Machine| machine.with(limit, |stop, say| stop.reach(say)).0.unwrap();
    assert_eq!(reach(&machine), Some(Reach::Held(hold.clone())));
    machine.with(limit, |stop, say| stop.lift(&hold, say)).0.unwrap();
    assert_eq!(reach(&machine), Some(Reach::Down(vec!["incus.socket".to_owned()])));
    let (started, text) = machine.with(limit, |stop, say| stop.start(&[], say));
    assert_eq!(started.unwrap(), ["incus.socket"]);
    assert!(text.contains("started: incus.socket"), "{text}");
    assert_eq!(reach(&machine), Some(Reach::Up));
    assert_eq!(
        machine.changes(),
        ["daemon-reload", STOP, "daemon-reload", "start -- incus.socket"]
    );
}

#[test]
fn after_a_rollback_incus_may_start_again_and_the_operator_knows_how() {
    let machine = Machine::new("touch STOPPED");
    let limit = Duration::from_secs(100);
    let hold = machine.stop(limit).0.unwrap().hold;
    // Something remains: a boot must not mount more.
    let (ended, text) =
        machine.with(limit, |stop, say| after(stop, hold.as_ref(), true, false, say));
    ended.unwrap();
    assert!(
        text.contains("guardctl rollback --release-hold") && machine.hold().is_some(),
        "{text}"
    );
    let (ended, text) =
        machine.with(limit, |stop, say| after(stop, hold.as_ref(), true, true, say));
    ended.unwrap();
    assert_eq!(machine.hold(), None);
    assert!(text.contains("by hand: systemctl start incus.socket"), "{text}");
    assert!(!machine.changes().iter().any(|call| call.starts_with("start")));
}

#[test]
fn a_socket_that_was_left_listening_listens_again() {
    let machine = Machine::new("touch STOPPED");
    let limit = Duration::from_secs(100);
    let hold = machine.with(limit, |stop, say| stop.hold_here(say)).0.unwrap();
    assert_eq!(hold.as_ref().unwrap().ran, ["incus.socket", "incus.service"]);
    // A client has come meanwhile: the unit did not start, and the socket has failed.
    fs::write(machine.directory.path().join("stopped"), "").unwrap();
    machine.with(limit, |stop, say| after(stop, hold.as_ref(), false, true, say)).0.unwrap();
    assert_eq!(machine.changes(), ["daemon-reload", "daemon-reload", "start -- incus.socket"]);
}

#[test]
fn a_stop_that_hangs_is_given_up_with_incus_still_held() {
    let machine = Machine::new("exec sleep 1000");
    let (result, _) = machine.stop(Duration::from_millis(300));
    let error = result.unwrap_err();
    assert!(error.to_string().contains("has not ended"), "{error}");
    assert!(error.fix().unwrap().contains("--kill-whom=main"));
    assert!(machine.hold().is_some());
    // The same command, once it has ended after all.
    fs::write(machine.directory.path().join("stopped"), "").unwrap();
    let (result, _) = machine.stop(Duration::from_secs(100));
    assert_eq!(result.unwrap().hold.unwrap().ran, ["incus.socket", "incus.service"]);
}

#[test]
fn an_instance_that_would_be_killed_keeps_incus_running() {
    let machine = Machine::new("touch STOPPED");
    let script = machine.directory.path().join("systemctl");
    let text = fs::read_to_string(&script).unwrap();
    fake::script(&script, &text.replace("KillMode=process", "KillMode=control-group"));
    let disk = machine.node.root.join("storage-pools/p/virtual-machines/v1/root.img");
    fake::process_with_file(&machine.node, 60, "qemu-kvm", &disk);
    let (result, _) = machine.stop(Duration::from_secs(100));
    let error = result.unwrap_err();
    assert!(error.to_string().contains("would kill 1 instances"), "{error}");
    assert_eq!(machine.changes(), Vec::<String>::new());
    assert_eq!(machine.hold(), None);
}

#[test]
fn without_systemd_the_operator_is_told_how_to_start_it_again() {
    let mut machine = Machine::new("exit 1");
    machine.host.manager = Manager::OpenRc { service: Some("incusd".to_owned()) };
    let (result, text) = machine.stop(Duration::from_secs(100));
    assert!(result.unwrap().hold.is_none());
    assert!(text.contains("rc-service incusd zap; rc-service incusd start"), "{text}");
    assert!(!machine.directory.path().join("log").exists());
}

#[test]
fn instances_of_the_node_are_found() {
    let machine = Machine::new("exit 1");
    let disk = machine.node.root.join("storage-pools/p/virtual-machines/v1/root.img");
    fake::process_with_file(&machine.node, 60, "qemu-kvm", &disk);
    fake::process_with_file(&machine.node, 61, "vi", Path::new("/srv/notes"));
    let found = instances(&machine.node, None).unwrap();
    assert_eq!(found.iter().map(|instance| instance.name.as_str()).collect::<Vec<_>>(), ["v1"]);
}
