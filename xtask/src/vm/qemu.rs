//! QEMU's command line, and whether this machine can virtualise.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::job::Job;
use super::{Boot, Lsm};
use crate::kernel::Layout;

const QEMU: &str = "qemu-system-x86_64";
/// Debian's default order without `bpf`.
const LSM_WITHOUT_BPF: &str =
    "landlock,lockdown,yama,loadpin,safesetid,integrity,apparmor,selinux,smack,tomoyo";

/// Execution of the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acceleration {
    Kvm,
    Emulation,
    /// Emulation that counts instructions: one thread, one processor, the same result each time.
    InstructionCount,
}

impl Acceleration {
    pub(super) fn choose(icount: bool) -> Result<Self> {
        Ok(match icount {
            true => Self::InstructionCount,
            false if kvm_works()? => Self::Kvm,
            false => Self::Emulation,
        })
    }
}

/// `/dev/kvm` may exist and still not run anything (nested machines), so its first instructions are
/// tried: the firmware announces itself on a debug port within milliseconds.
fn kvm_works() -> Result<bool> {
    const TRIAL: Duration = Duration::from_secs(2);
    if std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(false);
    }
    let mut child = Command::new(QEMU)
        .args([
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-machine",
            "q35",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-chardev", "stdio,id=debug", "-device", "isa-debugcon,iobase=0x402,chardev=debug"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {QEMU}"))?;
    let mut output = child.stdout.take().context("the trial's output is a pipe")?;
    let reader = thread::spawn(move || {
        let mut first = [0; 1];
        std::io::Read::read(&mut output, &mut first).is_ok_and(|count| count == 1)
    });
    let end = Instant::now() + TRIAL;
    while !reader.is_finished() && Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
    }
    // It has either spoken, ended, or hangs.
    let _ = child.kill();
    child.wait()?;
    Ok(reader.join().unwrap_or(false))
}

/// The whole command line.
pub(super) fn command(
    boot: &Boot,
    kernel: &Layout,
    job: &Job,
    acceleration: Acceleration,
) -> Vec<String> {
    let mut line: Vec<String> = vec![QEMU.to_owned()];
    let mut add = |option: &str, value: String| line.extend([option.to_owned(), value]);
    let processors = if acceleration == Acceleration::InstructionCount { 1 } else { boot.smp };
    add("-machine", "q35".to_owned());
    match acceleration {
        Acceleration::Kvm => {
            add("-accel", "kvm".to_owned());
            add("-cpu", "host".to_owned());
        }
        Acceleration::Emulation => {
            add("-accel", "tcg,thread=multi".to_owned());
            add("-cpu", "max".to_owned());
        }
        Acceleration::InstructionCount => {
            add("-accel", "tcg,thread=single".to_owned());
            add("-cpu", "max".to_owned());
            add("-icount", "shift=0,sleep=on".to_owned());
        }
    }
    add("-smp", processors.to_string());
    add("-m", boot.memory.clone());
    add("-display", "none".to_owned());
    add("-monitor", "none".to_owned());
    add("-kernel", kernel.vmlinux().display().to_string());
    add("-initrd", job.initramfs().display().to_string());
    add("-append", kernel_parameters(boot));
    // The kernel's messages go to a file, the command's output to QEMU's own.
    add("-chardev", format!("file,id=console,path={}", escaped(&job.console().to_string_lossy())));
    add("-serial", "chardev:console".to_owned());
    add("-device", "virtio-serial-pci".to_owned());
    add("-chardev", "stdio,id=output,signal=off".to_owned());
    add("-device", "virtconsole,chardev=output".to_owned());
    add("-object", "rng-random,id=random,filename=/dev/urandom".to_owned());
    add("-device", "virtio-rng-pci,rng=random".to_owned());
    let mut share = |tag: &str, path: &str, access: &str| {
        // The shared tree spans several of the host's filesystems; their inode numbers must not
        // meet.
        add(
            "-fsdev",
            format!(
                "local,id={tag},path={},security_model=none,multidevs=remap{access}",
                escaped(path)
            ),
        );
        add("-device", format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
    };
    share("root", "/", ",readonly=on");
    share("job", &job.directory.to_string_lossy(), "");
    share("modules", &kernel.modules().to_string_lossy(), ",readonly=on");
    for (tag, path) in &job.shares {
        share(tag, &path.to_string_lossy(), ",readonly=on");
    }
    if boot.ceph {
        add("-netdev", "user,id=network".to_owned());
        add("-device", "virtio-net-pci,netdev=network,romfile=".to_owned());
    }
    line.extend(["-nodefaults".to_owned(), "-no-reboot".to_owned()]);
    line
}

/// QEMU splits option values at commas; a doubled one stands for itself.
fn escaped(path: &str) -> String {
    path.replace(',', ",,")
}

fn kernel_parameters(boot: &Boot) -> String {
    let mut parameters = vec![
        // A panic ends the machine, which is seen at once. An emulated timer on a loaded machine
        // may miss the kernel's check of it, which then panics.
        "console=ttyS0 panic=-1 oops=panic quiet loglevel=4 no_timer_check".to_owned(),
        // Emulation is slow enough.
        "nokaslr mitigations=off tsc=nowatchdog".to_owned(),
    ];
    match &boot.lsm {
        Lsm::KernelDefault => {}
        Lsm::WithoutBpf => parameters.push(format!("lsm={LSM_WITHOUT_BPF}")),
        Lsm::List(list) => parameters.push(format!("lsm={list}")),
    }
    parameters.extend(boot.append.iter().cloned());
    parameters.join(" ")
}
