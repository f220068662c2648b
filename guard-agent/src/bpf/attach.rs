//! Attaches the loaded programs of a tier, and pins programs and links.

use std::os::fd::{AsFd, OwnedFd};

use aya::programs::Lsm;
use aya::programs::links::FdLink;
use aya::{Ebpf, EbpfError};
use guard_common::Tier;
use guard_common::names::ProgramName;

use super::fmod_ret::{self, Loader, Place};
use super::load::LoadError;
use super::offsets;
use super::pins::{Generation, Standby};

/// To the LSM hooks.
pub fn to_hooks(mut ebpf: Ebpf, programs: &[ProgramName], generation: &Generation) -> Result<(), LoadError> {
    let btf = kernel_types()?;
    programs.iter().try_for_each(|name| to_hook(&mut ebpf, *name, &btf, generation))
}

/// In front of the functions with these numbers, in the order of the programs. `maps`: aya's part, which holds the maps of
/// this object.
pub fn to_functions(
    object: &[u8],
    maps: &Ebpf,
    programs: &[ProgramName],
    functions: &[u32],
    generation: &Generation,
    standby: Standby,
) -> Result<(), LoadError> {
    let loader = Loader::new(object, maps)?;
    for (name, id) in programs.iter().zip(functions) {
        let program = load_for_function(&loader, name, *id)?;
        fmod_ret::pin(program.as_fd(), &generation.program(name.program, standby))?;
        let link = fmod_ret::attach(program.as_fd())?;
        fmod_ret::pin(link.as_fd(), &generation.link(name.program, standby))?;
    }
    Ok(())
}

/// Has the kernel judge the programs for the LSM hooks; they go with `ebpf`.
pub fn load_for_hooks(ebpf: &mut Ebpf, programs: &[ProgramName]) -> Result<(), LoadError> {
    let btf = kernel_types()?;
    programs.iter().try_for_each(|name| load_for_hook(ebpf, *name, &btf).map(drop))
}

/// Has the kernel judge the programs for the functions with these numbers, and lets go of them.
pub fn load_for_functions(
    object: &[u8],
    maps: &Ebpf,
    programs: &[ProgramName],
    functions: &[u32],
) -> Result<(), LoadError> {
    let loader = Loader::new(object, maps)?;
    programs.iter().zip(functions).try_for_each(|(name, id)| load_for_function(&loader, name, *id).map(drop))
}

fn load_for_function(loader: &Loader, name: &ProgramName, id: u32) -> Result<OwnedFd, LoadError> {
    let function = offsets::function(Tier::FmodRet, name.hook);
    // It answers nothing that could be modified.
    let place = if name.hook == "sb_delete" { Place::Entry } else { Place::ModifyReturn };
    Ok(loader.load(name.program, &function, id, place)?)
}

fn kernel_types() -> Result<aya::Btf, LoadError> {
    aya::Btf::from_sys_fs().map_err(|error| LoadError::Object(EbpfError::BtfError(error)))
}

fn load_for_hook<'e>(
    ebpf: &'e mut Ebpf,
    name: ProgramName,
    btf: &aya::Btf,
) -> Result<&'e mut Lsm, LoadError> {
    let ProgramName { program, hook, .. } = name;
    let failed = |operation| move |source| LoadError::Program { operation, program, source };
    let lsm: &mut Lsm = ebpf
        .program_mut(program)
        .expect("the object holds every program of PROGRAMS")
        .try_into()
        .map_err(failed("recognise"))?;
    lsm.load(hook, btf).map_err(failed("load"))?;
    Ok(lsm)
}

fn to_hook(
    ebpf: &mut Ebpf,
    name: ProgramName,
    btf: &aya::Btf,
    generation: &Generation,
) -> Result<(), LoadError> {
    let program = name.program;
    let failed = |operation| move |source| LoadError::Program { operation, program, source };
    let lsm = load_for_hook(ebpf, name, btf)?;
    let pin = |what| {
        let directory = generation.directory.display().to_string();
        move |source| LoadError::Pin { what, directory, source }
    };
    lsm.pin(generation.program(program, Standby::No)).map_err(pin("a program"))?;
    let link = lsm.attach().and_then(|id| lsm.take_link(id)).map_err(failed("attach"))?;
    FdLink::from(link).pin(generation.link(program, Standby::No)).map_err(pin("a link"))?;
    Ok(())
}
