//! Attaches the programs of a load to the functions of a tier, and pins programs and links.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use guard_common::Tier;
use guard_common::names::PROGRAMS;

use super::btf::Btf;
use super::offsets;
use super::pins::{Generation, Standby};
use super::program::{Loader, Place, ProgramError, Target};
use super::program_calls;

/// This kernel lacks a function that a program which is not optional is for.
#[derive(Debug)]
pub(super) struct NoFunction {
    pub hook: &'static str,
    pub function: String,
}

/// The programs whose functions this kernel has, and their places. A function that is missing is an
/// error unless the program is optional.
pub(super) fn targets(btf: &Btf<'_>, tier: Tier) -> Result<Vec<Target>, NoFunction> {
    let mut targets = Vec::new();
    for name in PROGRAMS {
        let function = offsets::function(tier, name.hook);
        let place = match tier {
            // It answers nothing that could be modified.
            Tier::FmodRet if name.hook == "sb_delete" => Place::Entry,
            Tier::FmodRet => Place::ModifyReturn,
            Tier::BpfLsm | Tier::Fanotify => Place::Hook,
        };
        match btf.function_id(&function) {
            Some(function_id) => {
                targets.push(Target {
                    program: name.program,
                    hook: name.hook,
                    place,
                    function,
                    function_id,
                });
            }
            None if name.optional => {}
            None => return Err(NoFunction { hook: name.hook, function }),
        }
    }
    Ok(targets)
}

/// Loads, attaches and pins all of them.
pub(super) fn attach(
    loader: &Loader,
    targets: &[Target],
    generation: &Generation,
    standby: Standby,
) -> Result<(), ProgramError> {
    let programs: Vec<OwnedFd> = loader.load_all(targets)?;
    for (target, loaded) in targets.iter().zip(&programs) {
        pin(loaded.as_fd(), &generation.program(target.program, standby))?;
        let link = program_calls::attach(loaded.as_fd())
            .map_err(failed("attach a program to its function"))?;
        pin(link.as_fd(), &generation.link(target.program, standby))?;
    }
    Ok(())
}

fn pin(object: BorrowedFd<'_>, path: &Path) -> Result<(), ProgramError> {
    program_calls::pin(object, path).map_err(failed("pin a program or its link"))
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> ProgramError {
    move |source| ProgramError::System { operation, source }
}
