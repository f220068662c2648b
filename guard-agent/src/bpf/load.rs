//! Loads, pins and attaches the programs, or adopts the pins of an earlier agent; on the LSM hooks or, in the tier
//! `fmod-ret`, in front of the functions that call them.
//!
//! The order is: [`prepare`] (maps exist, programs are loaded but not attached) → the caller writes the
//! policy → [`Prepared::attach`] → the caller proves it by canary → [`Programs::retire_others`].

use std::fs;

use aya::maps::MapError;
use aya::programs::ProgramError;
use aya::{BtfError as BtfLoadError, Ebpf, EbpfError, EbpfLoader};
use guard_common::names::{PROGRAMS, ProgramName, global, map};
use guard_common::{LAYOUT_VERSION, Meta, Tier};
use thiserror::Error;

use super::btf::{Btf, BtfError};
use super::description::Description;
use super::fmod_ret::FmodRetError;
use super::foreign::ForeignError;
use super::maps::{self, MapAccessError, Maps};
use super::object::ObjectError;
use super::pins::{Generation, PinError, Pins, Standby};
use super::{attach, object, offsets, sys, tree};
use crate::daemon::chain;

const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The programs could not be put in force.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error("this binary was built without the kernel program: build it with `cargo xtask build`")]
    NoObject,
    #[error("read {VMLINUX_BTF}: the kernel was built without CONFIG_DEBUG_INFO_BTF, or /sys is not mounted")]
    NoBtf(#[source] std::io::Error),
    #[error(transparent)]
    Btf(#[from] BtfError),
    #[error("this binary's kernel program cannot be fitted to this kernel")]
    Unfit(#[from] ObjectError),
    #[error("the kernel has no LSM hook `{hook}` for BPF: it needs CONFIG_BPF_LSM and CONFIG_SECURITY_PATH")]
    NoHook { hook: &'static str },
    #[error("the kernel has no function `{function}` for the tier fmod-ret: it needs CONFIG_SECURITY_PATH")]
    NoFunction { function: String },
    #[error("tier fmod-ret")]
    FmodRet(#[from] FmodRetError),
    #[error(
        "the pinned maps in {directory} have layout {version}, and this agent (layout {LAYOUT_VERSION}) cannot carry \
         over what they hold; nothing was changed, and their programs go on enforcing: start the version of \
         guard-agent that made them, or a newer one than this"
    )]
    Incompatible {
        directory: String,
        version: u32,
        #[source]
        source: Box<ForeignError>,
    },
    #[error(
        "the pinned maps in {directory}, of another layout, cannot be read; nothing was changed, and their programs go on \
         enforcing"
    )]
    Foreign {
        directory: String,
        #[source]
        source: Box<ForeignError>,
    },
    #[error(
        "the pins in {directory} are of a build that did not describe its map layout, which this agent cannot carry \
         over; nothing was changed, and their programs go on enforcing: `guard-agent unload` ends them, and nothing is \
         protected until this agent is started after it"
    )]
    OlderPins { directory: String },
    #[error("the pinned maps in {directory} say layout {found}, and their directory says {LAYOUT_VERSION}")]
    Damaged { directory: String, found: u32 },
    #[error(transparent)]
    Pins(#[from] PinError),
    #[error(transparent)]
    Map(#[from] MapAccessError),
    #[error(
        "the kernel refused the BPF object: this needs CAP_BPF and CAP_PERFMON (or root), and a kernel that is not \
         locked down; `guardctl doctor` tells which"
    )]
    Object(#[source] EbpfError),
    #[error("the kernel refused to {operation} program {program}")]
    Program {
        operation: &'static str,
        program: &'static str,
        #[source]
        source: ProgramError,
    },
    #[error("pin {what} in {directory}")]
    Pin {
        what: &'static str,
        directory: String,
        #[source]
        source: aya::pin::PinError,
    },
}

impl LoadError {
    /// The error in a line, without the verifier's words, which are for the log and for who asks for them.
    pub fn in_brief(&self) -> String {
        match self {
            Self::Program { operation, program, source: ProgramError::LoadError { io_error, .. } } => {
                format!("the kernel refused to {operation} program {program}: {io_error}")
            }
            Self::FmodRet(FmodRetError::Load { program, function, source, .. }) => {
                format!("the kernel refused to load {program} in front of `{function}`: {source}")
            }
            Self::Object(EbpfError::BtfError(BtfLoadError::LoadError { io_error, .. })) => {
                format!("the kernel refused the object's types: {io_error}")
            }
            other => chain(other).lines().next().unwrap_or_default().to_owned(),
        }
    }

    /// The verifier's own words, if it has said any.
    pub fn verifier(&self) -> Option<String> {
        match self {
            Self::Program { source: ProgramError::LoadError { verifier_log, .. }, .. } => {
                Some(verifier_log.to_string())
            }
            Self::FmodRet(FmodRetError::Load { verifier, .. }) => Some(verifier.clone()),
            Self::Object(EbpfError::BtfError(BtfLoadError::LoadError { verifier_log, .. })) => {
                Some(verifier_log.to_string())
            }
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
                | Self::Object(_)
                | Self::Program { .. }
                | Self::FmodRet(_)
        )
    }
}

/// Maps are there and programs are loaded; nothing new is attached yet.
#[derive(Debug)]
pub struct Prepared {
    pins: Pins,
    generation: Generation,
    programs: Vec<ProgramName>,
    loaded: Loaded,
}

/// What there is to attach.
#[derive(Debug)]
enum Loaded {
    /// Nothing: the pins of an equal agent are adopted.
    Adopted,
    /// For the LSM hooks.
    Lsm(Ebpf),
    /// For the functions with these numbers, in the order of the programs. aya's part holds the maps of the object, once for
    /// each load.
    FmodRet { object: Vec<u8>, maps: Vec<(Standby, Ebpf)>, functions: Vec<u32> },
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
    let programs = available(&btf, tier)?;
    let names = || programs.iter().map(|name| name.program);
    let identity = object::identity();

    let complete: Vec<Generation> =
        pins.generations()?.into_iter().filter(|generation| generation.is_complete(names())).collect();
    check_layout(&pins, !complete.is_empty())?;
    let is_ours = |generation: &Generation| generation.identity == identity && generation.tier == tier;
    if let Some(generation) = complete.into_iter().find(is_ours) {
        return Ok(Prepared { pins, generation, programs, loaded: Loaded::Adopted });
    }

    let token = token();
    let object = object::with_offsets(&with_pinned_content(object, &pins)?, &offsets::resolve(&btf, tier)?)?;
    let tree = tree::addresses();
    let load = |standby: Standby| {
        let mut loader = EbpfLoader::new();
        // The object needs no relocation against the kernel's types: its offsets are in its instructions by now.
        loader.btf(None);
        let (token, tier, is_standby) = (standby.token(token), tier as u32, standby as u32);
        loader.override_global(global::PROGRAM_TOKEN, &token, true);
        loader.override_global(global::TIER, &tier, true);
        loader.override_global(global::STANDBY, &is_standby, true);
        loader.override_global(global::TREE, &tree, true);
        pin_maps(&mut loader, &pins);
        loader.load(&object).map_err(LoadError::Object)
    };
    let first = load(Standby::No)?;
    write_layout(&pins)?;
    let loaded = match tier {
        Tier::FmodRet => {
            let id = |name: &ProgramName| btf.function_id(&offsets::function(tier, name.hook)).unwrap_or(0);
            let functions = programs.iter().map(id).collect();
            let maps = vec![(Standby::No, first), (Standby::Yes, load(Standby::Yes)?)];
            Loaded::FmodRet { object, maps, functions }
        }
        Tier::BpfLsm | Tier::Fanotify => Loaded::Lsm(first),
    };
    let generation = pins.generation(tier, &identity, token);
    Ok(Prepared { pins, generation, programs, loaded })
}

/// Has the kernel judge the programs of a tier, and lets go of them: nothing is pinned, attached or changed. What has
/// passed here, [`prepare`] and [`Prepared::attach`] can load.
pub fn try_tier(tier: Tier) -> Result<(), LoadError> {
    let object = object::bytes().ok_or(LoadError::NoObject)?;
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    if tier == Tier::Fanotify {
        return loader.load(object).map(drop).map_err(LoadError::Object);
    }
    let raw = fs::read(VMLINUX_BTF).map_err(LoadError::NoBtf)?;
    let btf = Btf::parse(&raw)?;
    let programs = available(&btf, tier)?;
    let object = object::with_offsets(object, &offsets::resolve(&btf, tier)?)?;
    let tier_number = tier as u32;
    // Or the kernel would not look at what is only done with them.
    let tree = tree::addresses();
    loader.override_global(global::TREE, &tree, true);
    loader.override_global(global::TIER, &tier_number, true);
    let mut ebpf = loader.load(&object).map_err(LoadError::Object)?;
    match tier {
        Tier::FmodRet => {
            let id = |name: &ProgramName| btf.function_id(&offsets::function(tier, name.hook)).unwrap_or(0);
            let functions: Vec<u32> = programs.iter().map(id).collect();
            attach::load_for_functions(&object, &ebpf, &programs, &functions)
        }
        Tier::BpfLsm | Tier::Fanotify => attach::load_for_hooks(&mut ebpf, &programs),
    }
}

/// Brings the maps into being without any program, for the tier that answers from user space. It needs nothing of
/// the kernel but maps: no BTF, no hooks.
pub fn prepare_maps(pins: &Pins) -> Result<BareMaps, LoadError> {
    let object = object::bytes().ok_or(LoadError::NoObject)?;
    let pins = pins.clone();
    pins.provide()?;
    let in_force = !pins.generations()?.is_empty();
    check_layout(&pins, in_force)?;
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    pin_maps(&mut loader, &pins);
    // The programs in it are never handed to the kernel.
    loader.load(&with_pinned_content(object, &pins)?).map_err(LoadError::Object)?;
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

    /// Detaches all programs of another tier. Only after this one is proven. Returns how many loads there were.
    pub fn retire_programs(&self) -> Result<usize, LoadError> {
        let generations = self.pins.generations()?;
        generations.iter().try_for_each(|generation| self.pins.retire(generation))?;
        Ok(generations.len())
    }
}

/// The object, with what its sections' maps hold if they are pinned already. Nobody else writes them: one agent runs.
fn with_pinned_content(object: &[u8], pins: &Pins) -> Result<Vec<u8>, LoadError> {
    object::with_content(object, |name| Ok(maps::content(&pins.maps(), name)?))
}

fn pin_maps<'a>(loader: &mut EbpfLoader<'a>, pins: &Pins) {
    for name in map::ALL {
        loader.map_pin_path(map::in_object(name), pins.maps().join(name));
    }
}

/// The version comes last: maps without it are not whole.
fn write_layout(pins: &Pins) -> Result<(), MapAccessError> {
    let mut maps = Maps::open(&pins.maps())?;
    if maps.meta.read()?.layout_version == 0 {
        maps::describe(&pins.maps(), &Description::own().to_json())?;
        maps.meta.write(Meta { layout_version: LAYOUT_VERSION, reserved: 0, next_generation: 1 })?;
    }
    Ok(())
}

/// The programs whose hooks, or functions, this kernel has.
fn available(btf: &Btf<'_>, tier: Tier) -> Result<Vec<ProgramName>, LoadError> {
    let mut programs = Vec::new();
    for name in PROGRAMS {
        let function = offsets::function(tier, name.hook);
        if btf.has_function(&function) {
            programs.push(*name);
        } else if !name.optional {
            return Err(match tier {
                Tier::FmodRet => LoadError::NoFunction { function },
                Tier::BpfLsm | Tier::Fanotify => LoadError::NoHook { hook: name.hook },
            });
        }
    }
    Ok(programs)
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
        let adopted = matches!(self.loaded, Loaded::Adopted);
        if !adopted {
            let directory = &self.generation.directory;
            fs::create_dir_all(directory).map_err(|source| PinError::Io {
                operation: "create",
                path: directory.clone(),
                source,
            })?;
        }
        let attached = match self.loaded {
            Loaded::Adopted => Ok(()),
            Loaded::Lsm(ebpf) => attach::to_hooks(ebpf, &self.programs, &self.generation),
            Loaded::FmodRet { object, maps, functions } => maps.iter().try_for_each(|(standby, maps)| {
                attach::to_functions(&object, maps, &self.programs, &functions, &self.generation, *standby)
            }),
        };
        if let Err(error) = attached {
            // Half a load must not be mistaken for a whole one.
            self.pins.retire(&self.generation)?;
            return Err(error);
        }
        give_memory_back();
        let hooks = self.programs.iter().map(|name| name.hook).collect();
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

    /// The most decisions that the kernel can have skipped: for each program the smallest count among
    /// its loads. Linux 6.2 and later skip no program on the LSM hooks.
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
