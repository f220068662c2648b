//! The states that scenarios start from, each made from the one before and kept.
//!
//! ```text
//! booted   one host, nothing done yet; every other one is its copy
//! seed     store: Ceph; n1: a cluster of one with a pool and files in it; n2, n3: installed, nothing more
//! members  n2 has joined
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::fcntl::{Flock, FlockArg};

use super::cluster;
use super::lab::{ALONE, Lab, Name, Place, payload};
use super::machine::{From, Machine};
use super::settings::Settings;

/// A change of how a state is made, or of the machine, needs another number.
pub(super) const VERSION: u32 = 2;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum State {
    Booted,
    Seed,
    Members,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Booted => "booted",
            Self::Seed => "seed",
            Self::Members => "members",
        }
    }

    /// Under which name a host was saved.
    pub(super) fn name_of(self, host: Name) -> &'static str {
        if self == Self::Booted { "host" } else { host.as_str() }
    }

    /// Directory of the state; makes it first if need be.
    pub(super) fn made(self, settings: &Settings) -> Result<PathBuf> {
        let lock = fs::File::create(settings.states.join("lock"))
            .context("create the lock of the states")?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        self.made_locked(settings)
    }

    fn made_locked(self, settings: &Settings) -> Result<PathBuf> {
        let directory = settings.states.join(self.name());
        let key = directory.join("key");
        if fs::read_to_string(&key).is_ok_and(|made_by| made_by == settings.key) {
            return Ok(directory);
        }
        // A later state stands on the disks of an earlier one.
        let below = match self {
            Self::Booted => None,
            Self::Seed => Some(Self::Booted.made_locked(settings)?),
            Self::Members => Some(Self::Seed.made_locked(settings)?),
        };
        let start = Instant::now();
        if directory.exists() {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("remove {}", directory.display()))?;
        }
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        match below {
            None => boot(settings, &directory),
            Some(below) if self == Self::Seed => seed(settings, &below, &directory),
            Some(below) => members(settings, &below, &directory),
        }
        .with_context(|| format!("make the state {}", self.name()))?;
        // Last: a state without its key is not whole.
        fs::write(&key, &settings.key).context("write the state's key")?;
        println!(
            "note: the state {} was made in {:.0} s",
            self.name(),
            start.elapsed().as_secs_f64()
        );
        Ok(directory)
    }
}

fn boot(settings: &Settings, target: &Path) -> Result<()> {
    let place = Place::new()?;
    let directory = &place.path;
    let network = [ALONE.to_owned()];
    let disk = From::Disk(&settings.disk);
    let machine =
        Machine::start("host", settings, directory, disk, &network, &payload(directory)?)?;
    machine.wait_up(0)?;
    machine.attempt_within(
        "systemctl is-system-running --wait; systemctl --failed",
        Duration::from_secs(300),
    )?;
    tidy(&machine)?;
    machine.pause()?;
    machine.save(target)
}

fn seed(settings: &Settings, booted: &Path, target: &Path) -> Result<()> {
    let lab = Lab::of_saved(settings, &Name::ALL, |_| (booted.to_owned(), "host".to_owned()))?;
    on_each(&lab, |name, machine| {
        let (address, mac) = (name.address(), name.mac());
        machine
            .run(&format!("/usr/local/lib/lab/become {} {address} {mac}", name.as_str()))
            .map(drop)
    })?;
    cluster::found(&lab)?;
    on_each(&lab, |_, machine| tidy(machine))?;
    lab.save(target)
}

fn members(settings: &Settings, seed: &Path, target: &Path) -> Result<()> {
    let lab =
        Lab::of_saved(settings, &Name::ALL, |name| (seed.to_owned(), name.as_str().to_owned()))?;
    cluster::join(&lab, Name::N2)?.succeeds()?;
    on_each(&lab, |_, machine| tidy(machine))?;
    lab.save(target)
}

/// Memory that nothing is in is not saved: the guest reports free pages to QEMU within two seconds.
fn tidy(machine: &Machine) -> Result<()> {
    machine
        .run("sync; echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory; sleep 4")
        .map(drop)
}

/// Does the same on all hosts at once.
pub(super) fn on_each(lab: &Lab, act: impl Fn(Name, &Machine) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let started: Vec<_> = lab
            .hosts()
            .map(|(name, machine)| {
                scope.spawn({
                    let act = &act;
                    move || act(name, machine)
                })
            })
            .collect();
        started.into_iter().try_for_each(|thread| {
            thread.join().map_err(|_| anyhow!("a host's thread panicked"))?
        })
    })
}
