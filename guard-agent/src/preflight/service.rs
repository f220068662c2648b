//! Can the incus client reach its daemon, or is that kept from starting? Pure.

use crate::doctor::Check;
use crate::service::Reach;

/// The finding.
pub fn check(reach: &Reach) -> Check {
    let (code, name) = ("incus-unit", "incus unit");
    match reach {
        Reach::Up => Check::ok(code, name, "it runs, or its socket starts it"),
        Reach::Down(units) => {
            let units = units.join(", ");
            let by_hand = units.replace(',', "");
            Check::ok(
                code,
                name,
                format!("stopped: guardctl join starts {units} (by hand: systemctl start {by_hand})"),
            )
        }
        Reach::Masked(units) => {
            let units = units.join(" ");
            let fix = format!("systemctl unmask {units}");
            Check::fail("incus-masked", name, format!("masked: {units}"), fix)
        }
        Reach::Held(hold) => {
            let path = hold.path.display();
            let found = format!("kept from starting by an earlier rollback or wipe ({path})");
            let fix = "guardctl rollback (or guardctl wipe) goes on where that ended; to have Incus back without: \
                       guardctl rollback --release-hold";
            Check::fail("incus-held", name, found, fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::CheckState;
    use crate::service::Hold;

    #[test]
    fn what_the_client_cannot_start_is_a_finding_with_its_command() {
        let units = vec!["incus.socket".to_owned(), "incus.service".to_owned()];
        let hold = Hold { path: "/etc/hold.conf".into(), outlives_boot: true, ran: Vec::new() };
        for (reach, state, text) in [
            (Reach::Up, CheckState::Ok, "its socket starts it"),
            (Reach::Down(units.clone()), CheckState::Ok, "systemctl start incus.socket incus.service"),
            (Reach::Masked(units), CheckState::Fail, "systemctl unmask incus.socket incus.service"),
            (Reach::Held(hold), CheckState::Fail, "--release-hold"),
        ] {
            let check = check(&reach);
            let fix = check.fix.clone().unwrap_or_default();
            assert_eq!(check.state, state);
            assert!(format!("{}{fix}", check.found).contains(text), "{check:?}");
        }
    }
}
