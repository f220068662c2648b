//! bpf(2), for features that aya does not offer: program types that it lacks, maps whose types only
//! a description tells, and the number of times that a program was left out.
//!
//! # Safety
//!
//! All that is unsafe is one function, [`bpf`], with its attributes. They are plain integers in the
//! kernel's layout (asserted beside each type), and every address among them is that of a buffer
//! that its caller holds until the call returns. The kernel checks the rest: it reads the program's
//! instructions and refuses those that it cannot verify.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use aya::programs::{ProgramError, ProgramInfo};
use aya_obj::generated::{bpf_cmd, bpf_prog_info};
use nix::libc;

/// A command's attributes: integers only, without padding.
pub(super) trait Attributes {}
macro_rules! attributes {
    ($($name:ty: $size:literal),+ $(,)?) => { $(
        impl $crate::host::bpf::sys::Attributes for $name {}
        const _: () = assert!(size_of::<$name>() == $size);
    )+ };
}
pub(super) use attributes;

/// bpf(2).
pub(super) fn bpf<T: Attributes>(command: bpf_cmd, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the kernel reads (and for a log or an answer writes) no more than the attributes and
    // the buffers that they name; see the module's notes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    i32::try_from(result).ok().filter(|number| *number >= 0).ok_or_else(io::Error::last_os_error)
}

/// Attributes of `BPF_MAP_LOOKUP_ELEM`, `BPF_MAP_GET_NEXT_KEY` and `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
#[derive(Debug)]
struct MapElement {
    map_fd: u32,
    reserved: u32,
    key: u64,
    /// Address of the value, or of the room for it or for the next key.
    value: u64,
    flags: u64,
}
attributes!(MapElement: 32);

/// Attributes of `BPF_MAP_FREEZE`.
#[repr(C)]
#[derive(Debug)]
struct MapFreeze {
    map_fd: u32,
}
attributes!(MapFreeze: 4);

/// Reads an entry. `value` must have as many bytes as the kernel writes for this map; false: there
/// is no such entry.
pub(super) fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    element(bpf_cmd::BPF_MAP_LOOKUP_ELEM, map, Some(key), value.as_mut_ptr() as u64)
}

/// Writes the key after `key` into `next`, or the first one. False: there is none.
pub(super) fn next_key(
    map: BorrowedFd<'_>,
    key: Option<&[u8]>,
    next: &mut [u8],
) -> io::Result<bool> {
    element(bpf_cmd::BPF_MAP_GET_NEXT_KEY, map, key, next.as_mut_ptr() as u64)
}

/// Writes an entry. `value` must have as many bytes as the kernel reads for this map.
pub(super) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    element(bpf_cmd::BPF_MAP_UPDATE_ELEM, map, Some(key), value.as_ptr() as u64).map(drop)
}

/// From now on nobody writes the map through bpf(2).
pub(super) fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    bpf(bpf_cmd::BPF_MAP_FREEZE, &mut MapFreeze { map_fd: map.as_raw_fd() as u32 }).map(drop)
}

/// `value`: the address of a buffer.
fn element(
    command: bpf_cmd,
    map: BorrowedFd<'_>,
    key: Option<&[u8]>,
    value: u64,
) -> io::Result<bool> {
    let mut attributes = MapElement {
        map_fd: map.as_raw_fd() as u32,
        reserved: 0,
        key: key.map_or(0, |key| key.as_ptr() as u64),
        value,
        flags: 0,
    };
    match bpf(command, &mut attributes) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Attributes of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
#[derive(Debug)]
struct ObjectInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}
attributes!(ObjectInfo: 16);

/// Number of times that the kernel has left a pinned program out: it does not run one that another
/// task on the same processor is in the middle of.
pub(super) fn recursion_misses(program: &Path) -> Result<u64, ProgramError> {
    let program = ProgramInfo::from_pin(program)?.fd()?;
    let mut info = [0_u64; size_of::<bpf_prog_info>().div_ceil(8)];
    let mut attributes = ObjectInfo {
        bpf_fd: program.as_fd().as_raw_fd() as u32,
        info_len: size_of::<bpf_prog_info>() as u32,
        info: info.as_mut_ptr() as u64,
    };
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes).map_err(ProgramError::IOError)?;
    Ok(info[std::mem::offset_of!(bpf_prog_info, recursion_misses) / 8])
}
