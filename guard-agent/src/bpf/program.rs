//! Loads the kernel program: makes its maps or opens those that are pinned, hands its programs to
//! the kernel, and attaches them to the LSM hooks or in front of the functions that call those.
//!
//! aya 0.14's loader does not do for this: it has no programs of the kind that the tier `fmod-ret`
//! needs, reads all of the kernel's types for each load though nothing here is relocated against
//! them, has programs verified one after the other, and writes an object's data sections also into
//! maps that it finds pinned, under the eyes of the programs in force. This module takes the object
//! through aya's object layer and makes the maps by aya; the system calls for programs are its own.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use aya::EbpfError;
use aya::maps::{MapData, MapError};
use aya::pin::PinError;
use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_prog_type};
use aya_obj::{EbpfSectionKind, Object};
use guard_common::names::map;
use thiserror::Error;

use super::sys::{self, attributes, bpf};

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

/// How much of the verifier's log an error shows.
const SHOWN_LOG: usize = 2000;
const LOG_BYTES: usize = 1 << 20;

/// A program of the object, and where in the kernel it belongs.
#[derive(Clone, Debug)]
pub struct Target {
    pub program: &'static str,
    /// The hook whose decisions it makes, by its name in the kernel's list of LSM hooks.
    pub hook: &'static str,
    pub place: Place,
    /// The kernel's function that the program is loaded for, and the number of its type in the
    /// kernel's BTF.
    pub function: String,
    pub function_id: u32,
}

/// How a program stands to the function that it is loaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is called by the LSM's hook, whose answer it gives.
    Hook,
    /// Its answer, unless 0, becomes the function's, which is not run then.
    ModifyReturn,
    /// It only runs before it. For functions that answer nothing.
    Entry,
}

/// What an object's programs read as constants, by the names of its symbols.
pub type Constants<'a> = HashMap<&'a str, &'a [u8]>;

/// Makes the maps of an object, or opens those that are pinned in `directory`, and pins there what
/// it has made. A map without a standing place (the object's constants) is made each time. What a
/// pinned map holds is left alone: programs in force read it.
pub fn make_maps(bytes: &[u8], directory: Option<&Path>) -> Result<(), ProgramError> {
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
        // The verifier takes what cannot change any more for a constant.
        sys::freeze(map).map_err(|error| failed(MapError::IoError(error)))?;
    }
    if let Some(pin) = pin {
        // Last: what is pinned is whole.
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
pub struct Loader {
    object: Object,
    /// The object's own types, which the kernel needs for its global functions.
    types: OwnedFd,
    /// Instructions name the maps by these descriptors until they are loaded.
    _maps: Vec<ObjectMap>,
}

impl Loader {
    /// Joins the object to its maps, see [`make_maps`].
    pub fn new(
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
        let types = load_types(&types)?;
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
    pub fn load_all(&self, targets: &[Target]) -> Result<Vec<OwnedFd>, ProgramError> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut loaded = Vec::new();
            while let Some((index, target)) = {
                let index = next.fetch_add(1, Ordering::Relaxed);
                targets.get(index).map(|target| (index, target))
            } {
                loaded.push((index, self.load(target)));
            }
            loaded
        };
        let workers =
            thread::available_parallelism().map_or(1, |count| count.get().min(targets.len()));
        let mut loaded = thread::scope(|scope| {
            let others: Vec<_> = (1..workers).map(|_| scope.spawn(work)).collect();
            let mut loaded = work();
            loaded.extend(
                others.into_iter().flat_map(|other| other.join().expect("loading does not panic")),
            );
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
            prog_name: short_name(target.program),
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
        if let Ok(number) = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes) {
            return Ok(owned(number));
        }
        // Once more, for the reason.
        let mut log = vec![0_u8; LOG_BYTES];
        (attributes.log_level, attributes.log_size) = (1, log.len() as u32);
        attributes.log_buf = log.as_mut_ptr() as u64;
        bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes).map(owned).map_err(|source| {
            ProgramError::Load {
                program: target.program,
                function: target.function.clone(),
                verifier: last_lines(&log),
                source,
            }
        })
    }
}

/// Attaches a loaded program to its function. It stays attached as long as the link lives.
pub fn attach(program: BorrowedFd<'_>) -> Result<OwnedFd, ProgramError> {
    let mut attributes =
        TracepointOpen { name: 0, prog_fd: program.as_raw_fd() as u32, reserved: 0 };
    let number = bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attributes);
    number.map(owned).map_err(|source| ProgramError::System {
        operation: "attach a program to its function",
        source,
    })
}

/// Pins a program or a link.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> Result<(), ProgramError> {
    let failed = |source| ProgramError::System { operation: "pin a program or its link", source };
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
    let mut attributes = ObjectPin {
        pathname: path.as_ptr() as u64,
        bpf_fd: object.as_raw_fd() as u32,
        file_flags: 0,
    };
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes).map(drop).map_err(failed)
}

fn load_types(types: &[u8]) -> Result<OwnedFd, ProgramError> {
    let mut attributes = TypesLoad {
        btf: types.as_ptr() as u64,
        btf_size: types.len() as u32,
        ..TypesLoad::default()
    };
    if let Ok(number) = bpf(bpf_cmd::BPF_BTF_LOAD, &mut attributes) {
        return Ok(owned(number));
    }
    // Once more, for the reason.
    let mut log = vec![0_u8; LOG_BYTES];
    (attributes.log_level, attributes.log_size) = (1, log.len() as u32);
    attributes.log_buf = log.as_mut_ptr() as u64;
    bpf(bpf_cmd::BPF_BTF_LOAD, &mut attributes)
        .map(owned)
        .map_err(|source| ProgramError::Types { verifier: last_lines(&log), source })
}

/// The kernel takes 15 bytes of a name.
fn short_name(name: &str) -> [u8; 16] {
    let mut short = [0; 16];
    let length = name.len().min(15);
    short[..length].copy_from_slice(&name.as_bytes()[..length]);
    short
}

fn last_lines(log: &[u8]) -> String {
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    String::from_utf8_lossy(&log[end.saturating_sub(SHOWN_LOG)..end]).trim().to_owned()
}

/// Attributes of `BPF_PROG_LOAD`, as far as they are used.
#[repr(C)]
#[derive(Debug, Default)]
struct ProgramLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

/// Attributes of `BPF_RAW_TRACEPOINT_OPEN`.
#[repr(C)]
#[derive(Debug)]
struct TracepointOpen {
    name: u64,
    prog_fd: u32,
    reserved: u32,
}

/// Attributes of `BPF_OBJ_PIN`.
#[repr(C)]
#[derive(Debug)]
struct ObjectPin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Attributes of `BPF_BTF_LOAD`.
#[repr(C)]
#[derive(Debug, Default)]
struct TypesLoad {
    btf: u64,
    log_buf: u64,
    btf_size: u32,
    log_size: u32,
    log_level: u32,
    reserved: u32,
}

attributes!(ProgramLoad: 112, TracepointOpen: 16, ObjectPin: 16, TypesLoad: 32);

/// Takes a descriptor that [`bpf`] has returned.
fn owned(number: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_logs_are_cut() {
        assert_eq!(&short_name("guard_path_unlink")[..], b"guard_path_unli\0");
        assert_eq!(&short_name("ab")[..3], b"ab\0");
        assert_eq!(last_lines(b"why\n\0\0"), "why");
        assert_eq!(last_lines(&[b'x'; 3000]).len(), SHOWN_LOG);
    }

    #[test]
    fn attributes_lie_where_the_kernel_expects_them() {
        use std::mem::offset_of;
        assert_eq!(offset_of!(ProgramLoad, prog_name), 48);
        assert_eq!(offset_of!(ProgramLoad, prog_btf_fd), 72);
        assert_eq!(offset_of!(ProgramLoad, line_info), 96);
        assert_eq!(offset_of!(ProgramLoad, attach_btf_id), 108);
    }
}
