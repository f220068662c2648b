//! A hold: a drop-in file that keeps the daemon's unit from starting, at a boot too, by an
//! assertion that fails as long as the file is there.
//!
//! The file is its own journal: after a kill the next process finds it, and in it the units that
//! ran before. The hold is over as soon as the file is gone, also before systemd has read that.
//! Nothing else of the unit changes: masking a unit that runs would make systemd forget its
//! `KillMode=process` and kill virtual machines.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::ServiceError;
use crate::host::durable;

/// Name of the drop-in file. It comes late in the order, and nothing of the unit is named twice by
/// it.
const NAME: &str = "90-guard-agent-hold.conf";
const RAN: &str = "# Units that ran before: ";

/// Directories of systemd's drop-in files.
#[derive(Clone, Debug)]
pub struct Places {
    /// Outlives a boot.
    pub persistent: PathBuf,
    pub transient: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self { persistent: "/etc/systemd/system".into(), transient: "/run/systemd/system".into() }
    }
}

/// A hold that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    pub path: PathBuf,
    /// Whether it keeps the unit from starting at a boot too.
    pub outlives_boot: bool,
    /// Units that ran before, and are to be started again.
    pub ran: Vec<String>,
}

impl Hold {
    /// The hold of a unit, if there is one.
    pub fn find(places: &Places, unit: &str) -> Result<Option<Self>, ServiceError> {
        for (directory, outlives_boot) in [(&places.persistent, true), (&places.transient, false)] {
            let path = file(directory, unit);
            match fs::read_to_string(&path) {
                Ok(text) => return Ok(Some(Self { path, outlives_boot, ran: ran(&text) })),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ServiceError::Hold { operation: "read", path, source }),
            }
        }
        Ok(None)
    }

    /// Puts the file there. A file that is there already keeps its units: now that they are
    /// stopped, systemd no longer tells which of them ran.
    pub fn place(places: &Places, unit: &str, running: &[String]) -> Result<Self, ServiceError> {
        let mut units = Self::find(places, unit)?.map(|hold| hold.ran).unwrap_or_default();
        units.extend(
            running.iter().filter(|unit| !units.contains(unit)).cloned().collect::<Vec<_>>(),
        );
        match Self::write(&places.persistent, unit, &units) {
            Ok(path) => Ok(Self { path, outlives_boot: true, ran: units }),
            // A host whose /etc is made elsewhere (NixOS, an image that is mounted read-only).
            Err(ServiceError::Hold { source, .. }) if is_read_only(&source) => {
                let path = Self::write(&places.transient, unit, &units)?;
                Ok(Self { path, outlives_boot: false, ran: units })
            }
            Err(error) => Err(error),
        }
    }

    fn write(directory: &Path, unit: &str, running: &[String]) -> Result<PathBuf, ServiceError> {
        let path = file(directory, unit);
        let failed =
            |operation, source| ServiceError::Hold { operation, path: path.clone(), source };
        let parent = path.parent().unwrap_or(directory);
        fs::create_dir_all(parent).map_err(|source| failed("make the directory of", source))?;
        durable::replace(&path, text(&path, running).as_bytes())
            .map_err(|(operation, source)| failed(operation, source))?;
        Ok(path)
    }

    /// Takes the file away.
    pub fn remove(&self) -> Result<(), ServiceError> {
        let gone = fs::remove_file(&self.path);
        if let Err(source) = gone
            && source.kind() != io::ErrorKind::NotFound
        {
            return Err(ServiceError::Hold {
                operation: "remove",
                path: self.path.clone(),
                source,
            });
        }
        // Left over by a kill in the middle of writing.
        let _ = fs::remove_file(self.path.with_extension("conf.new"));
        if let Some(directory) = self.path.parent() {
            // Others may have drop-in files there.
            let _ = fs::remove_dir(directory);
        }
        Ok(())
    }

    /// The command with which an operator ends it by hand.
    pub fn end_by_hand(&self) -> String {
        format!("rm {}; systemctl daemon-reload", self.path.display())
    }
}

fn file(directory: &Path, unit: &str) -> PathBuf {
    directory.join(format!("{unit}.d")).join(NAME)
}

fn text(path: &Path, running: &[String]) -> String {
    format!(
        "# guardctl keeps this unit from starting while the pools of a failed join are unmounted, \
         or its directory\n# is emptied: started, Incus would mount the pools again. guardctl \
         rollback and guardctl wipe end it.\n# By hand: remove this file, then systemctl \
         daemon-reload.\n{RAN}{}\n\
         [Unit]\n\
         AssertPathExists=!{}\n",
        running.join(" "),
        path.display()
    )
}

fn ran(text: &str) -> Vec<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(RAN)).unwrap_or_default();
    line.split_whitespace().map(str::to_owned).collect()
}

fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(directory: &Path) -> Places {
        Places { persistent: directory.join("etc"), transient: directory.join("run") }
    }

    #[test]
    fn a_hold_is_found_again_with_what_ran_before() {
        let directory = tempfile::tempdir().unwrap();
        let places = places(directory.path());
        assert_eq!(Hold::find(&places, "incus.service").unwrap(), None);
        let units = ["incus.socket".to_owned(), "incus.service".to_owned()];
        let hold = Hold::place(&places, "incus.service", &units).unwrap();
        assert!(hold.outlives_boot);
        // Run again after a kill: by now nothing runs.
        assert_eq!(Hold::place(&places, "incus.service", &[]).unwrap(), hold);
        assert_eq!(Hold::find(&places, "incus.service").unwrap().as_ref(), Some(&hold));
        let text = fs::read_to_string(&hold.path).unwrap();
        let assertion = format!("[Unit]\nAssertPathExists=!{}\n", hold.path.display());
        assert!(text.ends_with(&assertion), "{text}");
        fs::write(hold.path.with_extension("conf.new"), "half").unwrap();
        hold.remove().unwrap();
        hold.remove().unwrap();
        assert_eq!(Hold::find(&places, "incus.service").unwrap(), None);
        assert!(!hold.path.parent().unwrap().exists());
    }

    #[test]
    fn where_etc_cannot_be_written_it_lasts_until_the_next_boot() {
        let directory = tempfile::tempdir().unwrap();
        // Nobody makes a directory in sysfs, root included.
        let places = Places { persistent: "/sys".into(), ..places(directory.path()) };
        let hold = Hold::place(&places, "incus.service", &["incus.socket".to_owned()]).unwrap();
        assert!(!hold.outlives_boot && hold.path.starts_with(directory.path().join("run")));
        assert_eq!(Hold::find(&places, "incus.service").unwrap(), Some(hold));
    }
}
