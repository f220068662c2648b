//! ptrace(2): has another process make a system call on another path than its own.

use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;

/// A process under our control, until this is dropped. Everything is done by the thread that has
/// attached.
#[derive(Debug)]
pub struct Traced {
    pid: libc::pid_t,
}

impl Traced {
    pub fn attach(pid: u32) -> Result<Self> {
        let pid = libc::pid_t::try_from(pid).context("its pid")?;
        call(libc::PTRACE_ATTACH, pid, 0).context("attach to it")?;
        let traced = Self { pid };
        traced.wait()?;
        Ok(traced)
    }

    /// Lets it run up to its next unlink, and puts `path` in the place of the one that it was told,
    /// which must be no shorter.
    pub fn redirect_unlink(&self, path: &Path) -> Result<()> {
        for _ in 0..1000 {
            call(libc::PTRACE_SYSCALL, self.pid, 0)
                .context("let it run to its next system call")?;
            self.wait()?;
            // SAFETY: plain numbers, of which all zeros are some.
            let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
            call(libc::PTRACE_GETREGS, self.pid, (&raw mut registers) as usize)
                .context("read its registers")?;
            let address = match registers.orig_rax as libc::c_long {
                libc::SYS_unlink => registers.rdi,
                libc::SYS_unlinkat => registers.rsi,
                _ => continue,
            };
            let memory = File::options().write(true).open(format!("/proc/{}/mem", self.pid));
            let mut text = path.as_os_str().as_bytes().to_vec();
            text.push(0);
            return memory
                .and_then(|memory| memory.write_all_at(&text, address))
                .context("write its memory");
        }
        bail!("it made a thousand system calls, and no unlink")
    }

    fn wait(&self) -> Result<()> {
        let mut status = 0;
        // SAFETY: waits for a child or a traced process and writes one number of ours.
        let result = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
        Errno::result(result).context("wait for the traced process")?;
        ensure!(libc::WIFSTOPPED(status), "the traced process ended: {status:#x}");
        Ok(())
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = call(libc::PTRACE_DETACH, self.pid, 0);
    }
}

fn call(request: libc::c_uint, pid: libc::pid_t, data: usize) -> Result<(), Errno> {
    // SAFETY: `data` is 0, or the address of the memory that the request writes.
    Errno::result(unsafe { libc::ptrace(request, pid, 0_usize, data) }).map(drop)
}
