//! prctl(PR_SET_MM): a process takes another program's file for its own executable, as CRIU does
//! when it restores one. The kernel lets it once nothing of its own file is mapped any more: from
//! then on it runs a few instructions of its own.

use std::arch::global_asm;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;
use std::{io, ptr};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use nix::errno::Errno;
use nix::libc;

/// By which of the two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// PR_SET_MM_EXE_FILE, which needs CAP_SYS_RESOURCE
    ExeFile,
    /// PR_SET_MM_MAP, which anybody may who has a user namespace
    Map,
}

/// Added to the error number of prctl, to tell it from that of unlink.
const PRCTL: i32 = 128;
const ROOM: usize = 4096;
const RANGES: usize = 64;

/// Data that the instructions below read, at the offsets that they have there.
#[repr(C)]
struct Order {
    ranges_left: u64,
    /// Of prctl, from the second on.
    arguments: [u64; 3],
    ranges: [[u64; 2]; RANGES],
    path: [u8; ROOM],
}

/// `struct prctl_mm_map`.
#[repr(C)]
struct Map {
    addresses: [u64; 11],
    auxiliary: u64,
    auxiliary_size: u32,
    executable: u32,
}

unsafe extern "C" {
    fn guard_tests_disguise(order: *const Order) -> !;
    fn guard_tests_disguise_end();
}

// Unmaps every range, calls prctl, then unlink, and exits with how that went.
global_asm!(
    ".globl guard_tests_disguise",
    ".globl guard_tests_disguise_end",
    "guard_tests_disguise:",
    "mov rbx, rdi",
    "lea r12, [rbx + 32]",
    "mov r13, [rbx]",
    "2:",
    "test r13, r13",
    "jz 3f",
    "mov rdi, [r12]",
    "mov rsi, [r12 + 8]",
    "mov eax, 11",
    "syscall",
    "add r12, 16",
    "dec r13",
    "jmp 2b",
    "3:",
    "mov edi, 35",
    "mov rsi, [rbx + 8]",
    "mov rdx, [rbx + 16]",
    "mov r10, [rbx + 24]",
    "xor r8d, r8d",
    "mov eax, 157",
    "syscall",
    "mov edi, 128",
    "test rax, rax",
    "js 4f",
    "lea rdi, [rbx + {path}]",
    "mov eax, 87",
    "syscall",
    "xor edi, edi",
    "4:",
    "sub rdi, rax",
    "mov eax, 231",
    "syscall",
    "ud2",
    "guard_tests_disguise_end:",
    path = const std::mem::offset_of!(Order, path),
);

/// Has a copy of this program disguise itself as `executable` and unlink `file`, after `before` has
/// led to it (such as `setpriv`). Fails if it could not disguise itself.
pub fn unlink(
    before: &[&str],
    program: &Path,
    by: By,
    executable: &Path,
    file: &Path,
) -> Result<io::Result<()>> {
    let by = by.to_possible_value().context("no name")?;
    let mut words = before.iter().map(AsRef::as_ref).chain([program.as_os_str()]);
    let mut command = Command::new(words.next().context("no program")?);
    command.args(words).args(["peer", "disguise", by.get_name()]).args([executable, file]);
    let output = command.output().context("start a program that disguises itself")?;
    match output.status.code() {
        Some(0) => Ok(Ok(())),
        Some(number) if number < PRCTL && output.stderr.is_empty() => {
            Ok(Err(Errno::from_raw(number).into()))
        }
        Some(number) if number > PRCTL => bail!("prctl: {}", Errno::from_raw(number - PRCTL)),
        _ => bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)),
    }
}

/// The other side: disguises itself, unlinks and exits.
pub fn disguise(by: By, executable: &Path, file: &Path) -> Result<()> {
    let executable =
        File::open(executable).with_context(|| format!("open {}", executable.display()))?;
    let descriptor = executable.as_raw_fd() as u64;
    let map = Box::new(Map {
        addresses: addresses()?,
        auxiliary: 0,
        auxiliary_size: 0,
        executable: descriptor as u32,
    });
    let arguments = match by {
        By::ExeFile => [libc::PR_SET_MM_EXE_FILE as u64, descriptor, 0],
        By::Map => {
            [libc::PR_SET_MM_MAP as u64, ptr::from_ref(&*map) as u64, size_of::<Map>() as u64]
        }
    };
    let own = own_ranges()?;
    ensure!(own.len() <= RANGES, "the executable is mapped in {} places", own.len());
    let path = CString::new(file.as_os_str().as_encoded_bytes())?;
    let path = path.as_bytes_with_nul();
    ensure!(path.len() <= ROOM, "{} is too long", file.display());
    let mut order = Box::new(Order {
        ranges_left: own.len() as u64,
        arguments,
        ranges: [[0; 2]; RANGES],
        path: [0; ROOM],
    });
    order.ranges[..own.len()].copy_from_slice(&own);
    order.path[..path.len()].copy_from_slice(path);
    // SAFETY: the copied instructions use nothing but `order` and `map`, which are on the heap: no
    // part of the executable. They do not come back, and this process has no other thread.
    unsafe {
        let begin = guard_tests_disguise as *const () as *const u8;
        let length = guard_tests_disguise_end as *const () as usize - begin as usize;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let place = libc::mmap(ptr::null_mut(), ROOM, access, flags, -1, 0);
        ensure!(place != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        place.cast::<u8>().copy_from_nonoverlapping(begin, length);
        Errno::result(libc::mprotect(place, ROOM, libc::PROT_READ | libc::PROT_EXEC))
            .context("mprotect")?;
        let run: unsafe extern "C" fn(*const Order) -> ! = std::mem::transmute(place);
        run(&raw const *order)
    }
}

/// Mappings of the own executable: begin and length of each.
fn own_ranges() -> Result<Vec<[u64; 2]>> {
    let own = fs::read_link("/proc/self/exe").context("where is this program?")?;
    let own = own.to_str().context("its path is not UTF-8")?;
    let maps = fs::read_to_string("/proc/self/maps").context("read /proc/self/maps")?;
    let of_own = maps.lines().filter(|line| line.ends_with(own));
    of_own
        .map(|line| {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let (begin, end) = range.with_context(|| format!("no range in {line:?}"))?;
            let (begin, end) = (u64::from_str_radix(begin, 16)?, u64::from_str_radix(end, 16)?);
            Ok([begin, end - begin])
        })
        .collect()
}

/// Addresses of this process's memory, from the kernel, in the order of `struct prctl_mm_map`:
/// nothing of it is changed.
fn addresses() -> Result<[u64; 11]> {
    let stat = fs::read_to_string("/proc/self/stat").context("read /proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(") ").context("/proc/self/stat names no program")?;
    // The third field is the first here.
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |number: usize| -> Result<u64> {
        let field =
            fields.get(number - 3).with_context(|| format!("no field {number} in {stat:?}"))?;
        Ok(field.parse()?)
    };
    // SAFETY: asks where the heap ends, and moves nothing.
    let heap_end = unsafe { libc::sbrk(0) } as u64;
    let [code, code_end, data, data_end] = [field(26)?, field(27)?, field(45)?, field(46)?];
    let [heap, stack] = [field(47)?, field(28)?];
    let [words, words_end, environment, environment_end] =
        [field(48)?, field(49)?, field(50)?, field(51)?];
    let of_program = [code, code_end, data, data_end, heap, heap_end, stack];
    let mut all = [0; 11];
    all[..7].copy_from_slice(&of_program);
    all[7..].copy_from_slice(&[words, words_end, environment, environment_end]);
    Ok(all)
}
