//! The pin directory: what survives the agent.
//!
//! ```text
//! <pin-dir>/maps/<MAP>                       shared by every load of the programs
//! <pin-dir>/programs-<identity>-<token>/     one load: <program> and <program>_link for each hook
//! <pin-dir>/fmod-ret-<identity>-<token>/     the same, in front of the kernel's functions, with
//!                                            <program>_standby and <program>_standby_link
//! ```
//!
//! A load counts as complete when all its links are pinned. Several may be in force at once while one
//! replaces another: a deletion passes only if all of them allow it, so there is no gap.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::programs::links::{LinkError, PinnedLink};
use aya::programs::{ProgramInfo, loaded_programs};
use guard_common::Tier;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use thiserror::Error;

/// The pin directory could not be used.
#[derive(Debug, Error)]
pub enum PinError {
    #[error("{path} is not on a bpffs: run `mount -t bpf bpf /sys/fs/bpf`, or name a bpffs with --pin-dir")]
    NotBpffs { path: PathBuf },
    #[error("{operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the pins are removed, but after {} s the kernel still holds the programs {ids:?}: another process has them \
         open; see who with `bpftool prog show`, end it, and their hooks are free",
        LETS_GO_WITHIN.as_secs()
    )]
    Held { ids: Vec<u32> },
}

/// Longest time that the kernel may take to end programs without pins: a moment, or many on a busy host.
const LETS_GO_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(10);

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError {
    move |source| PinError::Io { operation, path: path.to_owned(), source }
}

/// The pin directory.
#[derive(Clone, Debug)]
pub struct Pins {
    directory: PathBuf,
}

/// One load of the programs, named by what was loaded and by its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    pub directory: PathBuf,
    pub tier: Tier,
    /// Hash of the object and the build.
    pub identity: String,
    /// Tells this load from every other, for the canary.
    pub token: u32,
}

/// Which of a tier's loads: `fmod-ret` has two.
///
/// The kernel leaves a program of that kind out while another task that it has preempted on the same processor is in the
/// middle of it. Then the standby decides, which is another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Standby {
    No = 0,
    Yes = 1,
}

impl Standby {
    /// What a load is called for the canary.
    pub fn token(self, first: u32) -> u32 {
        match self {
            Self::No => first,
            Self::Yes => !first,
        }
    }
}

/// How the names of the directories begin.
const PREFIXES: [(Tier, &str); 2] = [(Tier::BpfLsm, "programs-"), (Tier::FmodRet, "fmod-ret-")];

fn prefix(tier: Tier) -> &'static str {
    PREFIXES.iter().find(|(known, _)| *known == tier).expect("only tiers of BPF programs have pins").1
}

/// Tier, identity and token of a directory's name.
fn parse(name: &str) -> Option<(Tier, &str, u32)> {
    let (tier, rest) =
        PREFIXES.iter().find_map(|(tier, prefix)| Some((*tier, name.strip_prefix(prefix)?)))?;
    let (identity, token) = rest.rsplit_once('-')?;
    Some((tier, identity, u32::from_str_radix(token, 16).ok()?))
}

impl Pins {
    /// Opens the directory, making it if it is missing. It has to be on a bpffs.
    pub fn open(directory: &Path) -> Result<Self, PinError> {
        let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let filesystem = statfs(existing).map_err(|error| io_error("stat", existing)(error.into()))?;
        if filesystem.filesystem_type() != BPF_FS_MAGIC {
            return Err(PinError::NotBpffs { path: directory.to_owned() });
        }
        let pins = Self { directory: directory.to_owned() };
        std::fs::create_dir_all(pins.maps()).map_err(io_error("create", &pins.maps()))?;
        Ok(pins)
    }

    /// The directory as it is, for who only looks. Nothing is made.
    pub fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Where the maps are.
    pub fn maps(&self) -> PathBuf {
        self.directory.join("maps")
    }

    /// Where a new load goes.
    pub fn generation(&self, tier: Tier, identity: &str, token: u32) -> Generation {
        let directory = self.directory.join(format!("{}{identity}-{token:08x}", prefix(tier)));
        Generation { directory, tier, identity: identity.to_owned(), token }
    }

    /// Every load that has a directory, complete or not.
    pub fn generations(&self) -> Result<Vec<Generation>, PinError> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(io_error("list", &self.directory))? {
            let entry = entry.map_err(io_error("list", &self.directory))?;
            let name = entry.file_name();
            if let Some((tier, identity, token)) = name.to_str().and_then(parse) {
                let identity = identity.to_owned();
                found.push(Generation { directory: entry.path(), tier, identity, token });
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

    /// Removes everything, and returns when the kernel has ended the programs: nothing is enforced afterwards.
    pub fn unload(&self) -> Result<(), PinError> {
        let mut ids = Vec::new();
        for generation in self.generations()? {
            ids.extend(generation.program_ids()?);
            self.retire(&generation)?;
        }
        remove_tree(&self.directory)?;
        // It ends a program only when the last one that runs it is through, and tells nobody.
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
}

impl Generation {
    /// The loads that it is made of.
    pub fn loads(&self) -> &'static [Standby] {
        match self.tier {
            Tier::FmodRet => &[Standby::No, Standby::Yes],
            Tier::BpfLsm | Tier::Fanotify => &[Standby::No],
        }
    }

    /// Where a program is pinned.
    pub fn program(&self, name: &str, standby: Standby) -> PathBuf {
        // bpffs takes no dots in names.
        match standby {
            Standby::No => self.directory.join(name),
            Standby::Yes => self.directory.join(format!("{name}_standby")),
        }
    }

    /// Where a program's link is pinned.
    pub fn link(&self, name: &str, standby: Standby) -> PathBuf {
        let mut path = self.program(name, standby).into_os_string();
        path.push("_link");
        path.into()
    }

    /// The kernel's numbers of its programs.
    fn program_ids(&self) -> Result<Vec<u32>, PinError> {
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(io_error("list", &self.directory))? {
            let path = entry.map_err(io_error("list", &self.directory))?.path();
            if !is_link(&path) {
                // What cannot be opened is removed all the same.
                ids.extend(ProgramInfo::from_pin(&path).map(|program| program.id()));
            }
        }
        Ok(ids)
    }

    /// Whether a program's links are all pinned: then it is attached. `None` if the program itself is not there.
    pub fn is_linked(&self, name: &str) -> Result<Option<bool>, PinError> {
        let program = self.program(name, Standby::No);
        if !program.try_exists().map_err(io_error("look at", &program))? {
            return Ok(None);
        }
        for standby in self.loads() {
            let link = self.link(name, *standby);
            match PinnedLink::from_pin(&link) {
                Ok(_) => {}
                Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Some(false));
                }
                // It may be attached, and who asks may not know.
                Err(LinkError::SyscallError(error)) => return Err(io_error("open", &link)(error.io_error)),
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

/// Removes a directory of pins. Links go first, so that a crash leaves an incomplete load behind.
fn remove_tree(directory: &Path) -> Result<(), PinError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("list", directory)(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(io_error("list", directory))?.path());
    }
    paths.sort_by_key(|path| !is_link(path));
    for path in paths {
        if path.is_dir() {
            remove_tree(&path)?;
        } else {
            std::fs::remove_file(&path).map_err(io_error("unpin", &path))?;
        }
    }
    std::fs::remove_dir(directory).map_err(io_error("remove", directory))
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
