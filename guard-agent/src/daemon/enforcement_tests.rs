//! Enforcement with means that only record the calls to them.

use std::cell::RefCell;
use std::rc::Rc;

use guard_common::Hook;

use super::*;

/// Means that record the calls to them.
struct Recorded {
    done: Rc<RefCell<Vec<&'static str>>>,
    adopted: bool,
    has_marks: bool,
}

/// `M` is whether the canary is answered.
impl Means<bool> for Recorded {
    fn tier(&self) -> Tier {
        Tier::FmodRet
    }

    fn is_adopted(&self) -> bool {
        self.adopted
    }

    fn prove(&mut self, maps: &mut bool) -> Result<(), CanaryError> {
        if *maps { Ok(()) } else { Err(silent()) }
    }

    fn retire_others(&mut self) -> Result<usize, DaemonError> {
        self.done.borrow_mut().push("others retired");
        Ok(2)
    }

    fn withdraw(self: Box<Self>) -> Result<(), DaemonError> {
        self.done.borrow_mut().push("withdrawn");
        Ok(())
    }

    fn has_marks(&self) -> bool {
        self.has_marks
    }

    fn note_troubles(&self, _troubles: &mut Troubles) {}
}

fn silent() -> CanaryError {
    CanaryError::Silent { hook: Hook::PathUnlink }
}

/// Enforcement with recording means, and the calls to those.
fn enforcement(adopted: bool) -> (Enforcement<bool>, Rc<RefCell<Vec<&'static str>>>) {
    let (mut enforcement, done) = (Enforcement::new(true), Rc::default());
    enforcement.hold(Box::new(Recorded { done: Rc::clone(&done), adopted, has_marks: false }));
    (enforcement, done)
}

#[test]
fn nothing_is_proven_before_the_canary_is_answered() {
    let (mut enforcement, _) = enforcement(false);
    assert_eq!((enforcement.proven_tier(), enforcement.proven_at()), (None, None));
    enforcement.maps = false;
    assert!(enforcement.prove().unwrap().is_err());
    assert_eq!(enforcement.proven_tier(), None);
    enforcement.maps = true;
    assert!(enforcement.prove().unwrap().is_ok());
    assert_eq!(enforcement.proven_tier(), Some(Tier::FmodRet));
    let proven_at = enforcement.proven_at();
    enforcement.maps = false;
    assert!(enforcement.prove().unwrap().is_err());
    assert_eq!(enforcement.proven_at(), proven_at, "the last answer is not forgotten");
    assert!(Enforcement::new(true).prove().is_none(), "there are no means");
}

#[test]
fn unproven_means_go_unless_they_were_there_before_or_may_stay() {
    let left = |adopted, may_run_inactive| {
        let (mut enforcement, done) = enforcement(adopted);
        enforcement.conclude(&Err(silent()), may_run_inactive).unwrap();
        (enforcement.means().is_some(), done.take())
    };
    assert_eq!(left(false, false), (false, vec!["withdrawn"]));
    assert_eq!(left(true, false), (false, vec![]), "the agent ends, and they enforce on");
    assert_eq!(left(false, true), (true, vec![]));
}

#[test]
fn proven_means_stay_and_end_older_ones_when_told() {
    let (mut enforcement, done) = enforcement(false);
    enforcement.conclude(&Ok(()), false).unwrap();
    assert_eq!(enforcement.proven_tier(), Some(Tier::FmodRet));
    assert_eq!(*done.borrow(), Vec::<&str>::new(), "nothing older ends by the way");
    assert_eq!(enforcement.retire_others().unwrap(), 2);
    assert_eq!(done.take(), ["others retired"]);
}

#[test]
fn only_means_with_marks_are_given_orders() {
    let (mut enforcement, done) = enforcement(false);
    assert!(enforcement.marking().is_none());
    enforcement.hold(Box::new(Recorded { done, adopted: false, has_marks: true }));
    assert!(enforcement.marking().is_some());
}
