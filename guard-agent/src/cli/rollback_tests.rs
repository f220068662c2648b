//! Following a rollback, and the text that an operator reads about its end.

use super::super::fake::{self, FakeAgent};
use super::*;
use crate::model::rollback::{Guest, Holder, MountPlace, StepReport, UnmountOutcome, Via};

fn report(outcome: Option<RollbackOutcome>) -> RollbackReport {
    let place = MountPlace {
        namespace: 1,
        in_host: true,
        pid: 1,
        mountpoint: "/var/lib/incus/p".to_owned(),
    };
    let step = StepReport {
        place,
        pool: Some("p".to_owned()),
        lazy: false,
        outcome: UnmountOutcome::Busy,
    };
    RollbackReport {
        root: "/var/lib/incus".to_owned(),
        state: "join-failed".to_owned(),
        running: false,
        lazy: false,
        steps: vec![step],
        waiting_for: 0,
        outcome,
        refusal: None,
    }
}

#[test]
fn what_remains_is_told_with_who_holds_it_and_what_to_do() {
    let holder = Holder {
        generation: 7,
        pid: 42,
        command: "vi\u{1b}".to_owned(),
        via: vec![Via::WorkingDirectory { path: "/var/lib/incus/p".to_owned() }],
    };
    let remaining = Remaining {
        pool: "p".to_owned(),
        generation: 7,
        device: "0:43".to_owned(),
        mounts: vec![MountPlace {
            namespace: 9,
            in_host: false,
            pid: 77,
            mountpoint: "/data".to_owned(),
        }],
        obstacles: Vec::new(),
        holders: vec![holder],
        fix: "end process 42".to_owned(),
    };
    let outcome = RollbackOutcome { remaining: vec![remaining], ..RollbackOutcome::default() };
    let report = report(Some(outcome));
    let text = verdict(&report);
    for part in [
        "1 superblocks remain",
        "/data in mount namespace 9 (of process 77)",
        "process 42",
        "fix: end",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains('\u{1b}'));
    assert!(!is_released(&report));
}

fn running(state: &'static str) -> FakeAgent {
    FakeAgent::start(move |_| match fake::rollback_status(state) {
        Reply::Rollback(report) => {
            Reply::Rollback(Box::new(RollbackReport { running: true, refusal: None, ..*report }))
        }
        other => other,
    })
}

#[test]
fn a_rollback_that_does_not_end_is_followed_no_longer_than_the_limit() {
    let (agent, interrupt) = (running("rolling-back"), fake::uninterrupted());
    let global = agent.global();
    let follow = Follow {
        global: &global,
        interrupt: &interrupt.0,
        limit: Duration::from_millis(10),
        every: EVERY,
        stopped: false,
    };
    let root = Path::new(fake::ROOT);
    let error = follow.carry_out(root, Allowed::default(), &mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().starts_with("the rollback has not ended"), "{error}");
    assert!(error.fix().unwrap().contains("guardctl rollback --root /var/lib/incus"));
    assert_eq!(agent.asked()[0], "rollback");
}

#[test]
fn an_interrupt_ends_following_and_not_the_rollback() {
    let agent = running("rolling-back");
    let global = agent.global();
    let (interrupt, writer) = fake::uninterrupted();
    drop(writer);
    let follow = Follow {
        global: &global,
        interrupt: &interrupt,
        limit: WAIT,
        every: EVERY,
        stopped: false,
    };
    let root = Path::new(fake::ROOT);
    let error = follow.carry_out(root, Allowed::default(), &mut |_| Ok(())).unwrap_err();
    assert!(error.fix().unwrap().contains("the agent goes on with it"), "{error}");
    assert_eq!(agent.asked(), ["rollback"]);
}

#[test]
fn a_state_that_refuses_is_told_before_anything_is_stopped() {
    for (state, refused) in [("standalone", true), ("joined", true), ("join-partial", false)] {
        let agent = FakeAgent::start(move |_| fake::rollback_status(state));
        let asked = ask(&agent.global(), None);
        assert_eq!(asked.is_err(), refused, "{state}");
        assert_eq!(agent.asked(), ["rollback-status"]);
    }
    // A running rollback is followed, even if the state refuses another one.
    assert!(ask(&running("rolling-back").global(), None).is_ok());
}

#[test]
fn guests_in_the_way_are_named() {
    let guest = Guest {
        pool: "shared".to_owned(),
        namespace: 9,
        pid: 77,
        name: "c1".to_owned(),
        mountpoint: "/data".to_owned(),
    };
    let text = verdict(&report(Some(RollbackOutcome {
        guests: vec![guest],
        ..RollbackOutcome::default()
    })));
    assert!(text.contains("in use: c1 (process 77) has pool shared mounted at /data"), "{text}");
}

#[test]
fn a_complete_one_is_a_release() {
    assert!(is_released(&report(Some(RollbackOutcome::default()))));
    assert!(!is_released(&report(None)));
}

#[test]
fn a_container_in_the_way_is_told_while_incus_can_still_stop_it() {
    let host = tempfile::tempdir().unwrap();
    let node = fake::node_in(host.path());
    let pool = fake::pool("shared", guard_common::Mode::Sealed);
    no_guests(&node, std::slice::from_ref(&pool)).unwrap();
    let container = node.incus.proc_root.join("70");
    std::fs::create_dir_all(container.join("ns")).unwrap();
    std::os::unix::fs::symlink("mnt:[2]", container.join("ns/mnt")).unwrap();
    std::os::unix::fs::symlink("/", container.join("root")).unwrap();
    std::fs::write(container.join("cgroup"), "0::/lxc.payload.c1/init.scope\n").unwrap();
    let table = "50 0 7:1 / / rw - ext4 a rw\n51 50 0:44 /custom/v /data rw - ceph s rw\n";
    std::fs::write(container.join("mountinfo"), table).unwrap();
    let error = no_guests(&node, &[pool]).unwrap_err();
    assert!(
        error.to_string().contains("c1 (process 70) has pool shared mounted at /data"),
        "{error}"
    );
    assert_eq!(error.exit(), Exit::Refused);
    assert!(error.fix().unwrap().contains("incus stop NAME"));
}

#[test]
fn a_rollback_that_takes_long_shows_signs_of_life() {
    let (agent, interrupt) = (running("rolling-back"), fake::uninterrupted());
    let (global, interrupt) = (agent.global(), &interrupt.0);
    let (limit, every) = (Duration::from_millis(500), Duration::from_millis(1));
    let follow = Follow { global: &global, interrupt, limit, every, stopped: false };
    let mut lines = Vec::new();
    let ended = follow.carry_out(Path::new(fake::ROOT), Allowed::default(), &mut |line| {
        lines.push(line.to_owned());
        Ok(())
    });
    assert!(ended.is_err());
    assert!(lines.iter().any(|line| line.starts_with("rolling back: ")), "{lines:?}");
}
