//! Files of `/proc` that stay open from one question to the next: opening one costs more than
//! reading it.
//!
//! They are read anew for each answer. Nothing of their content is remembered, but for the parts
//! that never change ([`Life`]).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;

use crate::host::process::{start_boot_ns, stat_field};

/// So many processes' files stay open; with one more all are closed, and opened as they are asked
/// for.
const PROCESSES: usize = 64;
/// Descriptors from this number on are described by a file of the moment.
const DESCRIPTORS: usize = 128;
/// Bytes that are read at first.
const BUFFER: usize = 1024;
/// `PF_KTHREAD` in `/proc/PID/stat`.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// The constant facts of a process's life. (A kernel thread may become a process by `execve`, never
/// the other way round: the facts of a kernel thread are not kept.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Life {
    pub start_boot_ns: u64,
    pub kernel_thread: bool,
}

impl Life {
    pub(super) fn parse(stat: &[u8]) -> Option<Self> {
        let flags: u64 = stat_field(stat, 9)?.parse().ok()?;
        Some(Self {
            start_boot_ns: start_boot_ns(stat)?,
            kernel_thread: flags & KERNEL_THREAD != 0,
        })
    }
}

/// A process's files. procfs ties an open file to the process and not to its number: once the
/// process is gone, reading it, or looking up a name in its directory, fails, also when another
/// process has the number by then.
#[derive(Debug)]
struct Files {
    directory: OwnedFd,
    /// Nothing on a kernel without cgroups.
    cgroup: Option<File>,
    life: Option<Life>,
}

impl Files {
    fn open(proc_root: &Path, tgid: u32) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = openat(AT_FDCWD, &proc_root.join(tgid.to_string()), flags, Mode::empty())?;
        let mut files = Self { directory, cgroup: None, life: None };
        files.cgroup = files.file("cgroup", OFlag::O_RDONLY)?.map(File::from);
        Ok(files)
    }

    /// A file of the process; `None` if there is none of that name.
    fn file(&self, name: &str, flags: OFlag) -> io::Result<Option<OwnedFd>> {
        match openat(&self.directory, name, flags | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(file) => Ok(Some(file)),
            Err(nix::errno::Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The processes that have asked, with their files.
#[derive(Debug)]
pub(super) struct Processes {
    proc_root: PathBuf,
    files: HashMap<u32, Files>,
    buffer: Vec<u8>,
}

impl Processes {
    /// Below `proc_root` (`/proc`).
    pub(super) fn new(proc_root: &Path) -> Self {
        Self { proc_root: proc_root.to_owned(), files: HashMap::new(), buffer: vec![0; BUFFER] }
    }

    /// The cgroup of version 2 that a process is in, as `/proc/PID/cgroup` names it; `None` if it
    /// is in none. First of all questions about a process: from here on its number stands for this
    /// very process.
    pub(super) fn cgroup(&mut self, tgid: u32) -> io::Result<Option<&Path>> {
        let kept = self.files.get(&tgid).and_then(|files| files.cgroup.as_ref());
        let length = match kept.map(|file| read(file, &mut self.buffer)) {
            Some(Ok(length)) => length,
            // It asks for the first time, or has the number of one that has ended.
            Some(Err(_)) | None => {
                if self.files.len() >= PROCESSES {
                    self.files.clear();
                }
                self.files.insert(tgid, Files::open(&self.proc_root, tgid)?);
                let Some(file) = &self.files[&tgid].cgroup else { return Ok(None) };
                read(file, &mut self.buffer)?
            }
        };
        Ok(cgroup_of(&self.buffer[..length]))
    }

    /// Start and kind of the process.
    pub(super) fn life(&mut self, tgid: u32) -> io::Result<Life> {
        let files = self.files.get_mut(&tgid).ok_or(io::ErrorKind::NotFound)?;
        if let Some(life) = files.life {
            return Ok(life);
        }
        let stat = files.file("stat", OFlag::O_RDONLY)?.ok_or(io::ErrorKind::NotFound)?;
        let length = read(&File::from(stat), &mut self.buffer)?;
        let life = Life::parse(&self.buffer[..length])
            .ok_or_else(|| io::Error::other("/proc/PID/stat is not understood"))?;
        files.life = (!life.kernel_thread).then_some(life);
        Ok(life)
    }

    /// Its executable, by `O_PATH`, which asks no server and makes no event. `None`: it has none
    /// (any more). One that is gone is an error.
    pub(super) fn executable(&self, tgid: u32) -> io::Result<Option<OwnedFd>> {
        let files = self.files.get(&tgid).ok_or(io::ErrorKind::NotFound)?;
        files.file("exe", OFlag::O_PATH)
    }
}

/// Tells mount and inode of this thread's descriptors. The file that describes a number tells of
/// the descriptor that has the number when it is read.
#[derive(Debug)]
pub(super) struct Descriptions {
    files: Vec<Option<File>>,
    buffer: Vec<u8>,
}

impl Default for Descriptions {
    fn default() -> Self {
        Self { files: Vec::new(), buffer: vec![0; BUFFER] }
    }
}

impl Descriptions {
    /// Mount id and inode. Asks the filesystem for nothing.
    pub(super) fn of(&mut self, descriptor: &impl AsFd) -> io::Result<(u32, u64)> {
        let number = descriptor.as_fd().as_raw_fd();
        let open = || File::open(format!("/proc/thread-self/fdinfo/{number}"));
        let place = usize::try_from(number).unwrap_or(usize::MAX);
        let length = if place < DESCRIPTORS {
            if self.files.len() <= place {
                self.files.resize_with(place + 1, || None);
            }
            let file = match &mut self.files[place] {
                Some(file) => file,
                none => none.insert(open()?),
            };
            read(file, &mut self.buffer)?
        } else {
            read(&open()?, &mut self.buffer)?
        };
        described(&self.buffer[..length])
            .ok_or_else(|| io::Error::other("fdinfo has no mnt_id and ino"))
    }
}

/// Mount id and inode in the text of a file in `fdinfo`.
fn described(text: &[u8]) -> Option<(u32, u64)> {
    let (mut mount_id, mut ino) = (None, None);
    for line in text.split(|byte| *byte == b'\n') {
        if let Some(number) = line.strip_prefix(b"mnt_id:") {
            mount_id = Some(decimal(number)?.try_into().ok()?);
        } else if let Some(number) = line.strip_prefix(b"ino:") {
            ino = Some(decimal(number)?);
        }
    }
    mount_id.zip(ino)
}

/// A number behind blanks, with nothing else.
fn decimal(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii_start();
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    let add = |number: u64, byte| number.checked_mul(10)?.checked_add(digit(byte)?);
    if text.is_empty() { None } else { text.iter().try_fold(0, add) }
}

/// Reads all of a file that procfs makes up anew when it is read from its start; returns its
/// length.
fn read(file: &File, buffer: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        let count = file.read_at(buffer, 0)?;
        if count < buffer.len() {
            return Ok(count);
        }
        buffer.resize(2 * buffer.len(), 0);
    }
}

/// The cgroup of version 2 in `/proc/PID/cgroup`.
fn cgroup_of(text: &[u8]) -> Option<&Path> {
    let path = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::"))?;
    Some(Path::new(OsStr::from_bytes(path)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn sleeper() -> Child {
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn a_cgroup_of_version_2_is_found_among_others() {
        let cgroup = cgroup_of(b"1:cpu:/x\n0::/system.slice/incus.service\n");
        assert_eq!(cgroup, Some(Path::new("/system.slice/incus.service")));
        assert_eq!(cgroup_of(b"0::/\n"), Some(Path::new("/")));
        assert_eq!((cgroup_of(b"1:cpu:/0::/x\n"), cgroup_of(b"")), (None, None));
    }

    #[test]
    fn a_process_is_asked_again_and_again() {
        let (mut processes, own) = (Processes::new(Path::new("/proc")), std::process::id());
        let text = fs::read("/proc/self/cgroup").unwrap();
        let expected = cgroup_of(&text);
        for _ in 0..3 {
            assert_eq!(processes.cgroup(own).unwrap(), expected);
            let life = processes.life(own).unwrap();
            assert_eq!(Some(life), Life::parse(&fs::read("/proc/self/stat").unwrap()));
            assert!(!life.kernel_thread && life.start_boot_ns > 0);
            let executable = File::from(processes.executable(own).unwrap().unwrap());
            let (_, ino) = Descriptions::default().of(&executable).unwrap();
            assert_eq!(ino, fs::metadata("/proc/self/exe").unwrap().ino());
        }
        assert_eq!(processes.files.len(), 1);
    }

    #[test]
    fn what_is_kept_never_speaks_for_another_process_with_the_number() {
        let mut processes = Processes::new(Path::new("/proc"));
        let mut ended = sleeper();
        let number = ended.id();
        processes.cgroup(number).unwrap();
        ended.kill().unwrap();
        ended.wait().unwrap();
        assert!(processes.life(number).is_err() && processes.executable(number).is_err());
        // As if another had the number by now.
        let own = std::process::id();
        let files = processes.files.remove(&number).unwrap();
        processes.files.insert(own, Files { life: Some(Life::default()), ..files });
        processes.cgroup(own).unwrap();
        assert_ne!(processes.life(own).unwrap(), Life::default());
        let executable = File::from(processes.executable(own).unwrap().unwrap());
        assert_eq!(
            executable.metadata().unwrap().ino(),
            fs::metadata("/proc/self/exe").unwrap().ino()
        );
    }

    #[test]
    fn what_it_runs_is_looked_at_each_time() {
        let mut shell = Command::new("sh")
            .args(["-c", "read line; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut processes = Processes::new(Path::new("/proc"));
        let tgid = shell.id();
        let mut ino = || {
            processes.cgroup(tgid).unwrap();
            File::from(processes.executable(tgid).unwrap().unwrap()).metadata().unwrap().ino()
        };
        let before = ino();
        let mut input = shell.stdin.take().unwrap();
        io::Write::write_all(&mut input, b"\nx").unwrap();
        // `cat` has begun once it gives back its input.
        let mut output = [0];
        io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut output).unwrap();
        assert_ne!(ino(), before);
        drop(input);
        shell.wait().unwrap();
    }

    #[test]
    fn no_more_than_some_processes_are_kept() {
        let proc_root = tempfile::tempdir().unwrap();
        let mut processes = Processes::new(proc_root.path());
        for tgid in 0..=u32::try_from(PROCESSES).unwrap() {
            let directory = proc_root.path().join(tgid.to_string());
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("cgroup"), format!("0::/c{tgid}\n")).unwrap();
            assert_eq!(processes.cgroup(tgid).unwrap(), Some(Path::new(&format!("/c{tgid}"))));
        }
        assert_eq!(processes.files.len(), 1);
        assert!(processes.cgroup(9999).is_err(), "there is no such process");
    }

    #[test]
    fn a_descriptor_with_a_used_number_is_described_anew() {
        let mut descriptions = Descriptions::default();
        let mut descriptor = OwnedFd::from(File::open("/").unwrap());
        let mut mounts = Vec::new();
        for path in ["/", "/proc", "/"] {
            let file = File::open(path).unwrap();
            nix::unistd::dup2(&file, &mut descriptor).unwrap();
            let (mount, ino) = descriptions.of(&descriptor).unwrap();
            assert_eq!(ino, file.metadata().unwrap().ino(), "{path}");
            mounts.push(mount);
        }
        assert!(mounts[0] == mounts[2] && mounts[0] != mounts[1]);
    }

    #[test]
    fn the_text_of_a_descriptor_is_understood_or_refused() {
        let max = u64::MAX;
        for (text, expected) in [
            (
                "pos:\t0\nflags:\t012300000\nmnt_id:\t29\nino:\t1234567890123\n",
                Some((29, 1_234_567_890_123)),
            ),
            (&format!("ino:\t{max}\nmnt_id:\t{}\n", u32::MAX), Some((u32::MAX, max))),
            (&format!("ino:\t{max}0\nmnt_id:\t1\n"), None),
            ("mnt_id:\t4294967296\nino:\t1\n", None),
            ("mnt_id:\t29\n", None),
            ("ino:\t7\n", None),
            ("mnt_id:\t\nino:\t7\n", None),
            ("mnt_id:\t-1\nino:\t7\n", None),
            ("mnt_id:\t1 2\nino:\t7\n", None),
            ("", None),
        ] {
            assert_eq!(described(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn what_is_longer_than_the_buffer_is_read_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("long");
        for length in [0, 3, 4, 5, 100] {
            fs::write(&path, vec![b'x'; length]).unwrap();
            let mut buffer = vec![0; 4];
            assert_eq!(read(&File::open(&path).unwrap(), &mut buffer).unwrap(), length);
        }
    }
}
