//! Loads the kernel program: makes its maps or opens those that are pinned, hands its programs to
//! the kernel, and attaches them to the LSM hooks or in front of the functions that call those.
//!
//! aya 0.14's loader does not do for this: it has no programs of the kind that the tier `fmod-ret`
//! needs, reads all of the kernel's types for each load though nothing here is relocated against
//! them, has programs verified one after the other, and writes an object's data sections also into
//! maps that it finds pinned, under the eyes of the programs in force. This module takes the object
//! through aya's object layer and makes the maps by aya; the system calls for programs are its own.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::{io, iter};

use aya::EbpfError;
use aya::maps::{MapData, MapError};
use aya::pin::PinError;
use aya_obj::generated::{bpf_attach_type, bpf_prog_type};
use aya_obj::{EbpfSectionKind, Object};
use guard_common::names::map;
use thiserror::Error;

use super::program_calls::{self as calls, ProgramLoad, Refused};
use super::sys;

/// The kernel program could not be loaded, attached or pinned.
#[derive(Debug, Error)]
pub enum ProgramError {
    #[error("read the embedded object")]
    Object(#[source] EbpfError),
    #[error("the object's {what} is missing: this build is broken")]
    Missing { what: &'static str },
    #[error(
        "make or open BPF map {name}: this needs CAP_BPF and CAP_PERFMON (or root), and a kernel \
         that is not locked down; `guardctl doctor` tells which"
    )]
    Map {
        name: String,
        #[source]
        source: MapError,
    },
    #[error("pin BPF map {name} at {path}")]
    PinMap {
        name: String,
        path: PathBuf,
        #[source]
        source: PinError,
    },
    #[error(
        "the kernel refused the object's types: this needs CAP_BPF and CAP_PERFMON (or root), and \
         a kernel that is not locked down; `guardctl doctor` tells which; the verifier's last \
         lines:\n{verifier}"
    )]
    Types {
        verifier: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "the kernel refused to load program {program} for `{function}`; the verifier's last \
         lines:\n{verifier}"
    )]
    Load {
        program: &'static str,
        function: String,
        verifier: String,
        #[source]
        source: io::Error,
    },
    #[error("{operation}")]
    System {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
}

/// A program of the object, and where in the kernel it belongs.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub program: &'static str,
    /// The hook whose decisions it makes, by its name in the kernel's list of LSM hooks.
    pub hook: &'static str,
    pub place: Place,
    /// The kernel's function that the program is loaded for, and the number of its type in the
    /// kernel's BTF.
    pub function: String,
    pub function_id: u32,
}

/// Relation of a program to the function that it is loaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is called by the LSM's hook, whose answer it gives.
    Hook,
    /// Its answer, unless 0, becomes the function's, which is not run then.
    ModifyReturn,
    /// It only runs before it. For functions that answer nothing.
    Entry,
}

/// The constants of an object's programs, by the names of its symbols.
pub(super) type Constants<'a> = HashMap<&'a str, &'a [u8]>;

/// Makes the maps of an object, or opens those that are pinned in `directory`, and pins the new
/// ones there. A map without a standing place (the object's constants) is made each time. The
/// content of a pinned map is left alone: programs in force read it.
pub(super) fn make_maps(bytes: &[u8], directory: Option<&Path>) -> Result<(), ProgramError> {
    maps_of(&mut parse(bytes, Constants::new())?, directory).map(drop)
}

fn parse(bytes: &[u8], constants: Constants<'_>) -> Result<Object, ProgramError> {
    let mut object = Object::parse(bytes).map_err(|error| ProgramError::Object(error.into()))?;
    let constants = constants.into_iter().map(|(name, bytes)| (name, (bytes, true))).collect();
    object.patch_map_data(constants).map_err(|error| ProgramError::Object(error.into()))?;
    Ok(object)
}

type ObjectMap = (String, aya_obj::Map, MapData);

fn maps_of(object: &mut Object, directory: Option<&Path>) -> Result<Vec<ObjectMap>, ProgramError> {
    let definitions = std::mem::take(&mut object.maps);
    let pinned = |name: &str| map::ALL.iter().find(|pinned| map::in_object(pinned) == name);
    let opened = definitions.into_iter().map(|(name, definition)| {
        let pin = directory.zip(pinned(&name)).map(|(directory, pinned)| directory.join(pinned));
        let data = open_or_make(&name, &definition, pin.as_deref())?;
        Ok((name, definition, data))
    });
    opened.collect()
}

fn open_or_make(
    name: &str,
    definition: &aya_obj::Map,
    pin: Option<&Path>,
) -> Result<MapData, ProgramError> {
    let failed = |source| ProgramError::Map { name: name.to_owned(), source };
    if let Some(pin) = pin
        && pin.try_exists().map_err(|error| failed(MapError::IoError(error)))?
    {
        return MapData::from_pin(pin).map_err(failed);
    }
    let made = MapData::create(definition.clone(), name, None).map_err(failed)?;
    let map = made.fd().as_fd();
    if matches!(definition.section_kind(), EbpfSectionKind::Data | EbpfSectionKind::Rodata) {
        sys::update(map, &0_u32.to_ne_bytes(), definition.data())
            .map_err(|error| failed(MapError::IoError(error)))?;
    }
    if definition.section_kind() == EbpfSectionKind::Rodata {
        // The verifier takes a value that cannot change any more for a constant.
        sys::freeze(map).map_err(|error| failed(MapError::IoError(error)))?;
    }
    if let Some(pin) = pin {
        // Last: a pinned map is whole.
        made.pin(pin).map_err(|source| ProgramError::PinMap {
            name: name.to_owned(),
            path: pin.to_owned(),
            source,
        })?;
    }
    Ok(made)
}

/// The object, joined to its maps: its programs can be loaded.
#[derive(Debug)]
pub(super) struct Loader {
    object: Object,
    /// The object's own types, which the kernel needs for its global functions.
    types: OwnedFd,
    /// Instructions name the maps by these descriptors until they are loaded.
    _maps: Vec<ObjectMap>,
}

impl Loader {
    /// Joins the object to its maps, see [`make_maps`].
    pub(super) fn new(
        bytes: &[u8],
        constants: Constants<'_>,
        directory: Option<&Path>,
    ) -> Result<Self, ProgramError> {
        let failed = |error: EbpfError| ProgramError::Object(error);
        let mut object = parse(bytes, constants)?;
        let features = aya::features();
        let types =
            features.btf().ok_or(ProgramError::Missing { what: "kernel's support of BTF" })?;
        let types = object
            .fixup_and_sanitize_btf(types)
            .map_err(|error| failed(error.into()))?
            .ok_or(ProgramError::Missing { what: "BTF" })?
            .to_bytes();
        let types = calls::load_types(&types)
            .map_err(|Refused { verifier, source }| ProgramError::Types { verifier, source })?;
        let maps = maps_of(&mut object, directory)?;
        let joined = maps
            .iter()
            .map(|(name, map, data)| (name.as_str(), data.fd().as_fd().as_raw_fd(), map));
        let sections: HashSet<usize> =
            object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(joined, &sections).map_err(|error| failed(error.into()))?;
        object.relocate_calls(&sections).map_err(|error| failed(error.into()))?;
        object.sanitize_functions(features);
        Ok(Self { object, types, _maps: maps })
    }

    /// Has the kernel verify the programs and loads them, as many at a time as there are
    /// processors: verifying takes most of an agent's start, and the kernel does not do it one by
    /// one. The answers are in the order of the targets.
    pub(super) fn load_all(&self, targets: &[Target]) -> Result<Vec<OwnedFd>, ProgramError> {
        let next = AtomicUsize::new(0);
        let work = || {
            let indices = iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
            let mine = indices.map_while(|index| Some((index, targets.get(index)?)));
            mine.map(|(index, target)| (index, self.load(target))).collect::<Vec<_>>()
        };
        let workers =
            thread::available_parallelism().map_or(1, |count| count.get().min(targets.len()));
        let mut loaded = thread::scope(|scope| {
            let others: Vec<_> = (1..workers).map(|_| scope.spawn(work)).collect();
            let mut loaded = work();
            for other in others {
                loaded.extend(other.join().expect("loading does not panic"));
            }
            loaded
        });
        loaded.sort_by_key(|(index, _)| *index);
        loaded.into_iter().map(|(_, program)| program).collect()
    }

    fn load(&self, target: &Target) -> Result<OwnedFd, ProgramError> {
        let found = self
            .object
            .programs
            .get(target.program)
            .and_then(|found| Some((found, self.object.functions.get(&found.function_key())?)))
            .ok_or(ProgramError::Missing { what: "program" })?;
        let (head, code) = found;
        let (functions, lines) =
            (code.func_info.func_info_bytes(), code.line_info.line_info_bytes());
        let (kind, attach) = match target.place {
            Place::Hook => (bpf_prog_type::BPF_PROG_TYPE_LSM, bpf_attach_type::BPF_LSM_MAC),
            Place::ModifyReturn => {
                (bpf_prog_type::BPF_PROG_TYPE_TRACING, bpf_attach_type::BPF_MODIFY_RETURN)
            }
            Place::Entry => {
                (bpf_prog_type::BPF_PROG_TYPE_TRACING, bpf_attach_type::BPF_TRACE_FENTRY)
            }
        };
        let mut attributes = ProgramLoad {
            prog_type: kind as u32,
            insn_cnt: code.instructions.len() as u32,
            insns: code.instructions.as_ptr() as u64,
            license: head.license.as_ptr() as u64,
            prog_name: calls::short_name(target.program),
            expected_attach_type: attach as u32,
            prog_btf_fd: self.types.as_raw_fd() as u32,
            func_info_rec_size: code.func_info_rec_size as u32,
            func_info: functions.as_ptr() as u64,
            func_info_cnt: code.func_info.len() as u32,
            line_info_rec_size: code.line_info_rec_size as u32,
            line_info: lines.as_ptr() as u64,
            line_info_cnt: code.line_info.len() as u32,
            attach_btf_id: target.function_id,
            ..ProgramLoad::default()
        };
        calls::load_program(&mut attributes).map_err(|Refused { verifier, source }| {
            let function = target.function.clone();
            ProgramError::Load { program: target.program, function, verifier, source }
        })
    }
}
