//! Requirements of the machine: each by the file that proves it, and Debian's package for it.

use std::path::{Path, PathBuf};
use std::{env, fs};

use crate::kernel::initramfs::BUSYBOX;

/// Purpose of a requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Building the kernel program.
    Bpf,
    /// Booting a VM and fetching its kernel.
    Vm,
    /// A Ceph cluster beside the VM.
    Ceph,
    /// Tools that the test suites run in the VM.
    Suites,
    /// Programs of guests in the test suites with `--full`.
    Workloads,
    /// Tools that the benchmarks measure beside us.
    Bench,
    /// Building libFuzzer.
    Fuzz,
    /// Incus, unpacked in the cache, and its dependencies on the machine.
    Incus,
    /// Making and booting real hosts.
    Host,
    /// Making the packages.
    Dist,
    /// Checking the packages.
    DistCheck,
}

impl Use {
    /// Uses of everything but the suite `incus` and the demo.
    pub(crate) const WITHOUT_INCUS: [Self; 4] = [Self::Bpf, Self::Vm, Self::Ceph, Self::Suites];
    /// The suite `incus` and the demo.
    pub(crate) const WITH_INCUS: [Self; 5] =
        [Self::Bpf, Self::Vm, Self::Ceph, Self::Suites, Self::Incus];
    pub(crate) const BENCH: [Self; 4] = [Self::Bpf, Self::Vm, Self::Ceph, Self::Bench];
    pub(crate) const ALL: [Self; 11] = [
        Self::Bpf,
        Self::Vm,
        Self::Ceph,
        Self::Suites,
        Self::Workloads,
        Self::Bench,
        Self::Fuzz,
        Self::Incus,
        Self::Host,
        Self::Dist,
        Self::DistCheck,
    ];
}

/// One thing that must be there.
#[derive(Debug)]
pub(super) struct Requirement {
    pub package: &'static str,
    pub purpose: &'static str,
    pub needed_for: Use,
    proof: Proof,
}

#[derive(Debug)]
enum Proof {
    /// A command in the path or in the system directories.
    Command(&'static str),
    File(&'static str),
    /// An executable without a dynamic loader.
    StaticExecutable(&'static str),
}

use Proof::{Command, File, StaticExecutable};

const fn requirement(
    needed_for: Use,
    package: &'static str,
    proof: Proof,
    purpose: &'static str,
) -> Requirement {
    Requirement { package, purpose, needed_for, proof }
}

/// Everything, in the order in which it is shown. Debian's plain `rustc` has the same files as
/// `rustc-web` and no BPF core: those two are proven by dpkg's own list.
pub(super) const ALL: &[Requirement] = &[
    requirement(
        Use::Bpf,
        "rustc-web",
        File("/var/lib/dpkg/info/rustc-web.list"),
        "the compiler whose core library includes BPF",
    ),
    requirement(
        Use::Bpf,
        "cargo-web",
        File("/var/lib/dpkg/info/cargo-web.list"),
        "cargo of the same version",
    ),
    requirement(
        Use::Bpf,
        "libstd-rust-web-dev-bpf",
        File("/usr/lib/rustlib/bpfel-unknown-none/lib"),
        "Rust's core library for BPF",
    ),
    requirement(
        Use::Bpf,
        "llvm-22-dev",
        File("/usr/lib/llvm-22/bin/llvm-config"),
        "LLVM for bpf-linker",
    ),
    requirement(
        Use::Bpf,
        "libpolly-22-dev",
        File("/usr/lib/llvm-22/lib/libPolly.a"),
        "LLVM for bpf-linker",
    ),
    requirement(Use::Bpf, "zlib1g-dev", File("/usr/include/zlib.h"), "LLVM's compression"),
    requirement(Use::Bpf, "libzstd-dev", File("/usr/include/zstd.h"), "LLVM's compression"),
    requirement(Use::Bpf, "g++", Command("g++"), "links bpf-linker"),
    requirement(Use::Fuzz, "g++", Command("g++"), "compiles libFuzzer"),
    requirement(Use::Vm, "qemu-system-x86", Command("qemu-system-x86_64"), "the virtual machine"),
    requirement(Use::Vm, "busybox-static", StaticExecutable(BUSYBOX), "the guest's first shell"),
    requirement(Use::Vm, "kmod", Command("modprobe"), "finds and loads the guest's modules"),
    requirement(Use::Vm, "xz-utils", Command("xz"), "unpacks kernels and modules"),
    requirement(Use::Vm, "zstd", Command("zstd"), "unpacks kernels and modules"),
    requirement(Use::Vm, "iproute2", Command("ip"), "network of the guest and of the Ceph cluster"),
    requirement(Use::Ceph, "ceph-mon", Command("ceph-mon"), "a real Ceph cluster"),
    requirement(Use::Ceph, "ceph-osd", Command("ceph-osd"), "a real Ceph cluster"),
    requirement(Use::Ceph, "ceph-mds", Command("ceph-mds"), "a real Ceph cluster"),
    requirement(Use::Ceph, "ceph-common", Command("ceph"), "a real Ceph cluster"),
    requirement(Use::Suites, "ceph-fuse", Command("ceph-fuse"), "CephFS through FUSE"),
    requirement(Use::Suites, "python3", Command("python3"), "shutil.rmtree"),
    requirement(Use::Suites, "rsync", Command("rsync"), "rsync --delete"),
    requirement(
        Use::Suites,
        "strace",
        Command("strace"),
        "an agent killed at a system call of its own",
    ),
    requirement(Use::Workloads, "git", Command("git"), "version control in a guest's volume"),
    requirement(Use::Workloads, "gcc", Command("cc"), "a compiler in a guest's volume"),
    requirement(
        Use::Workloads,
        "postgresql",
        File("/var/lib/dpkg/info/postgresql.list"),
        "a database in a guest's volume",
    ),
    requirement(
        Use::Bench,
        "apparmor",
        Command("apparmor_parser"),
        "an AppArmor profile to measure beside us",
    ),
    requirement(Use::Host, "mmdebstrap", Command("mmdebstrap"), "a Debian system on a disk image"),
    requirement(
        Use::Host,
        "qemu-utils",
        Command("qemu-img"),
        "disks and saved states of real hosts",
    ),
    requirement(Use::Host, "e2fsprogs", Command("mke2fs"), "the disk's filesystem"),
    requirement(Use::Host, "socat", Command("socat"), "a shell on a real host"),
    requirement(
        Use::Incus,
        "util-linux",
        Command("nsenter"),
        "a second node in namespaces of its own",
    ),
    requirement(
        Use::Dist,
        "dpkg-dev",
        Command("dpkg-shlibdeps"),
        "which libraries a .deb depends on",
    ),
    requirement(
        Use::Dist,
        "rpm",
        Command("rpm"),
        "which libraries an .rpm depends on; its scripts on trial",
    ),
    requirement(Use::DistCheck, "lintian", Command("lintian"), "checks the .deb"),
    requirement(Use::DistCheck, "rpmlint", Command("rpmlint"), "checks the .rpm"),
    requirement(
        Use::DistCheck,
        "mmdebstrap",
        Command("mmdebstrap"),
        "a Debian to try the packages' scripts in",
    ),
];

impl Requirement {
    pub(super) fn is_present(&self) -> bool {
        match self.proof {
            Command(name) => find_command(name).is_some(),
            File(path) => Path::new(path).exists(),
            StaticExecutable(path) => fs::read(path).is_ok_and(|bytes| !has_interpreter(&bytes)),
        }
    }

    /// For machines without apt: the program or file to look for.
    pub(super) fn proof(&self) -> String {
        match self.proof {
            Command(name) => format!("the command {name}"),
            File(path) => path.to_owned(),
            StaticExecutable(path) => format!("a statically linked {path}"),
        }
    }
}

/// A command in the path, or in the system directories that an ordinary user's path lacks.
pub(crate) fn find_command(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    places.map(|place| place.join(name)).find(|candidate| candidate.is_file())
}

/// Whether an ELF64 executable asks for a dynamic loader (has a PT_INTERP segment).
fn has_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let half =
        |at: usize| elf.get(at..at + 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let header = || -> Option<(usize, usize, usize)> {
        let table = u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?);
        Some((usize::try_from(table).ok()?, half(54)?, half(56)?))
    };
    let Some((table, size, count)) = header() else { return true };
    (0..count).any(|number| {
        let at = table + number * size;
        elf.get(at..at + 4)
            .is_none_or(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) == PT_INTERP)
    })
}
