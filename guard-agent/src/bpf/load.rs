//! Loads, pins and attaches the programs, or adopts the pins of an earlier agent; on the LSM hooks
//! or, in the tier `fmod-ret`, in front of the functions that call them.
//!
//! The order is: [`prepare`] (maps exist, programs are loaded but not attached) → the caller writes
//! the policy → [`Prepared::attach`] → the caller proves it by canary →
//! [`Programs::retire_others`].

use std::fs;

use aya::maps::MapError;
use guard_common::names::{PROGRAMS, ProgramName, global, map};
use guard_common::{LAYOUT_VERSION, Meta, Tier};
use thiserror::Error;

use super::attach::{self, NoFunction};
use super::btf::{Btf, BtfError};
use super::description::Description;
use super::foreign::ForeignError;
use super::maps::{self, MapAccessError, Maps};
use super::object::ObjectError;
use super::pins::{Generation, PinError, Pins, Standby};
use super::program::{self, Constants, Loader, ProgramError, Target};
use super::{object, offsets, sys, tree};
use crate::errors::chain;

const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The programs could not be put in force.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error("this binary was built without the kernel program: build it with `cargo xtask build`")]
    NoObject,
    #[error(
        "read {VMLINUX_BTF}: the kernel was built without CONFIG_DEBUG_INFO_BTF, or /sys is not \
         mounted"
    )]
    NoBtf(#[source] std::io::Error),
    #[error(transparent)]
    Btf(#[from] BtfError),
    #[error("this binary's kernel program cannot be fitted to this kernel")]
    Unfit(#[from] ObjectError),
    #[error(
        "the kernel has no LSM hook `{hook}` for BPF: it needs CONFIG_BPF_LSM and \
         CONFIG_SECURITY_PATH"
    )]
    NoHook { hook: &'static str },
    #[error(
        "the kernel has no function `{function}` for the tier fmod-ret: it needs \
         CONFIG_SECURITY_PATH"
    )]
    NoFunction { function: String },
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(
        "the pinned maps in {directory} have layout {version}, and this agent (layout \
         {LAYOUT_VERSION}) cannot carry over what they hold; nothing was changed, and their \
         programs go on enforcing: start the version of guard-agent that made them, or a newer one \
         than this"
    )]
    Incompatible {
        directory: String,
        version: u32,
        #[source]
        source: Box<ForeignError>,
    },
    #[error(
        "the pinned maps in {directory}, of another layout, cannot be read; nothing was changed, \
         and their programs go on enforcing"
    )]
    Foreign {
        directory: String,
        #[source]
        source: Box<ForeignError>,
    },
    #[error(
        "the pins in {directory} are of a build that did not describe its map layout, which this \
         agent cannot carry over; nothing was changed, and their programs go on enforcing: \
         `guard-agent unload` ends them, and nothing is protected until this agent is started \
         after it"
    )]
    OlderPins { directory: String },
    #[error(
        "the pinned maps in {directory} say layout {found}, and their directory says \
         {LAYOUT_VERSION}"
    )]
    Damaged { directory: String, found: u32 },
    #[error(transparent)]
    Pins(#[from] PinError),
    #[error(transparent)]
    Map(#[from] MapAccessError),
}

impl LoadError {
    /// The error in a line, without the verifier's words, which are for the log and for who asks
    /// for them.
    pub fn in_brief(&self) -> String {
        match self {
            Self::Program(ProgramError::Load { program, function, source, .. }) => {
                format!("the kernel refused to load program {program} for `{function}`: {source}")
            }
            Self::Program(ProgramError::Types { source, .. }) => {
                format!("the kernel refused the object's types: {source}")
            }
            other => chain(other).lines().next().unwrap_or_default().to_owned(),
        }
    }

    /// The verifier's own words, if it has said any.
    pub fn verifier(&self) -> Option<String> {
        match self {
            Self::Program(
                ProgramError::Load { verifier, .. } | ProgramError::Types { verifier, .. },
            ) => Some(verifier.clone()),
            _ => None,
        }
    }

    /// Whether another tier may do on this kernel.
    pub fn is_of_the_tier(&self) -> bool {
        matches!(
            self,
            Self::NoHook { .. }
                | Self::NoFunction { .. }
                | Self::NoBtf(_)
                | Self::Btf(_)
                | Self::Unfit(_)
                | Self::Program(_)
        )
    }
}

/// Maps are there and programs are ready to be loaded; nothing new is attached yet.
#[derive(Debug)]
pub struct Prepared {
    pins: Pins,
    generation: Generation,
    targets: Vec<Target>,
    /// What there is to attach: nothing if the pins of an equal agent are adopted.
    loaders: Vec<(Standby, Loader)>,
}

/// The programs are attached and pinned.
#[derive(Debug)]
pub struct Programs {
    pins: Pins,
    generation: Generation,
    /// What this agent found in force when it came.
    pub adopted: bool,
    /// Hooks that the programs are attached to.
    pub hooks: Vec<&'static str>,
}

/// Brings the maps and programs into being, or finds those of an equal agent.
pub fn prepare(pins: &Pins, tier: Tier) -> Result<Prepared, LoadError> {
    let object = object::bytes().ok_or(LoadError::NoObject)?;
    let pins = pins.clone();
    pins.provide()?;
    let raw = fs::read(VMLINUX_BTF).map_err(LoadError::NoBtf)?;
    let btf = Btf::parse(&raw)?;
    let targets = targets(&btf, tier)?;
    let names = || targets.iter().map(|target| target.program);
    let identity = object::identity();

    let complete: Vec<Generation> = pins
        .generations()?
        .into_iter()
        .filter(|generation| generation.is_complete(names()))
        .collect();
    check_layout(&pins, !complete.is_empty())?;
    let is_ours =
        |generation: &Generation| generation.identity == identity && generation.tier == tier;
    if let Some(generation) = complete.into_iter().find(is_ours) {
        return Ok(Prepared { pins, generation, targets, loaders: Vec::new() });
    }

    let token = token();
    let object = object::with_offsets(object, &offsets::resolve(&btf, tier)?)?;
    let tree = tree::addresses().map(u64::to_ne_bytes);
    let generation = pins.generation(tier, &identity, token);
    let load = |standby: Standby| {
        let (token, is_standby) =
            (standby.token(token).to_ne_bytes(), (standby as u32).to_ne_bytes());
        let tier = (tier as u32).to_ne_bytes();
        let constants: Constants<'_> = [
            (global::PROGRAM_TOKEN, token.as_slice()),
            (global::STANDBY, &is_standby),
            (global::TIER, &tier),
            (global::TREE, tree.as_flattened()),
        ]
        .into();
        Ok((standby, Loader::new(&object, constants, Some(&pins.maps()))?))
    };
    let loaders: Result<Vec<_>, ProgramError> =
        generation.loads().iter().copied().map(load).collect();
    let loaders = loaders?;
    write_layout(&pins)?;
    Ok(Prepared { pins, generation, targets, loaders })
}

/// Has the kernel judge the programs of a tier, and lets go of them: nothing is pinned, attached or
/// changed. What has passed here, [`prepare`] and [`Prepared::attach`] can load.
pub fn try_tier(tier: Tier) -> Result<(), LoadError> {
    let object = object::bytes().ok_or(LoadError::NoObject)?;
    if tier == Tier::Fanotify {
        return Ok(program::make_maps(object, None)?);
    }
    let raw = fs::read(VMLINUX_BTF).map_err(LoadError::NoBtf)?;
    let btf = Btf::parse(&raw)?;
    let targets = targets(&btf, tier)?;
    let object = object::with_offsets(object, &offsets::resolve(&btf, tier)?)?;
    let tier = (tier as u32).to_ne_bytes();
    // Or the kernel would not look at what is only done with them.
    let tree = tree::addresses().map(u64::to_ne_bytes);
    let constants: Constants<'_> =
        [(global::TREE, tree.as_flattened()), (global::TIER, &tier)].into();
    Loader::new(&object, constants, None)?.load_all(&targets)?;
    Ok(())
}

/// Brings the maps into being without any program, for the tier that answers from user space. It
/// needs nothing of the kernel but maps: no BTF, no hooks.
pub fn prepare_maps(pins: &Pins) -> Result<BareMaps, LoadError> {
    let object = object::bytes().ok_or(LoadError::NoObject)?;
    let pins = pins.clone();
    pins.provide()?;
    let in_force = !pins.generations()?.is_empty();
    check_layout(&pins, in_force)?;
    program::make_maps(object, Some(&pins.maps()))?;
    write_layout(&pins)?;
    give_memory_back();
    Ok(BareMaps { pins })
}

/// Maps without programs.
#[derive(Debug)]
pub struct BareMaps {
    pins: Pins,
}

impl BareMaps {
    /// Opens the maps.
    pub fn maps(&self) -> Result<Maps, LoadError> {
        Ok(Maps::open(&self.pins.maps())?)
    }

    /// Where the maps are pinned.
    pub fn map_directory(&self) -> std::path::PathBuf {
        self.pins.maps()
    }

    /// Detaches all programs of another tier. Only after this one is proven. Returns how many loads
    /// there were.
    pub fn retire_programs(&self) -> Result<usize, LoadError> {
        let generations = self.pins.generations()?;
        generations.iter().try_for_each(|generation| self.pins.retire(generation))?;
        Ok(generations.len())
    }
}

/// The version comes last: maps without it are not whole.
fn write_layout(pins: &Pins) -> Result<(), MapAccessError> {
    let mut maps = Maps::open(&pins.maps())?;
    if maps.meta.read()?.layout_version == 0 {
        maps::describe(&pins.maps(), &Description::own().to_json())?;
        maps.meta.write(Meta {
            layout_version: LAYOUT_VERSION,
            reserved: 0,
            next_generation: 1,
        })?;
    }
    Ok(())
}

fn targets(btf: &Btf<'_>, tier: Tier) -> Result<Vec<Target>, LoadError> {
    attach::targets(btf, tier).map_err(|NoFunction { hook, function }| match tier {
        Tier::FmodRet => LoadError::NoFunction { function },
        Tier::BpfLsm | Tier::Fanotify => LoadError::NoHook { hook },
    })
}

/// Clears what a start that was cut short has left.
fn check_layout(pins: &Pins, in_force: bool) -> Result<(), LoadError> {
    let directory = pins.maps();
    let found = match aya::maps::MapData::from_pin(directory.join(map::META)) {
        Ok(data) => aya::maps::Array::<_, Meta>::try_from(aya::maps::Map::Array(data))
            .and_then(|meta| meta.get(&0, 0))
            .map_or(u32::MAX, |meta| meta.layout_version),
        Err(MapError::SyscallError(_)) => 0,
        Err(_) => u32::MAX,
    };
    match found {
        LAYOUT_VERSION => Ok(()),
        // The version is written before anything is attached: without it nothing is in force.
        0 if !in_force => Ok(pins.clear_maps()?),
        found => Err(LoadError::Damaged { directory: directory.display().to_string(), found }),
    }
}

/// A number that no other load on this host has had: the boot clock does not stand still.
fn token() -> u32 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        // Microseconds, cut to 32 bits: over an hour until a number comes again.
        time.tv_sec().wrapping_mul(1_000_000).wrapping_add(time.tv_nsec() / 1000)
    });
    (now as u32).max(1)
}

impl Prepared {
    /// Opens the maps.
    pub fn maps(&self) -> Result<Maps, LoadError> {
        Ok(Maps::open(&self.pins.maps())?)
    }

    /// Where the maps are pinned.
    pub fn map_directory(&self) -> std::path::PathBuf {
        self.pins.maps()
    }

    /// The tier that it would put in force.
    pub fn tier(&self) -> Tier {
        self.generation.tier
    }

    /// Attaches and pins what was loaded; does nothing for adopted pins.
    pub fn attach(self) -> Result<Programs, LoadError> {
        let adopted = self.loaders.is_empty();
        if !adopted {
            let directory = &self.generation.directory;
            fs::create_dir_all(directory).map_err(|source| PinError::Io {
                operation: "create",
                path: directory.clone(),
                source,
            })?;
        }
        let attached = self.loaders.iter().try_for_each(|(standby, loader)| {
            attach::attach(loader, &self.targets, &self.generation, *standby)
        });
        if let Err(error) = attached {
            // Half a load must not be mistaken for a whole one.
            self.pins.retire(&self.generation)?;
            return Err(error.into());
        }
        drop(self.loaders);
        give_memory_back();
        let hooks = self.targets.iter().map(|target| target.hook).collect();
        Ok(Programs { pins: self.pins, generation: self.generation, adopted, hooks })
    }
}

/// The kernel's types take 20 MB while they are read; glibc would keep the freed memory for good.
fn give_memory_back() {
    // SAFETY: it takes no pointers, and guards glibc's arenas itself.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

impl Programs {
    /// The tier that they make up.
    pub fn tier(&self) -> Tier {
        self.generation.tier
    }

    /// The most decisions that the kernel can have skipped: for each program the smallest count
    /// among its loads. Linux 6.2 and later skip no program on the LSM hooks.
    pub fn skipped(&self) -> u64 {
        let deciders = PROGRAMS.iter().filter(|name| self.hooks.contains(&name.hook));
        let of = |name: &ProgramName, standby: &Standby| {
            // A pin that is gone is told of by `is_pinned`.
            sys::recursion_misses(&self.generation.program(name.program, *standby)).unwrap_or(0)
        };
        let loads = self.generation.loads();
        deciders.filter_map(|name| loads.iter().map(|standby| of(name, standby)).min()).sum()
    }

    /// Name each load to the canary.
    pub fn tokens(&self) -> impl Iterator<Item = u32> {
        self.generation.loads().iter().map(|standby| standby.token(self.generation.token))
    }

    /// One of the programs, for what asks the kernel about them.
    pub fn any_program(&self) -> std::path::PathBuf {
        self.generation.program(PROGRAMS[0].program, Standby::No)
    }

    /// Whether every link is still pinned.
    pub fn is_pinned(&self) -> bool {
        self.generation.is_complete(
            PROGRAMS.iter().filter(|name| self.hooks.contains(&name.hook)).map(|name| name.program),
        )
    }

    /// Detaches every other load, and returns how many there were. Only after this one is proven.
    pub fn retire_others(&self) -> Result<usize, LoadError> {
        let mut retired = 0;
        for other in self.pins.generations()? {
            if other != self.generation {
                self.pins.retire(&other)?;
                retired += 1;
            }
        }
        Ok(retired)
    }

    /// Detaches this load: it did not prove itself.
    pub fn withdraw(self) -> Result<(), LoadError> {
        Ok(self.pins.retire(&self.generation)?)
    }
}
