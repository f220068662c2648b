//! The pins of one layout of the maps, which survive the agent. `layouts` lists the layouts.
//!
//! ```text
//! maps/<MAP>                       shared by every load of the programs
//! programs-<identity>-<token>/     one load: <program> and <program>_link for each hook
//! fmod-ret-<identity>-<token>/     the same, in front of the kernel's functions, with
//!                                  <program>_standby and <program>_standby_link
//! ```
//!
//! A load counts as complete when all its links are pinned. Several may be in force at once while
//! one replaces another: a deletion passes only if all of them allow it, so there is no gap.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::programs::links::{LinkError, PinnedLink};
use aya::programs::{ProgramInfo, loaded_programs};
use guard_common::Tier;
use thiserror::Error;

/// The pin directory could not be used.
#[derive(Debug, Error)]
pub enum PinError {
    #[error(
        "{path} is not on a bpffs: run `mount -t bpf bpf /sys/fs/bpf`, or name a bpffs with \
         --pin-dir"
    )]
    NotBpffs { path: PathBuf },
    #[error(
        "{path} belongs to user {owner} (mode {mode:o}): whoever can write there can put other \
         programs and maps in our place. Nothing was changed: find out who has made it, remove it, \
         or name another directory with --pin-dir"
    )]
    Foreign { path: PathBuf, owner: u32, mode: u32 },
    #[error("{operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the pins are removed, but after {} s the kernel still holds the programs {ids:?}: another \
         process has them open; see who with `bpftool prog show`, end it, and their hooks are free",
        LETS_GO_WITHIN.as_secs()
    )]
    Held { ids: Vec<u32> },
}

/// Longest time that the kernel may take to end programs without pins: a moment, or many on a busy
/// host.
const LETS_GO_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(10);

pub(super) fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError {
    move |source| PinError::Io { operation, path: path.to_owned(), source }
}

/// One layout's directory.
#[derive(Clone, Debug)]
pub struct Pins {
    directory: PathBuf,
}

/// One load of the programs, named by its content and by its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    pub directory: PathBuf,
    pub tier: Tier,
    /// Hash of the object and the build.
    pub identity: String,
    /// Tells this load from every other, for the canary.
    pub token: u32,
}

/// One of a tier's loads: `fmod-ret` has two.
///
/// The kernel leaves a program of that kind out while another task that it has preempted on the
/// same processor is in the middle of it. Then the standby decides, which is another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Standby {
    No = 0,
    Yes = 1,
}

impl Standby {
    /// Name of a load for the canary.
    pub fn token(self, first: u32) -> u32 {
        match self {
            Self::No => first,
            Self::Yes => !first,
        }
    }
}

/// Prefixes of the directories' names.
const PREFIXES: [(Tier, &str); 2] = [(Tier::BpfLsm, "programs-"), (Tier::FmodRet, "fmod-ret-")];

fn prefix(tier: Tier) -> &'static str {
    PREFIXES
        .iter()
        .find(|(known, _)| *known == tier)
        .expect("only tiers of BPF programs have pins")
        .1
}

/// Tier, identity and token of a directory's name.
fn parse(name: &str) -> Option<(Tier, &str, u32)> {
    let (tier, rest) =
        PREFIXES.iter().find_map(|(tier, prefix)| Some((*tier, name.strip_prefix(prefix)?)))?;
    let (identity, token) = rest.rsplit_once('-')?;
    Some((tier, identity, u32::from_str_radix(token, 16).ok()?))
}

impl Pins {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Makes the directory for the maps if it is missing.
    pub fn provide(&self) -> Result<(), PinError> {
        std::fs::create_dir_all(self.maps()).map_err(io_error("create", &self.maps()))
    }

    /// Directory of the maps.
    pub fn maps(&self) -> PathBuf {
        self.directory.join("maps")
    }

    /// Name and directory of a new load.
    pub fn generation(&self, tier: Tier, identity: &str, token: u32) -> Generation {
        let directory = self.directory.join(format!("{}{identity}-{token:08x}", prefix(tier)));
        Generation { directory, tier, identity: identity.to_owned(), token }
    }

    /// Every load that has a directory, complete or not.
    pub fn generations(&self) -> Result<Vec<Generation>, PinError> {
        let mut found = Vec::new();
        for directory in list(&self.directory)? {
            let name = directory.file_name().and_then(|name| name.to_str());
            if let Some((tier, identity, token)) = name.and_then(parse) {
                let identity = identity.to_owned();
                found.push(Generation { directory, tier, identity, token });
            }
        }
        Ok(found)
    }

    /// Unpins a load: its programs detach.
    pub fn retire(&self, generation: &Generation) -> Result<(), PinError> {
        remove_tree(&generation.directory)
    }

    /// Removes every map pin.
    pub fn clear_maps(&self) -> Result<(), PinError> {
        remove_tree(&self.maps())?;
        std::fs::create_dir_all(self.maps()).map_err(io_error("create", &self.maps()))
    }

    /// Unpins every load, and returns the kernel's numbers of its programs.
    pub fn retire_all(&self) -> Result<Vec<u32>, PinError> {
        let mut ids = Vec::new();
        for generation in self.generations()? {
            ids.extend(generation.program_ids()?);
            self.retire(&generation)?;
        }
        Ok(ids)
    }

    /// Removes all that is left of this layout.
    pub fn remove(&self) -> Result<(), PinError> {
        remove_tree(&self.directory)
    }

    /// Whether some program is attached.
    pub fn is_attached(&self) -> Result<bool, PinError> {
        for generation in self.generations()? {
            if list(&generation.directory)?.iter().any(|path| is_link(path)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// When this layout was settled last.
    pub fn settled(&self) -> Result<Option<u64>, PinError> {
        let times = list(&self.directory)?;
        let time = |path: &PathBuf| {
            let name = path.file_name()?.to_str()?.strip_prefix(SETTLED)?;
            u64::from_str_radix(name, 16).ok()
        };
        Ok(times.iter().filter_map(time).max())
    }

    /// Says that this layout has been proven in force: from now on it speaks.
    pub fn settle(&self, boot_ns: u64) -> Result<(), PinError> {
        let path = self.directory.join(format!("{SETTLED}{boot_ns:x}"));
        std::fs::create_dir(&path).map_err(io_error("create", &path))
    }

    /// Takes that back.
    pub(super) fn unsettle(&self) -> Result<(), PinError> {
        for path in list(&self.directory)? {
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(SETTLED)) {
                std::fs::remove_dir(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// Prefix of the mark's name.
const SETTLED: &str = "settled-";

/// Waits until the kernel has ended programs without pins. It ends one only when the last one that
/// runs it is through, and tells nobody.
pub fn wait_for_the_end(mut ids: Vec<u32>) -> Result<(), PinError> {
    let began = Instant::now();
    loop {
        let left: BTreeSet<u32> = loaded_programs().flatten().map(|program| program.id()).collect();
        ids.retain(|id| left.contains(id));
        if ids.is_empty() {
            return Ok(());
        }
        if began.elapsed() > LETS_GO_WITHIN {
            return Err(PinError::Held { ids });
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

impl Generation {
    /// The loads that it is made of.
    pub fn loads(&self) -> &'static [Standby] {
        match self.tier {
            Tier::FmodRet => &[Standby::No, Standby::Yes],
            Tier::BpfLsm | Tier::Fanotify => &[Standby::No],
        }
    }

    /// Pin path of a program.
    pub fn program(&self, name: &str, standby: Standby) -> PathBuf {
        // bpffs takes no dots in names.
        match standby {
            Standby::No => self.directory.join(name),
            Standby::Yes => self.directory.join(format!("{name}_standby")),
        }
    }

    /// Pin path of a program's link.
    pub fn link(&self, name: &str, standby: Standby) -> PathBuf {
        let mut path = self.program(name, standby).into_os_string();
        path.push("_link");
        path.into()
    }

    /// The kernel's numbers of its programs.
    fn program_ids(&self) -> Result<Vec<u32>, PinError> {
        let mut ids = Vec::new();
        for path in list(&self.directory)? {
            if !is_link(&path) {
                // A program that cannot be opened is removed all the same.
                ids.extend(ProgramInfo::from_pin(&path).map(|program| program.id()));
            }
        }
        Ok(ids)
    }

    /// Whether a program's links are all pinned: then it is attached. `None` if the program itself
    /// is not there.
    pub fn is_linked(&self, name: &str) -> Result<Option<bool>, PinError> {
        let program = self.program(name, Standby::No);
        if !program.try_exists().map_err(io_error("look at", &program))? {
            return Ok(None);
        }
        for standby in self.loads() {
            let link = self.link(name, *standby);
            match PinnedLink::from_pin(&link) {
                Ok(_) => {}
                Err(LinkError::SyscallError(error))
                    if error.io_error.kind() == io::ErrorKind::NotFound =>
                {
                    return Ok(Some(false));
                }
                // It may be attached, and the caller may not be allowed to know.
                Err(LinkError::SyscallError(error)) => {
                    return Err(io_error("open", &link)(error.io_error));
                }
                Err(error) => return Err(io_error("open", &link)(io::Error::other(error))),
            }
        }
        Ok(Some(true))
    }

    /// Whether every one of these programs has its link pinned.
    pub fn is_complete<'a>(&self, mut programs: impl Iterator<Item = &'a str>) -> bool {
        programs.all(|name| self.loads().iter().all(|standby| self.link(name, *standby).exists()))
    }
}

fn is_link(path: &Path) -> bool {
    path.to_string_lossy().ends_with("_link")
}

/// Entries of a directory; none if it is not there.
fn list(directory: &Path) -> Result<Vec<PathBuf>, PinError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("list", directory)(error)),
    };
    entries
        .map(|entry| entry.map(|entry| entry.path()).map_err(io_error("list", directory)))
        .collect()
}

/// Removes a directory of pins. Links go first, so that a crash leaves an incomplete load behind.
pub(super) fn remove_tree(directory: &Path) -> Result<(), PinError> {
    let mut paths = list(directory)?;
    paths.sort_by_key(|path| !is_link(path));
    for path in paths {
        if path.is_dir() {
            remove_tree(&path)?;
        } else {
            std::fs::remove_file(&path).map_err(io_error("unpin", &path))?;
        }
    }
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", directory)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loads_directory_tells_its_tier() {
        let pins = Pins { directory: PathBuf::from("/sys/fs/bpf/guard-agent") };
        for tier in [Tier::BpfLsm, Tier::FmodRet] {
            let generation = pins.generation(tier, "00c0ffee00c0ffee", 0xbeef);
            let name = generation.directory.file_name().unwrap().to_str().unwrap();
            assert_eq!(parse(name), Some((tier, "00c0ffee00c0ffee", 0xbeef)));
        }
        assert_eq!(parse("maps"), None);
        assert_eq!(parse("programs-x-y"), None);
    }
}
