//! Stopping and starting on hosts that do not exist.

use super::super::fake::Fake;
use super::*;

const CONSENT: Consent = Consent { instances: 2, may_stop_them: false };

fn stopped(fake: &mut Fake) -> Result<Hold, ServiceError> {
    let unit = look(fake, "incus.service").unwrap();
    let places = fake.places.clone();
    may_stop(&unit, CONSENT)?;
    let hold = hold(fake, &places, &unit, Scope::Directory)?.unwrap();
    stop(fake, &unit, Scope::Directory)?;
    Ok(hold)
}

#[test]
fn instances_run_on_when_incus_is_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let mut fake = Fake::debian(directory.path());
    let hold = stopped(&mut fake).unwrap();
    assert!(fake.instances_run, "{:?}", fake.calls);
    assert_eq!(fake.active.iter().collect::<Vec<_>>(), ["incus-startup.service"]);
    assert_eq!(
        hold.ran,
        ["incus.socket", "incus-user.socket", "incus-user.service", "incus.service"]
    );
    // The hold is in force before anything is stopped: nothing starts it again in between.
    let at = |part: &str| fake.calls.iter().position(|call| call.starts_with(part)).unwrap();
    assert!(at("daemon-reload") < at("stop"));
    assert!(fake.call(&["start", "--", "incus.service"]).is_err());
}

#[test]
fn the_usual_way_would_stop_the_instances() {
    let directory = tempfile::tempdir().unwrap();
    let mut fake = Fake::debian(directory.path());
    fake.call(&["stop", "incus.socket", "incus.service"]).unwrap();
    assert!(!fake.instances_run);
}

#[test]
fn a_unit_whose_stop_ends_instances_is_not_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let mut nixos = Fake::debian(directory.path());
    nixos.exec_stop = "/bin/incus admin shutdown";
    let error = stopped(&mut nixos).unwrap_err();
    assert!(error.to_string().contains("ExecStop=/bin/incus admin shutdown"), "{error}");
    assert!(error.fix().contains("--stop-instances"));

    let mut masked = Fake::debian(directory.path());
    (masked.masked, masked.kill_mode) = (true, "control-group");
    let error = stopped(&mut masked).unwrap_err();
    assert!(error.to_string().contains("kill 2 instances"), "{error}");
    for fake in [&nixos, &masked] {
        assert!(!fake.calls.iter().any(|call| call.starts_with("stop")), "{:?}", fake.calls);
        assert_eq!(Hold::find(&fake.places, "incus.service").unwrap(), None);
    }
    // With the operator's word, and where nothing runs.
    let unit = look(&mut nixos, "incus.service").unwrap();
    assert!(may_stop(&unit, Consent { may_stop_them: true, ..CONSENT }).is_ok());
    assert!(may_stop(&Unit { active: "inactive".to_owned(), ..unit }, CONSENT).is_ok());
}

#[test]
fn a_kill_at_any_step_is_followed_by_the_same_end() {
    let directory = tempfile::tempdir().unwrap();
    // After the file, after the reload, after the stop: the next one finds the hold, and the units
    // that ran before.
    for step in 0..3 {
        let mut fake = Fake::debian(directory.path());
        let running: Vec<String> = ["incus.socket", "incus.service"].map(str::to_owned).into();
        Hold::place(&fake.places, "incus.service", &running).unwrap();
        if step > 1 {
            fake.call(&[
                "stop",
                "--job-mode=ignore-requirements",
                "--",
                "incus.socket",
                "incus.service",
            ])
            .unwrap();
        }
        let hold = stopped(&mut fake).unwrap();
        assert!(hold.ran.starts_with(&running), "{:?}", hold.ran);
        lift(&mut fake, &hold).unwrap();
        let started = start(&mut fake, "incus.service", &hold.ran).unwrap();
        assert!(started.contains(&"incus.socket".to_owned()), "{started:?}");
        assert!(fake.active.contains("incus.socket") && fake.instances_run);
    }
}

#[test]
fn what_was_stopped_is_started_again_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let mut fake = Fake::debian(directory.path());
    let hold = stopped(&mut fake).unwrap();
    lift(&mut fake, &hold).unwrap();
    let started = start(&mut fake, "incus.service", &hold.ran).unwrap();
    // The sockets start the services on demand.
    assert_eq!(started, ["incus.socket", "incus-user.socket"]);
    assert_eq!(start(&mut fake, "incus.service", &[]).unwrap(), Vec::<String>::new());

    let mut without_socket = Fake::debian(directory.path());
    without_socket.known = ["incus.service"].into();
    without_socket.active.clear();
    assert_eq!(start(&mut without_socket, "incus.service", &[]).unwrap(), ["incus.service"]);
}

#[test]
fn what_systemd_says_is_understood() {
    let text = "LoadState=loaded\nActiveState=deactivating\nKillMode=process\n\
                ExecStop={ path=/usr/bin/incus ; argv[]=/usr/bin/incus admin shutdown ; \
                ignore_errors=no ; pid=0 }\nTriggeredBy=incus.socket \
                other.path\nDropInPaths=/etc/a.conf /run/b.conf\n";
    let unit = Unit::parse("incus.service", text);
    assert!(unit.is_known() && unit.runs());
    assert_eq!(unit.exec_stop.as_deref(), Some("/usr/bin/incus admin shutdown"));
    assert_eq!(unit.triggered_by, ["incus.socket", "other.path"]);
    assert_eq!(unit.drop_ins.len(), 2);
    let gone =
        Unit::parse("incus.service", "LoadState=not-found\nActiveState=inactive\nExecStop=\n");
    assert!(!gone.is_known() && !gone.runs() && gone.exec_stop.is_none());
}

#[test]
fn a_daemon_that_was_stopped_is_not_taken_for_one_that_a_client_can_start() {
    let directory = tempfile::tempdir().unwrap();
    let mut fake = Fake::debian(directory.path());
    let places = fake.places.clone();
    let ask = |fake: &mut Fake| reach(fake, &places, "incus.service").unwrap();
    assert_eq!(ask(&mut fake), Reach::Up);
    let hold = stopped(&mut fake).unwrap();
    assert_eq!(ask(&mut fake), Reach::Held(hold.clone()));
    lift(&mut fake, &hold).unwrap();
    assert_eq!(ask(&mut fake), Reach::Down(vec!["incus.socket".to_owned()]));
    start(&mut fake, "incus.service", &hold.ran).unwrap();
    // The daemon does not run, and its socket starts it.
    assert_eq!(ask(&mut fake), Reach::Up);
    fake.masked = true;
    assert_eq!(ask(&mut fake), Reach::Masked(vec!["incus.service".to_owned()]));
}

#[test]
fn a_rollback_leaves_the_companion_alone() {
    let directory = tempfile::tempdir().unwrap();
    let mut fake = Fake::debian(directory.path());
    let unit = look(&mut fake, "incus.service").unwrap();
    assert_eq!(stop(&mut fake, &unit, Scope::Daemon).unwrap(), ["incus.socket", "incus.service"]);
    assert!(
        fake.active.contains("incus-user.socket") && fake.active.contains("incus-user.service")
    );
    assert_eq!(by_hand(&mut fake, "incus.service").unwrap(), ["incus.socket"]);
}

#[test]
fn a_masked_unit_that_does_not_run_needs_no_hold() {
    let directory = tempfile::tempdir().unwrap();
    let mut fake = Fake::debian(directory.path());
    fake.masked = true;
    fake.active.clear();
    let (unit, places) = (look(&mut fake, "incus.service").unwrap(), fake.places.clone());
    assert!(may_stop(&unit, CONSENT).is_ok());
    assert_eq!(hold(&mut fake, &places, &unit, Scope::Daemon).unwrap(), None);
    assert_eq!(Hold::find(&places, "incus.service").unwrap(), None);
}
