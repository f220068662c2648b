//! Tools that a user would pick instead of us, each with a reader of its events, as their daemons
//! do.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::RingBuf;
use aya::programs::Lsm;
use aya::{Btf, Ebpf, EbpfLoader};
use guard_agent::host::bpf::object::with_offsets;
use guard_agent::host::bpf::{btf, offsets};
use guard_common::Tier;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::harness::command;

/// Loads and attaches an LSM program of an object that the environment names.
fn attach(ebpf: &mut Ebpf, program: &str, hook: &str, btf: &Btf) -> Result<()> {
    let found = ebpf
        .program_mut(program)
        .with_context(|| format!("the object has no program {program}"))?;
    let lsm: &mut Lsm = found.try_into()?;
    lsm.load(hook, btf).with_context(|| format!("load {program}"))?;
    lsm.attach().with_context(|| format!("attach {program}"))?;
    Ok(())
}

fn object(variable: &str) -> Result<std::path::PathBuf> {
    crate::harness::agent::binary(variable)
}

/// Programs on the busiest hooks that do nothing. Detached when dropped.
#[derive(Debug)]
pub(super) struct Empty(#[expect(dead_code, reason = "held, not read")] Ebpf);

impl Empty {
    pub(super) fn load() -> Result<Self> {
        let mut ebpf =
            Ebpf::load_file(object("GUARD_EMPTY_OBJECT")?).context("load the empty programs")?;
        let btf = Btf::from_sys_fs()?;
        for hook in ["path_unlink", "inode_unlink"] {
            attach(&mut ebpf, &format!("empty_{hook}"), hook, &btf)?;
        }
        Ok(Self(ebpf))
    }
}

/// A thread that takes events until it is told to end. It counts them: a peer that tells nothing is
/// none.
struct Reader {
    ends: Arc<AtomicBool>,
    events: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Reader {
    /// `take` waits a little for events and returns their number.
    fn start(mut take: impl FnMut() -> Result<u64> + Send + 'static) -> Result<Self> {
        let (ends, events) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (end, count) = (Arc::clone(&ends), Arc::clone(&events));
        let work = move || {
            while !end.load(Ordering::Relaxed) {
                count.fetch_add(take()?, Ordering::Relaxed);
            }
            Ok(())
        };
        let thread = thread::Builder::new()
            .name("reader".to_owned())
            .spawn(work)
            .context("start a thread")?;
        Ok(Self { ends, events, thread })
    }

    /// Ends it; it must have seen something.
    fn end(self, what: &str) -> Result<()> {
        self.ends.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        ended.map_err(|_| anyhow!("the reader of {what} panicked"))??;
        ensure!(self.events.load(Ordering::Relaxed) > 0, "{what} told nothing");
        Ok(())
    }
}

/// Time that a reader waits before it looks whether it shall end.
const BEAT: u16 = 100;

fn is_ready(descriptor: &impl AsFd) -> Result<bool> {
    let mut waited = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut waited, PollTimeout::from(BEAT)).context("wait for events")? > 0)
}

/// A small program in the manner of popular monitors: for each unlink it resolves the path and
/// sends it.
pub(super) struct Monitor {
    _ebpf: Ebpf,
    reader: Reader,
}

impl Monitor {
    pub(super) fn load() -> Result<Self> {
        let raw = std::fs::read("/sys/kernel/btf/vmlinux").context("read the kernel's BTF")?;
        let offsets = offsets::resolve(&btf::Btf::parse(&raw)?, Tier::BpfLsm)?;
        let path = object("GUARD_MONITOR_OBJECT")?;
        let built = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let fitted = with_offsets(&built, &offsets)?;
        let mut loader = EbpfLoader::new();
        let mut ebpf =
            loader.btf(None).load(&fitted).with_context(|| format!("load {}", path.display()))?;
        attach(&mut ebpf, "monitor_path_unlink", "path_unlink", &Btf::from_sys_fs()?)?;
        let map = ebpf.take_map("MONITORED").context("the monitor has no ring buffer")?;
        let mut ring = RingBuf::try_from(map)?;
        let reader = Reader::start(move || {
            let mut count = 0;
            if is_ready(&ring)? {
                while ring.next().is_some() {
                    count += 1;
                }
            }
            Ok(count)
        })?;
        Ok(Self { _ebpf: ebpf, reader })
    }

    pub(super) fn end(self) -> Result<()> {
        self.reader.end("the monitor")
    }
}

/// fanotify on whole filesystems, with the names of deleted files.
pub(super) struct Fanotify(Reader);

impl Fanotify {
    pub(super) fn watch(places: &[&Path]) -> Result<Self> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_UNLIMITED_QUEUE
            | libc::FAN_REPORT_DFID_NAME;
        // SAFETY: takes no pointers.
        let made = unsafe { libc::fanotify_init(flags, libc::O_RDONLY as u32) };
        ensure!(made >= 0, "fanotify_init: {}", io::Error::last_os_error());
        // SAFETY: a new descriptor that nobody else owns.
        let group = unsafe { OwnedFd::from_raw_fd(made) };
        for place in places {
            let directory =
                File::open(place).with_context(|| format!("open {}", place.display()))?;
            let (how, what) = (
                libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM,
                libc::FAN_DELETE | libc::FAN_ONDIR,
            );
            // SAFETY: no path is given, so that the directory's descriptor itself is marked.
            let marked = unsafe {
                libc::fanotify_mark(
                    group.as_raw_fd(),
                    how,
                    what,
                    directory.as_raw_fd(),
                    std::ptr::null(),
                )
            };
            ensure!(
                marked == 0,
                "fanotify_mark {}: {}",
                place.display(),
                io::Error::last_os_error()
            );
        }
        let mut group = File::from(group);
        let mut buffer = vec![0; 64 * 1024];
        let reader = Reader::start(move || {
            let waiting = OwnedFd::from(group.try_clone()?);
            Ok(if is_ready(&waiting)? {
                group.read(&mut buffer).context("read events")? as u64
            } else {
                0
            })
        })?;
        Ok(Self(reader))
    }

    pub(super) fn end(self) -> Result<()> {
        self.0.end("fanotify")
    }
}

/// An AppArmor profile that keeps everything from being deleted below the guarded root, as one
/// writes it by hand. Loaded until the machine is off: only a confined process has the cost.
pub(super) struct Profile;

impl Profile {
    const NAME: &str = "guard-bench";

    pub(super) fn load(root: &str) -> Result<Self> {
        let text = format!(
            "profile {} {{\n  capability,\n  ptrace,\n  signal,\n  unix,\n  network,\n  / r,\n  \
             /** rwlkm,\n  deny {root}/** w,\n}}\n",
            Self::NAME
        );
        let path = "/run/guard-bench.apparmor";
        std::fs::write(path, text).with_context(|| format!("write {path}"))?;
        command::run("apparmor_parser", &["--replace", "--skip-cache", path])?;
        Ok(Self)
    }

    /// Runs `work` in a thread that wears the profile, as do the threads that it starts.
    pub(super) fn worn<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let done = thread::scope(|scope| {
            let wearer = scope.spawn(|| {
                let attribute = "/proc/thread-self/attr/apparmor/current";
                std::fs::write(attribute, format!("changeprofile {}", Self::NAME))
                    .with_context(|| format!("put on the AppArmor profile through {attribute}"))?;
                work()
            });
            wearer.join()
        });
        done.map_err(|_| anyhow!("the thread with the profile panicked"))?
    }
}

/// A rule of the kernel's audit, with a daemon that reads its messages.
pub(super) struct AuditRule {
    daemon: Child,
    output: BufReader<ChildStdout>,
}

impl AuditRule {
    pub(super) fn add() -> Result<Self> {
        let program = std::env::current_exe().context("where is this program?")?;
        let mut command = Command::new(program);
        command.args(["peer", "auditd"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut daemon = command.spawn().context("start the audit's daemon")?;
        let output = daemon.stdout.take().context("the audit's daemon has no output")?;
        let mut rule = Self { daemon, output: BufReader::new(output) };
        let line = rule.line()?;
        ensure!(line == "ready", "the audit's daemon said {line:?}");
        Ok(rule)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("read from the audit's daemon")?;
        Ok(line.trim_end().to_owned())
    }

    pub(super) fn remove(mut self) -> Result<()> {
        drop(self.daemon.stdin.take());
        let read: u64 = self.line()?.parse().context("the audit's daemon told no number")?;
        let status = self.daemon.wait().context("wait for the audit's daemon")?;
        ensure!(status.success(), "the audit's daemon ended with {status}");
        ensure!(read > 0, "the audit rule told nothing");
        Ok(())
    }
}
