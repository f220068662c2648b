//! Loads the kernel program in front of the kernel's `security_*` functions: the tier `fmod-ret`.
//!
//! aya 0.14 knows no such programs. Its loader still makes and fills the maps; this module takes the same
//! object once more through aya's object layer, joins it to those maps, and makes the system calls
//! itself. It can go when aya gains the type.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::maps::Map;
use aya::{Ebpf, EbpfError};
use aya_obj::Object;
use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_prog_type};
use thiserror::Error;

use super::sys::{attributes, bpf};

/// A program could not be loaded, attached or pinned.
#[derive(Debug, Error)]
pub enum FmodRetError {
    #[error("read the embedded object")]
    Object(#[source] EbpfError),
    #[error("the object's {what} is missing: this build is broken")]
    Missing { what: &'static str },
    #[error(
        "the kernel refused to load {program} in front of `{function}`; the verifier's last lines:\n{verifier}"
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

/// What a program does to the function that it stands before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Its answer, unless 0, becomes the function's, which is not run then.
    ModifyReturn,
    /// It only runs before it. For functions that answer nothing.
    Entry,
}

/// The object, joined to the maps: its programs can be loaded.
#[derive(Debug)]
pub struct Loader {
    object: Object,
    /// The object's own types, which the kernel needs for its global functions.
    types: OwnedFd,
}

impl Loader {
    /// Joins the object to the maps that aya's loader has made of the same bytes.
    pub fn new(bytes: &[u8], maps: &Ebpf) -> Result<Self, FmodRetError> {
        let read = |error: EbpfError| FmodRetError::Object(error);
        let mut object = Object::parse(bytes).map_err(|error| read(error.into()))?;
        let features = aya::features();
        let types = features.btf().ok_or(FmodRetError::Missing { what: "kernel's support of BTF" })?;
        let types = object
            .fixup_and_sanitize_btf(types)
            .map_err(|error| read(error.into()))?
            .ok_or(FmodRetError::Missing { what: "BTF" })?
            .to_bytes();
        let types = load_types(&types)
            .map_err(|source| FmodRetError::System { operation: "load the object's BTF", source })?;

        let definitions = std::mem::take(&mut object.maps);
        let joined: Vec<(&str, RawFd, &aya_obj::Map)> = maps
            .maps()
            .filter_map(|(name, map)| Some((name, descriptor(map)?, definitions.get(name)?)))
            .collect();
        if joined.len() != definitions.len() {
            return Err(FmodRetError::Missing { what: "map" });
        }
        let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(joined.into_iter(), &sections).map_err(|error| read(error.into()))?;
        object.relocate_calls(&sections).map_err(|error| read(error.into()))?;
        object.sanitize_functions(features);
        Ok(Self { object, types })
    }

    /// Loads one program for a function of the kernel, by the function's number in the kernel's BTF.
    pub fn load(
        &self,
        program: &'static str,
        function: &str,
        function_id: u32,
        place: Place,
    ) -> Result<OwnedFd, FmodRetError> {
        let found = self
            .object
            .programs
            .get(program)
            .and_then(|found| Some((found, self.object.functions.get(&found.function_key())?)))
            .ok_or(FmodRetError::Missing { what: "program" })?;
        let (head, code) = found;
        let (functions, lines) = (code.func_info.func_info_bytes(), code.line_info.line_info_bytes());
        let mut attributes = ProgramLoad {
            prog_type: bpf_prog_type::BPF_PROG_TYPE_TRACING as u32,
            insn_cnt: code.instructions.len() as u32,
            insns: code.instructions.as_ptr() as u64,
            license: head.license.as_ptr() as u64,
            prog_name: short_name(program),
            expected_attach_type: match place {
                Place::ModifyReturn => bpf_attach_type::BPF_MODIFY_RETURN,
                Place::Entry => bpf_attach_type::BPF_TRACE_FENTRY,
            } as u32,
            prog_btf_fd: self.types.as_raw_fd() as u32,
            func_info_rec_size: code.func_info_rec_size as u32,
            func_info: functions.as_ptr() as u64,
            func_info_cnt: code.func_info.len() as u32,
            line_info_rec_size: code.line_info_rec_size as u32,
            line_info: lines.as_ptr() as u64,
            line_info_cnt: code.line_info.len() as u32,
            attach_btf_id: function_id,
            ..ProgramLoad::default()
        };
        match bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes) {
            Ok(number) => Ok(owned(number)),
            Err(source) => {
                // Once more, for the reason.
                let mut log = vec![0_u8; LOG_BYTES];
                (attributes.log_level, attributes.log_size) = (1, log.len() as u32);
                attributes.log_buf = log.as_mut_ptr() as u64;
                if let Ok(number) = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes) {
                    return Ok(owned(number));
                }
                let (function, verifier) = (function.to_owned(), last_lines(&log));
                Err(FmodRetError::Load { program, function, verifier, source })
            }
        }
    }
}

/// Attaches a loaded program to its function. It stays attached as long as the link lives.
pub fn attach(program: BorrowedFd<'_>) -> Result<OwnedFd, FmodRetError> {
    let mut attributes = TracepointOpen { name: 0, prog_fd: program.as_raw_fd() as u32, reserved: 0 };
    let number = bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attributes);
    number
        .map(owned)
        .map_err(|source| FmodRetError::System { operation: "attach a program to its function", source })
}

/// Pins a program or a link.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> Result<(), FmodRetError> {
    let failed = |source| FmodRetError::System { operation: "pin a program or its link", source };
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
    let mut attributes =
        ObjectPin { pathname: path.as_ptr() as u64, bpf_fd: object.as_raw_fd() as u32, file_flags: 0 };
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes).map(drop).map_err(failed)
}

fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    let mut attributes = TypesLoad {
        btf: types.as_ptr() as u64,
        log_buf: 0,
        btf_size: types.len() as u32,
        log_size: 0,
        log_level: 0,
        reserved: 0,
    };
    bpf(bpf_cmd::BPF_BTF_LOAD, &mut attributes).map(owned)
}

/// `None` for a kind of map that the kernel program has not.
fn descriptor(map: &Map) -> Option<RawFd> {
    let (Map::Array(data) | Map::HashMap(data) | Map::PerCpuArray(data) | Map::RingBuf(data)) = map else {
        return None;
    };
    Some(data.fd().as_fd().as_raw_fd())
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
#[derive(Debug)]
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
