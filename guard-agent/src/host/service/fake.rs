//! A systemd that exists in tests only: units with the packagings' requirements, and instances that
//! `incus-startup` stops when it is stopped, as its `ExecStop=` does.

use std::collections::{BTreeMap, BTreeSet};

use super::ServiceError;
use super::hold::{Hold, Places};
use super::units::Systemctl;

/// The state of a host.
pub(super) struct Fake {
    pub places: Places,
    pub known: BTreeSet<&'static str>,
    pub active: BTreeSet<String>,
    /// `(unit, its requirement)`.
    pub requires: Vec<(&'static str, &'static str)>,
    pub kill_mode: &'static str,
    pub exec_stop: &'static str,
    pub masked: bool,
    pub instances_run: bool,
    pub calls: Vec<String>,
}

impl Fake {
    /// Debian's units, all running, on a host with instances.
    pub(super) fn debian(directory: &std::path::Path) -> Self {
        let known = [
            "incus.service",
            "incus.socket",
            "incus-user.service",
            "incus-user.socket",
            "incus-startup.service",
        ];
        Self {
            places: Places { persistent: directory.join("etc"), transient: directory.join("run") },
            known: known.into(),
            active: known.map(str::to_owned).into(),
            requires: vec![
                ("incus.service", "incus.socket"),
                ("incus-startup.service", "incus.socket"),
                ("incus-user.service", "incus.service"),
                ("incus-user.service", "incus-user.socket"),
            ],
            kill_mode: "process",
            exec_stop: "",
            masked: false,
            instances_run: true,
            calls: Vec::new(),
        }
    }

    fn show(&self, unit: &str) -> String {
        let load = match (self.known.contains(unit), self.masked && unit == "incus.service") {
            (false, _) => "not-found",
            (true, true) => "masked",
            (true, false) => "loaded",
        };
        let active = if self.active.contains(unit) { "active" } else { "inactive" };
        let mut text = format!("LoadState={load}\nActiveState={active}\nTriggeredBy=\n");
        if unit == "incus.service" {
            text = text.replace("TriggeredBy=\n", "TriggeredBy=incus.socket\n");
            let hold = Hold::find(&self.places, unit).unwrap();
            let path = hold.map(|hold| hold.path.display().to_string()).unwrap_or_default();
            text.push_str(&format!("KillMode={}\nDropInPaths={path}\n", self.kill_mode));
            if !self.exec_stop.is_empty() {
                text.push_str(&format!(
                    "ExecStop={{ path=/x ; argv[]={} ; ignore_errors=no }}\n",
                    self.exec_stop
                ));
            }
        }
        text
    }

    fn stop(&mut self, unit: &str, with_requirements: bool) {
        if !self.active.remove(unit) {
            return;
        }
        if unit == "incus-startup.service" {
            self.instances_run = false;
        }
        let dependents: BTreeMap<&str, ()> = self
            .requires
            .iter()
            .filter(|(_, other)| *other == unit)
            .map(|(name, _)| (*name, ()))
            .collect();
        for name in dependents.into_keys().filter(|_| with_requirements) {
            self.stop(name, with_requirements);
        }
    }
}

impl Systemctl for Fake {
    fn call(&mut self, arguments: &[&str]) -> Result<String, ServiceError> {
        self.calls.push(arguments.join(" "));
        match arguments {
            ["show", _, "--", unit] => return Ok(self.show(unit)),
            ["daemon-reload"] => {}
            ["stop", options @ .., "--", _] | ["stop", options @ ..] => {
                let with_requirements = !options.contains(&"--job-mode=ignore-requirements");
                for unit in arguments.iter().filter(|word| word.contains('.')) {
                    self.stop(unit, with_requirements);
                }
            }
            ["start", "--", unit] => {
                let held = Hold::find(&self.places, unit)?.is_some();
                if held || !self.known.contains(unit) {
                    let (arguments, status) = (arguments.join(" "), "exit status: 1".to_owned());
                    let message = "Assertion failed on job".to_owned();
                    return Err(ServiceError::Systemctl { arguments, status, message });
                }
                self.active.insert((*unit).to_owned());
            }
            other => panic!("{other:?}"),
        }
        Ok(String::new())
    }
}
