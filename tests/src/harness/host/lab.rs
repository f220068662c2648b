//! The hosts of one scenario, started from a saved state, and the network between them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use nix::fcntl::{Flock, FlockArg};

use super::machine::{From, Machine};
use super::settings::Settings;
use super::states::State;

/// The hosts that there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Name {
    /// Ceph, an independent mount of it, and the switch of the network.
    Store,
    /// The cluster's first member.
    N1,
    /// Joins it.
    N2,
    /// May join it too.
    N3,
}

impl Name {
    pub const ALL: [Self; 4] = [Self::Store, Self::N1, Self::N2, Self::N3];
    pub const NODES: [Self; 3] = [Self::N1, Self::N2, Self::N3];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::N1 => "n1",
            Self::N2 => "n2",
            Self::N3 => "n3",
        }
    }

    /// On the lab's own network.
    pub fn address(self) -> &'static str {
        match self {
            Self::Store => "10.0.3.1",
            Self::N1 => "10.0.3.11",
            Self::N2 => "10.0.3.12",
            Self::N3 => "10.0.3.13",
        }
    }

    /// Machines that were copied have the same one until they get their own.
    pub fn mac(self) -> String {
        format!("52:54:00:67:64:{:02x}", self as u8 + 1)
    }
}

/// Running hosts. All of it ends, and is forgotten, with the value.
#[derive(Debug)]
pub struct Lab {
    machines: BTreeMap<Name, Machine>,
    /// After the machines: it goes last.
    place: Place,
}

impl Lab {
    /// Starts the named hosts where `state` left them; makes the state if it was never made.
    pub fn start(state: State, names: &[Name]) -> Result<Self> {
        Self::start_with(state, names, "")
    }

    /// The same; with further kernel parameters they are booted anew.
    pub fn start_with(state: State, names: &[Name], parameters: &str) -> Result<Self> {
        let mut settings = Settings::from_environment()?;
        let saved = state.made(&settings)?;
        parameters.clone_into(&mut settings.parameters);
        let lab = Self::of_saved(&settings, names, |name| {
            (saved.clone(), state.name_of(name).to_owned())
        })?;
        if !parameters.is_empty() {
            lab.machines.values().try_for_each(Machine::reboot)?;
        }
        Ok(lab)
    }

    /// Starts each host from the directory and the name that `saved` says.
    pub(super) fn of_saved(
        settings: &Settings,
        names: &[Name],
        saved: impl Fn(Name) -> (PathBuf, String),
    ) -> Result<Self> {
        let place = Place::new()?;
        let payload = payload(&place.path)?;
        let mut lab = Self { machines: BTreeMap::new(), place };
        for &name in names {
            let (directory, saved_name) = saved(name);
            let from = From::Saved(&directory, &saved_name);
            let network = network(name, names, &lab.place.path);
            let machine =
                Machine::start(name.as_str(), settings, &lab.place.path, from, &network, &payload)?;
            lab.machines.insert(name, machine);
        }
        lab.machines.values().try_for_each(Machine::resume)?;
        Ok(lab)
    }

    /// One of them.
    ///
    /// # Panics
    /// If the scenario did not start it.
    pub fn host(&self, name: Name) -> &Machine {
        self.machines.get(&name).expect("the scenario started this host")
    }

    pub fn hosts(&self) -> impl Iterator<Item = (Name, &Machine)> {
        self.machines.iter().map(|(name, machine)| (*name, machine))
    }

    /// Saves all of them as they are at this moment, and ends them.
    pub(super) fn save(mut self, directory: &Path) -> Result<()> {
        self.machines.values().try_for_each(Machine::pause)?;
        std::mem::take(&mut self.machines)
            .into_values()
            .try_for_each(|machine| machine.save(directory))
    }
}

/// A directory for the files of running machines, and the lock that says that it is in use. It goes
/// with the value.
#[derive(Debug)]
pub(super) struct Place {
    pub path: PathBuf,
    _lock: Flock<fs::File>,
}

impl Place {
    const PREFIX: &str = "guard-host-";

    /// A new one. Sockets have short paths, so it is not in the target directory. What a run that
    /// was killed has left, which nobody holds any more, is removed.
    pub(super) fn new() -> Result<Self> {
        let parent = std::env::temp_dir();
        for entry in
            fs::read_dir(&parent).with_context(|| format!("list {}", parent.display()))?.flatten()
        {
            let is_ours = entry.file_name().to_string_lossy().starts_with(Self::PREFIX);
            if is_ours
                && fs::File::open(entry.path().join("lock")).is_ok_and(|lock| hold(lock).is_ok())
            {
                // Remains are only litter.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        // Runs in PID namespaces of their own are all process 1.
        let unique =
            fs::read_to_string("/proc/sys/kernel/random/uuid").context("read a new uuid")?;
        let path = parent.join(format!("{}{}", Self::PREFIX, &unique[..8]));
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        let lock = fs::File::create(path.join("lock"))
            .context("create the lock of the machines' directory")?;
        let lock = hold(lock).map_err(|error| anyhow!("lock {}: {error}", path.display()))?;
        Ok(Self { path, _lock: lock })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The next run removes the remains.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn hold(lock: fs::File) -> Result<Flock<fs::File>, nix::errno::Errno> {
    Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error)
}

/// The store's QEMU is the switch: each other host is a cable to it. A host without the store is
/// alone.
fn network(name: Name, all: &[Name], directory: &Path) -> Vec<String> {
    let cable = |node: Name, server: &str| {
        let path = directory.join(format!("{}.cable", node.as_str()));
        format!("stream,server={server},addr.type=unix,addr.path={}", path.display())
    };
    if name != Name::Store {
        let alone = !all.contains(&Name::Store);
        return vec![if alone {
            ALONE.to_owned()
        } else {
            format!("{},id=net0", cable(name, "off"))
        }];
    }
    let mut options = vec![ALONE.to_owned()];
    for (port, node) in all.iter().filter(|node| **node != Name::Store).enumerate() {
        options.push(format!("{},id=cable{port}", cable(*node, "on")));
        options.push(format!("hubport,id=port{port},hubid=0,netdev=cable{port}"));
    }
    options
}

/// A switch of its own.
pub(super) const ALONE: &str = "hubport,id=net0,hubid=0";

/// A disk that brings files into every host: a tar archive of what `GUARD_HOST_PAYLOAD` names, in a
/// room that never changes its size.
pub(super) fn payload(directory: &Path) -> Result<PathBuf> {
    const SIZE: u64 = 128 << 20;
    let disk = directory.join("payload");
    if let Some(files) = std::env::var_os("GUARD_HOST_PAYLOAD") {
        let mut tar = std::process::Command::new("tar");
        tar.arg("--create").arg("--file").arg(&disk).arg("--directory").arg(&files).arg(".");
        let output = tar.output().context("start tar")?;
        anyhow::ensure!(
            output.status.success(),
            "tar: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let file = fs::File::options()
        .create(true)
        .append(true)
        .open(&disk)
        .context("create the payload's disk")?;
    anyhow::ensure!(
        file.metadata()?.len() < SIZE,
        "the payload does not fit its disk of {} MB",
        SIZE >> 20
    );
    file.set_len(SIZE).context("size the payload's disk")?;
    Ok(disk)
}
