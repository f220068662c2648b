//! The system calls for programs, their types and links. Safety: see [`sys`](super::sys).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya_obj::generated::bpf_cmd;

use super::sys::{Attributes, attributes, bpf};

/// Number of bytes of the verifier's log that are kept.
const SHOWN_LOG: usize = 2000;
const LOG_BYTES: usize = 1 << 20;

/// The kernel did not take it: its verifier's last lines, and the error.
#[derive(Debug)]
pub(super) struct Refused {
    pub verifier: String,
    pub source: io::Error,
}

/// Has the kernel verify a program, and loads it.
pub(super) fn load_program(attributes: &mut ProgramLoad) -> Result<OwnedFd, Refused> {
    load(bpf_cmd::BPF_PROG_LOAD, attributes, |attributes, [size, level], log| {
        (attributes.log_size, attributes.log_level, attributes.log_buf) = (size, level, log);
    })
}

/// Loads an object's types.
pub(super) fn load_types(types: &[u8]) -> Result<OwnedFd, Refused> {
    let mut attributes = TypesLoad {
        btf: types.as_ptr() as u64,
        btf_size: types.len() as u32,
        ..TypesLoad::default()
    };
    load(bpf_cmd::BPF_BTF_LOAD, &mut attributes, |attributes, [size, level], log| {
        (attributes.btf_log_size, attributes.btf_log_level, attributes.btf_log_buf) =
            (size, level, log);
    })
}

/// Asks without a log, which is dear, and once more with one for the reason of a refusal.
fn load<T: Attributes>(
    command: bpf_cmd,
    attributes: &mut T,
    with_log: impl FnOnce(&mut T, [u32; 2], u64),
) -> Result<OwnedFd, Refused> {
    if let Ok(number) = bpf(command, attributes) {
        return Ok(owned(number));
    }
    let mut log = vec![0_u8; LOG_BYTES];
    with_log(attributes, [LOG_BYTES as u32, 1], log.as_mut_ptr() as u64);
    bpf(command, attributes)
        .map(owned)
        .map_err(|source| Refused { verifier: last_lines(&log), source })
}

/// Attaches a loaded program to its function. It stays attached as long as the link lives.
pub(super) fn attach(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes =
        TracepointOpen { name: 0, prog_fd: program.as_raw_fd() as u32, reserved: 0 };
    bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attributes).map(owned)
}

/// Pins a program or a link.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = ObjectPin {
        pathname: path.as_ptr() as u64,
        bpf_fd: object.as_raw_fd() as u32,
        file_flags: 0,
    };
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes).map(drop)
}

/// The kernel takes 15 bytes of a name.
pub(super) fn short_name(name: &str) -> [u8; 16] {
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
pub(super) struct ProgramLoad {
    pub prog_type: u32,
    pub insn_cnt: u32,
    pub insns: u64,
    pub license: u64,
    pub log_level: u32,
    pub log_size: u32,
    pub log_buf: u64,
    pub kern_version: u32,
    pub prog_flags: u32,
    pub prog_name: [u8; 16],
    pub prog_ifindex: u32,
    pub expected_attach_type: u32,
    pub prog_btf_fd: u32,
    pub func_info_rec_size: u32,
    pub func_info: u64,
    pub func_info_cnt: u32,
    pub line_info_rec_size: u32,
    pub line_info: u64,
    pub line_info_cnt: u32,
    pub attach_btf_id: u32,
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
    btf_log_buf: u64,
    btf_size: u32,
    btf_log_size: u32,
    btf_log_level: u32,
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
