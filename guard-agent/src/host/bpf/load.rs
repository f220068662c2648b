//! Loads, pins and attaches the programs, or adopts the pins of an earlier agent; on the LSM hooks
//! or, in the tier `fmod-ret`, in front of the functions that call them.
//!
//! The order is: [`prepare`] (the maps exist, no program is loaded yet) → the caller writes the
//! policy → [`Prepared::attach`] → the caller proves it by canary → [`Programs::retire_others`].

use std::fs;

use aya::maps::MapError;
use guard_common::names::{PROGRAMS, ProgramName, global, map};
use guard_common::{LAYOUT_VERSION, Meta, Tier};

use super::attach::{self, NoFunction};
use super::btf::Btf;
use super::description::Description;
use super::load_error::{LoadError, VMLINUX_BTF};
use super::maps::{self, MapAccessError, Maps};
use super::pins::{Generation, PinError, Pins, Standby};
use super::program::{self, Constants, Loader, ProgramError, Target};
use super::{object, offsets, sys, tree};

/// Maps are there and programs are ready to be loaded; nothing new is attached yet.
#[derive(Debug)]
pub struct Prepared {
    pins: Pins,
    generation: Generation,
    targets: Vec<Target>,
    /// The loads to attach; none if the pins of an equal agent are adopted.
    loaders: Vec<(Standby, Loader)>,
}

/// The programs are attached and pinned.
#[derive(Debug)]
pub struct Programs {
    pins: Pins,
    generation: Generation,
    /// Whether this agent adopted programs that were in force when it started.
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
/// changed. A tier that has passed here can be loaded by [`prepare`] and [`Prepared::attach`].
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
    // Else the verifier would skip the code that only runs with them.
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

    /// Directory in which the maps are pinned.
    pub fn map_directory(&self) -> std::path::PathBuf {
        self.pins.maps()
    }

    /// Detaches all programs of another tier. Only after this one is proven. Returns the number of
    /// their loads.
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

/// Clears the remains of an interrupted start.
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

    /// Directory in which the maps are pinned.
    pub fn map_directory(&self) -> std::path::PathBuf {
        self.pins.maps()
    }

    /// The tier that it would put in force.
    pub fn tier(&self) -> Tier {
        self.generation.tier
    }

    /// Attaches and pins the loaded programs; does nothing for adopted pins.
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

    /// One of the programs, for queries to the kernel about them.
    pub fn any_program(&self) -> std::path::PathBuf {
        self.generation.program(PROGRAMS[0].program, Standby::No)
    }

    /// Whether every link is still pinned.
    pub fn is_pinned(&self) -> bool {
        self.generation.is_complete(
            PROGRAMS.iter().filter(|name| self.hooks.contains(&name.hook)).map(|name| name.program),
        )
    }

    /// Detaches every other load, and returns their number. Only after this one is proven.
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
