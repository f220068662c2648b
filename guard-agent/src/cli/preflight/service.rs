//! Can the incus client reach its daemon, or is that kept from starting? Pure.

use crate::host::doctor::Check;
use crate::host::service::Reach;

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
                format!(
                    "stopped: guardctl join starts {units} (by hand: systemctl start {by_hand})"
                ),
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
            let fix = "guardctl rollback (or guardctl wipe) goes on where that ended; to have \
                       Incus back without: guardctl rollback --release-hold";
            Check::fail("incus-held", name, found, fix)
        }
    }
}

/// The finding where no unit of systemd starts the daemon, and it does not run.
pub fn not_started(command: &str) -> Check {
    let found = "Incus does not run, and no unit of systemd starts it";
    Check::warn("incus-unit", "incus unit", found, format!("before the join: {command}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::doctor::CheckState;
    use crate::host::service::Hold;

    #[test]
    fn without_systemd_the_operator_starts_it() {
        let check = not_started("rc-service incusd start");
        assert_eq!(check.state, CheckState::Warn);
        assert!(check.fix.unwrap().contains("rc-service incusd start"));
    }

    #[test]
    fn what_the_client_cannot_start_is_a_finding_with_its_command() {
        let units = vec!["incus.socket".to_owned(), "incus.service".to_owned()];
        let hold = Hold { path: "/etc/hold.conf".into(), outlives_boot: true, ran: Vec::new() };
        for (reach, state, text) in [
            (Reach::Up, CheckState::Ok, "its socket starts it"),
            (
                Reach::Down(units.clone()),
                CheckState::Ok,
                "systemctl start incus.socket incus.service",
            ),
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
