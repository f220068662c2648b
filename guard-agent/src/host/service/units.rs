//! The daemon's units as systemd knows them: describes them, stops them without their instances,
//! starts them. Changes nothing else: `incus-startup.service`, whose stop shuts down every
//! instance, is never part of it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::ServiceError;
use super::hold::{Hold, Places};
use crate::host::wait;
use crate::host::wait::Patience;

/// systemd, asked by `systemctl`.
pub trait Systemctl {
    /// Runs it to its end; its output.
    fn call(&mut self, arguments: &[&str]) -> Result<String, ServiceError>;
}

/// A program. Each call has the limit.
pub struct LiveSystemctl<'a> {
    pub program: &'a Path,
    pub patience: Patience<'a>,
    /// Gets a line now and then while a call lasts.
    pub alive: &'a mut dyn FnMut(&str),
}

impl Systemctl for LiveSystemctl<'_> {
    fn call(&mut self, arguments: &[&str]) -> Result<String, ServiceError> {
        let mut command = Command::new(self.program);
        command.args(["--no-pager", "--no-ask-password"]).args(arguments);
        let (what, limit) = (format!("systemctl {}", arguments.join(" ")), self.patience.limit);
        let mut alive = |passed: Duration| {
            let (passed, limit) = (passed.as_secs(), limit.as_secs());
            (self.alive)(&format!(
                "{what}: {passed} s of at most {limit} s (Ctrl-C ends the wait)"
            ));
        };
        let failed = |source: io::Error| ServiceError::Run { program: "systemctl", source };
        let said = wait::run(&mut command, &self.patience, &mut alive).map_err(failed)?;
        let said = said.map_err(|early| ServiceError::early(early, &what, limit))?;
        if said.status.success() {
            return Ok(said.output);
        }
        Err(ServiceError::Systemctl {
            arguments: arguments.join(" "),
            status: said.status.to_string(),
            message: said.errors,
        })
    }
}

/// systemd's description of a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    pub name: String,
    /// `loaded`, `not-found`, `masked`, …
    pub load: String,
    /// `active`, `inactive`, `failed`, …
    pub active: String,
    pub kill_mode: String,
    /// Command that runs when it is stopped.
    pub exec_stop: Option<String>,
    /// Units that start it, such as its socket.
    pub triggered_by: Vec<String>,
    pub drop_ins: Vec<PathBuf>,
}

impl Unit {
    /// Whether systemd has a file of it.
    pub fn is_known(&self) -> bool {
        !matches!(self.load.as_str(), "not-found" | "")
    }

    /// Whether it runs, or is about to.
    pub fn runs(&self) -> bool {
        !matches!(self.active.as_str(), "inactive" | "failed" | "")
    }

    fn parse(name: &str, text: &str) -> Self {
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim()
        };
        let words = |key| value(key).split_whitespace();
        Self {
            name: name.to_owned(),
            load: value("LoadState").to_owned(),
            active: value("ActiveState").to_owned(),
            kill_mode: value("KillMode").to_owned(),
            exec_stop: Some(value("ExecStop")).filter(|command| !command.is_empty()).map(argv),
            triggered_by: words("TriggeredBy").map(str::to_owned).collect(),
            drop_ins: words("DropInPaths").map(PathBuf::from).collect(),
        }
    }
}

/// The command of `{ path=… ; argv[]=… ; ignore_errors=… }`.
fn argv(value: &str) -> String {
    let argv = value.split(" ; ").find_map(|field| field.trim().strip_prefix("argv[]="));
    argv.unwrap_or(value).to_owned()
}

/// Asks for one unit.
pub fn look(systemctl: &mut dyn Systemctl, unit: &str) -> Result<Unit, ServiceError> {
    let wanted = "--property=LoadState,ActiveState,KillMode,ExecStop,TriggeredBy,DropInPaths";
    Ok(Unit::parse(unit, &systemctl.call(&["show", wanted, "--", unit])?))
}

/// The units that are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The daemon, and the sockets that start it.
    Daemon,
    /// Its companion for unprivileged users too, whose socket lies in the daemon's directory.
    Directory,
}

/// The units that systemd has a file of, the daemon's own last.
fn units(
    systemctl: &mut dyn Systemctl,
    unit: &str,
    scope: Scope,
) -> Result<Vec<Unit>, ServiceError> {
    let daemon = look(systemctl, unit)?;
    let base = unit.strip_suffix(".service").unwrap_or(unit);
    let mut names = sockets(&daemon);
    if scope == Scope::Directory {
        names.extend([format!("{base}-user.socket"), format!("{base}-user.service")]);
    }
    let mut units =
        names.iter().map(|name| look(systemctl, name)).collect::<Result<Vec<_>, _>>()?;
    units.push(daemon);
    units.retain(Unit::is_known);
    Ok(units)
}

/// Names of the sockets that start a daemon.
fn sockets(daemon: &Unit) -> Vec<String> {
    let sockets = daemon.triggered_by.iter().filter(|name| name.ends_with(".socket"));
    sockets.cloned().collect()
}

/// Permission of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consent {
    /// Instances that run.
    pub instances: usize,
    /// They may be stopped too.
    pub may_stop_them: bool,
}

/// Keeps the daemon from starting. Its running units run on. `None`: it is masked, and cannot start
/// anyway.
pub fn hold(
    systemctl: &mut dyn Systemctl,
    places: &Places,
    unit: &Unit,
    scope: Scope,
) -> Result<Option<Hold>, ServiceError> {
    if unit.load == "masked" {
        return Ok(None);
    }
    let running = running(systemctl, unit, scope)?;
    let hold = Hold::place(places, &unit.name, &running)?;
    systemctl.call(&["daemon-reload"])?;
    if look(systemctl, &unit.name)?.drop_ins.contains(&hold.path) {
        return Ok(Some(hold));
    }
    Err(ServiceError::HoldUnseen { unit: unit.name.clone(), path: hold.path })
}

/// Stops the daemon and its sockets. Its instances run on. Returns the stopped units.
pub fn stop(
    systemctl: &mut dyn Systemctl,
    unit: &Unit,
    scope: Scope,
) -> Result<Vec<String>, ServiceError> {
    let running = running(systemctl, unit, scope)?;
    if !running.is_empty() {
        // In the usual mode a stop of the socket stops incus-startup.service, and that all
        // instances.
        let mut arguments = vec!["stop", "--job-mode=ignore-requirements", "--"];
        arguments.extend(running.iter().map(String::as_str));
        systemctl.call(&arguments)?;
    }
    Ok(running)
}

fn running(
    systemctl: &mut dyn Systemctl,
    unit: &Unit,
    scope: Scope,
) -> Result<Vec<String>, ServiceError> {
    let units = units(systemctl, &unit.name, scope)?;
    Ok(units.into_iter().filter(Unit::runs).map(|unit| unit.name).collect())
}

/// Refuses a stop that would take instances with it.
pub fn may_stop(unit: &Unit, consent: Consent) -> Result<(), ServiceError> {
    if consent.may_stop_them || !unit.runs() {
        return Ok(());
    }
    if let Some(command) = &unit.exec_stop {
        return Err(ServiceError::StopsInstances {
            unit: unit.name.clone(),
            command: command.clone(),
        });
    }
    let leaves_them = matches!(unit.kill_mode.as_str(), "process" | "none");
    if consent.instances > 0 && !leaves_them {
        let (unit, kill_mode) = (unit.name.clone(), unit.kill_mode.clone());
        return Err(ServiceError::KillsInstances { unit, kill_mode, instances: consent.instances });
    }
    Ok(())
}

/// Ends the hold. Nothing is started.
pub fn lift(systemctl: &mut dyn Systemctl, hold: &Hold) -> Result<(), ServiceError> {
    hold.remove()?;
    systemctl.call(&["daemon-reload"]).map(|_| ())
}

/// Units that must start before the daemon can be reached: its sockets, or the daemon where it has
/// none.
fn down(systemctl: &mut dyn Systemctl, unit: &str) -> Result<Vec<String>, ServiceError> {
    let mut units = units(systemctl, unit, Scope::Daemon)?;
    let Some(daemon) = units.pop() else { return Ok(vec![unit.to_owned()]) };
    if daemon.runs() {
        // A socket does not start while its service runs.
        return Ok(Vec::new());
    }
    if units.is_empty() {
        units.push(daemon);
    }
    Ok(units.into_iter().filter(|unit| !unit.runs()).map(|unit| unit.name).collect())
}

/// Starts the units that make the daemon reachable, and those of its companion's that ran before.
/// Returns the started units.
pub fn start(
    systemctl: &mut dyn Systemctl,
    unit: &str,
    ran: &[String],
) -> Result<Vec<String>, ServiceError> {
    let mut names = down(systemctl, unit)?;
    for companion in units(systemctl, unit, Scope::Directory)? {
        let is_socket = companion.name.ends_with(".socket") && !names.contains(&companion.name);
        if is_socket && !companion.runs() && ran.contains(&companion.name) {
            names.push(companion.name);
        }
    }
    for name in &names {
        systemctl.call(&["start", "--", name])?;
    }
    Ok(names)
}

/// The units that an operator starts by hand.
pub fn by_hand(systemctl: &mut dyn Systemctl, unit: &str) -> Result<Vec<String>, ServiceError> {
    let sockets = sockets(&look(systemctl, unit)?);
    Ok(if sockets.is_empty() { vec![unit.to_owned()] } else { sockets })
}

/// Whether the incus client can reach the daemon, or start it through its socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// An earlier rollback or wipe keeps it from starting.
    Held(Hold),
    /// An operator has masked these.
    Masked(Vec<String>),
    /// These have to be started first.
    Down(Vec<String>),
    Up,
}

/// Tells the way to reach the daemon.
pub fn reach(
    systemctl: &mut dyn Systemctl,
    places: &Places,
    unit: &str,
) -> Result<Reach, ServiceError> {
    if let Some(hold) = Hold::find(places, unit)? {
        return Ok(Reach::Held(hold));
    }
    let units = units(systemctl, unit, Scope::Daemon)?;
    let masked = units.into_iter().filter(|unit| unit.load == "masked").map(|unit| unit.name);
    let masked: Vec<String> = masked.collect();
    if !masked.is_empty() {
        return Ok(Reach::Masked(masked));
    }
    let down = down(systemctl, unit)?;
    Ok(if down.is_empty() { Reach::Up } else { Reach::Down(down) })
}

#[cfg(test)]
#[path = "units_tests.rs"]
mod tests;
