//! Attaches the loaded programs of a tier, and pins programs and links.

use std::os::fd::AsFd;

use aya::programs::Lsm;
use aya::programs::links::FdLink;
use aya::{Ebpf, EbpfError};
use guard_common::names::ProgramName;

use super::fmod_ret::{self, Loader, Place};
use super::load::LoadError;
use super::pins::{Generation, Standby};
use super::{object, offsets};

/// To the LSM hooks.
pub fn to_hooks(mut ebpf: Ebpf, programs: &[ProgramName], generation: &Generation) -> Result<(), LoadError> {
    let btf = aya::Btf::from_sys_fs().map_err(|error| LoadError::Object(EbpfError::BtfError(error)))?;
    programs.iter().try_for_each(|name| to_hook(&mut ebpf, *name, &btf, generation))
}

/// In front of the functions with these numbers, in the order of the programs. `maps`: aya's part, which holds the maps.
pub fn to_functions(
    maps: &Ebpf,
    programs: &[ProgramName],
    functions: &[u32],
    generation: &Generation,
    standby: Standby,
) -> Result<(), LoadError> {
    let loader = Loader::new(object::bytes().ok_or(LoadError::NoObject)?, maps)?;
    for (name, id) in programs.iter().zip(functions) {
        let function = offsets::function(generation.tier, name.hook);
        // It answers nothing that could be modified.
        let place = if name.hook == "sb_delete" { Place::Entry } else { Place::ModifyReturn };
        let program = loader.load(name.program, &function, *id, place)?;
        fmod_ret::pin(program.as_fd(), &generation.program(name.program, standby))?;
        let link = fmod_ret::attach(program.as_fd())?;
        fmod_ret::pin(link.as_fd(), &generation.link(name.program, standby))?;
    }
    Ok(())
}

fn to_hook(
    ebpf: &mut Ebpf,
    name: ProgramName,
    btf: &aya::Btf,
    generation: &Generation,
) -> Result<(), LoadError> {
    let ProgramName { program, hook, .. } = name;
    let failed = |operation| move |source| LoadError::Program { operation, program, source };
    let lsm: &mut Lsm = ebpf
        .program_mut(program)
        .expect("the object holds every program of PROGRAMS")
        .try_into()
        .map_err(failed("recognise"))?;
    lsm.load(hook, btf).map_err(failed("load"))?;
    let pin = |what| {
        let directory = generation.directory.display().to_string();
        move |source| LoadError::Pin { what, directory, source }
    };
    lsm.pin(generation.program(program, Standby::No)).map_err(pin("a program"))?;
    let link = lsm.attach().and_then(|id| lsm.take_link(id)).map_err(failed("attach"))?;
    FdLink::from(link).pin(generation.link(program, Standby::No)).map_err(pin("a link"))?;
    Ok(())
}
