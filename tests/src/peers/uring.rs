//! Deletes through io_uring, where no deletion system call is made: the kernel's workers do it.
//! Renames and truncates the same way.

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsRawFd as _, IntoRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use io_uring::{IoUring, opcode, squeue, types};
use nix::errno::Errno;
use nix::libc::{self, AT_FDCWD};

const DEPTH: usize = 64;
/// After which a polling thread sleeps, in milliseconds.
const IDLE: u32 = 1000;

/// `IORING_OP_UNLINKAT` for each path. Returns how each of them ended, in no particular order.
/// Fails if this kernel has no io_uring, or has it switched off.
pub fn unlink(paths: &[PathBuf]) -> Result<Vec<Result<(), Errno>>> {
    let mut ring = ring()?;
    let mut outcomes = Vec::new();
    for chunk in paths.chunks(DEPTH) {
        let names: Vec<CString> = chunk
            .iter()
            .map(|path| CString::new(path.as_os_str().as_encoded_bytes()))
            .collect::<Result<_, _>>()?;
        for name in &names {
            let entry = opcode::UnlinkAt::new(types::Fd(AT_FDCWD), name.as_ptr()).build();
            // The kernel's workers run it, not this thread.
            let entry = entry.flags(squeue::Flags::ASYNC);
            // SAFETY: `names` outlives the chunk's last completion, which is awaited below.
            unsafe { ring.submission().push(&entry) }.context("the submission queue is full")?;
        }
        ring.submit_and_wait(names.len()).context("submit to the io_uring")?;
        let before = outcomes.len();
        outcomes.extend(ring.completion().map(|completion| outcome(completion.result()).map(drop)));
        ensure!(outcomes.len() - before == names.len(), "completions are missing");
    }
    Ok(outcomes)
}

/// `IORING_OP_UNLINKAT` of a directory.
pub fn rmdir(path: &Path) -> Result<Result<(), Errno>> {
    let name = name(path)?;
    let entry =
        opcode::UnlinkAt::new(types::Fd(AT_FDCWD), name.as_ptr()).flags(libc::AT_REMOVEDIR).build();
    // SAFETY: `name` lives until the operation is over.
    Ok(unsafe { one(entry) }?.map(drop))
}

/// `IORING_OP_RENAMEAT`.
pub fn rename(from: &Path, to: &Path, flags: u32) -> Result<Result<(), Errno>> {
    let (from, to) = (name(from)?, name(to)?);
    let directory = types::Fd(AT_FDCWD);
    let entry = opcode::RenameAt::new(directory, from.as_ptr(), directory, to.as_ptr())
        .flags(flags)
        .build();
    // SAFETY: the names live until the operation is over.
    Ok(unsafe { one(entry) }?.map(drop))
}

/// `IORING_OP_OPENAT` for writing, with further flags.
pub fn open(path: &Path, flags: i32) -> Result<Result<(), Errno>> {
    let name = name(path)?;
    let entry = opcode::OpenAt::new(types::Fd(AT_FDCWD), name.as_ptr())
        .flags(flags | libc::O_WRONLY)
        .build();
    // SAFETY: `name` lives until the operation is over.
    let outcome = unsafe { one(entry) }?;
    // The opened file is closed again.
    Ok(outcome.and_then(nix::unistd::close))
}

/// `IORING_OP_FTRUNCATE`, which kernels have since 6.9.
pub fn truncate(path: &Path) -> Result<Result<(), Errno>> {
    let file = std::fs::File::options().write(true).open(path).context("open it")?;
    let entry = opcode::Ftruncate::new(types::Fd(file.as_raw_fd()), 0).build();
    // SAFETY: it points to nothing.
    Ok(unsafe { one(entry) }?.map(drop))
}

/// A ring for somebody else: one with a thread of the kernel's that polls it, in the name of its
/// maker, or one on which somebody has to call.
pub fn for_another(polled: bool) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    if polled {
        builder.setup_sqpoll(IDLE);
    }
    builder.build(DEPTH as u32)
}

/// `IORING_OP_UNLINKAT` in a ring that another process has made by [`for_another`]. The name is in
/// the memory of the process that carries it out: of that process, if the ring is polled.
///
/// # Safety
/// If the ring is not polled, the name must live until this returns.
pub unsafe fn unlink_in(
    ring: OwnedFd,
    polled: bool,
    name: *const c_char,
) -> Result<Result<(), Errno>> {
    let same = for_another(polled).context("make a ring to learn what the other one looks like")?;
    // SAFETY: it is a ring, made in the same way on the same kernel.
    let mut ring = unsafe { IoUring::from_fd(ring.into_raw_fd(), same.params().clone()) }
        .context("map another process's ring")?;
    let entry = opcode::UnlinkAt::new(types::Fd(AT_FDCWD), name).build();
    // SAFETY: as the caller says; the completion is awaited here. Of another process's memory
    // nothing is read here.
    unsafe { ring.submission().push(&entry) }.context("the submission queue is full")?;
    ring.submit_and_wait(1).context("submit to another process's ring")?;
    let completion = ring.completion().next().context("the completion is missing")?;
    Ok(outcome(completion.result()).map(drop))
}

/// One operation, done by the kernel's workers.
///
/// # Safety
/// The memory that the entry points to must live until this returns.
unsafe fn one(entry: squeue::Entry) -> Result<Result<i32, Errno>> {
    let mut ring = ring()?;
    let entry = entry.flags(squeue::Flags::ASYNC);
    // SAFETY: as the caller says; the completion is awaited here.
    unsafe { ring.submission().push(&entry) }.context("the submission queue is full")?;
    ring.submit_and_wait(1).context("submit to the io_uring")?;
    let completion = ring.completion().next().context("the completion is missing")?;
    Ok(outcome(completion.result()))
}

fn ring() -> Result<IoUring> {
    IoUring::new(DEPTH as u32)
        .context("set up an io_uring (see /proc/sys/kernel/io_uring_disabled)")
}

fn outcome(result: i32) -> Result<i32, Errno> {
    if result < 0 { Err(Errno::from_raw(-result)) } else { Ok(result) }
}

fn name(path: &Path) -> Result<CString> {
    Ok(CString::new(path.as_os_str().as_encoded_bytes())?)
}
