//! The running task.

use core::ffi::c_void;

use aya_ebpf::helpers::generated;

use super::lenient::Lenient;
use super::{ReadError, Trusted, read};

/// The running task.
#[derive(Clone, Copy)]
pub(crate) struct Task(u64);

/// `PF_KTHREAD` of `task_struct.flags`, the same since 2.6.27.
const PF_KTHREAD: u32 = 0x0020_0000;

impl Task {
    #[inline(always)]
    pub(crate) fn current() -> Self {
        // SAFETY: always allowed; returns the address of the running task.
        Self(unsafe { generated::bpf_get_current_task() })
    }
    #[inline(always)]
    pub(crate) fn is_kernel_thread(self) -> bool {
        typed_task().task_flags() & PF_KTHREAD != 0
    }
    /// The dentry of the root directory of PID 1. Every process has a number in the first PID
    /// namespace, whatever container it is in, and that namespace knows its first process.
    #[inline(always)]
    pub(crate) fn host_root(self) -> Result<u64, ReadError> {
        let pid: u64 = read(self.0, offset!(task_thread_pid))?;
        let namespace: u64 = read(pid, offset!(pid_numbers) + offset!(upid_ns))?;
        let first: u64 = read(namespace, offset!(pid_namespace_child_reaper))?;
        let filesystem: u64 = read(first, offset!(task_fs))?;
        read(filesystem, offset!(fs_struct_root) + offset!(path_dentry))
    }
    /// When its process started, on the boot clock.
    #[inline(always)]
    pub(crate) fn process_start(self) -> u64 {
        typed_task().group_leader().start_boottime()
    }
    /// Its executable; `None` for a kernel thread.
    #[inline(always)]
    pub(crate) fn executable(self) -> Option<Executable> {
        let inode = typed_task().memory().executable_file().file_inode();
        let ino = inode.inode_number();
        (ino != 0).then(|| Executable {
            ino,
            dev: inode.inode_superblock().device(),
            generation: inode.inode_generation(),
        })
    }
}

/// An executable file.
pub(crate) struct Executable {
    pub ino: u64,
    /// `s_dev` of its superblock.
    pub dev: u32,
    pub generation: u32,
}

/// The running task, as a pointer that the verifier knows the type of.
#[inline(always)]
fn typed_task() -> Trusted {
    // SAFETY: always allowed; returns the address of the running task.
    Trusted::new(unsafe { generated::bpf_get_current_task_btf() } as *const c_void)
}

impl Lenient {
    #[inline(always)]
    pub(crate) fn parent_process(&mut self, Task(task): Task) -> u32 {
        let parent = self.read(task, offset!(task_real_parent));
        self.read(parent, offset!(task_tgid))
    }
    /// `u32::MAX`: not set, as the kernel has it, or not known to this kernel.
    #[inline(always)]
    pub(crate) fn login_uid(&mut self, Task(task): Task) -> u32 {
        if offset!(task_loginuid) == 0 {
            return u32::MAX;
        }
        self.read(task, offset!(task_loginuid))
    }
    /// Real and effective user.
    #[inline(always)]
    pub(crate) fn users(&mut self, Task(task): Task) -> (u32, u32) {
        let credentials = self.read(task, offset!(task_cred));
        (self.read(credentials, offset!(cred_uid)), self.read(credentials, offset!(cred_euid)))
    }
    /// Inode of the task's mount namespace.
    #[inline(always)]
    pub(crate) fn mount_namespace(&mut self, Task(task): Task) -> u32 {
        let proxy = self.read(task, offset!(task_nsproxy));
        let namespace = self.read(proxy, offset!(nsproxy_mnt_ns));
        self.read(namespace, offset!(mnt_namespace_inum))
    }
}
