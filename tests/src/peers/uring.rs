//! Deletes through io_uring, where no deletion system call is made: the kernel's workers do it.

use std::ffi::CString;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use io_uring::{IoUring, opcode, squeue, types};
use nix::errno::Errno;
use nix::libc::AT_FDCWD;

const DEPTH: usize = 64;

/// `IORING_OP_UNLINKAT` for each path. Returns how each of them ended, in no particular order. Fails if
/// this kernel has no io_uring, or has it switched off.
pub fn unlink(paths: &[PathBuf]) -> Result<Vec<Result<(), Errno>>> {
    let mut ring =
        IoUring::new(DEPTH as u32).context("set up an io_uring (see /proc/sys/kernel/io_uring_disabled)")?;
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
        outcomes.extend(ring.completion().map(|completion| match completion.result() {
            0.. => Ok(()),
            error => Err(Errno::from_raw(-error)),
        }));
        ensure!(outcomes.len() - before == names.len(), "completions are missing");
    }
    Ok(outcomes)
}
