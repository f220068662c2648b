//! What a user would pick instead of us, each with a reader that takes what it tells, as their daemons do.

use std::fs::File;
use std::io::{self, IoSliceMut, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, ensure};
use aya::maps::RingBuf;
use aya::programs::Lsm;
use aya::{Btf, Ebpf, EbpfLoader};
use guard_agent::bpf::{btf, offsets};
use guard_common::names::global;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, recvmsg, sendto,
    socket,
};

/// Loads and attaches an LSM program of an object that the environment names.
fn attach(ebpf: &mut Ebpf, program: &str, hook: &str, btf: &Btf) -> Result<()> {
    let found = ebpf.program_mut(program).with_context(|| format!("the object has no program {program}"))?;
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
pub struct Empty(#[expect(dead_code, reason = "held, not read")] Ebpf);

impl Empty {
    pub fn load() -> Result<Self> {
        let mut ebpf = Ebpf::load_file(object("GUARD_EMPTY_OBJECT")?).context("load the empty programs")?;
        let btf = Btf::from_sys_fs()?;
        for hook in ["path_unlink", "inode_unlink"] {
            attach(&mut ebpf, &format!("empty_{hook}"), hook, &btf)?;
        }
        Ok(Self(ebpf))
    }
}

/// A thread that takes events until it is told to end. It counts them: a peer that tells nothing is none.
struct Reader {
    ends: Arc<AtomicBool>,
    events: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Reader {
    /// `take` waits a little for events and returns how many there were.
    fn start(mut take: impl FnMut() -> Result<u64> + Send + 'static) -> Result<Self> {
        let (ends, events) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (end, count) = (Arc::clone(&ends), Arc::clone(&events));
        let work = move || {
            while !end.load(Ordering::Relaxed) {
                count.fetch_add(take()?, Ordering::Relaxed);
            }
            Ok(())
        };
        let thread =
            thread::Builder::new().name("reader".to_owned()).spawn(work).context("start a thread")?;
        Ok(Self { ends, events, thread })
    }

    /// Ends it; it must have seen something.
    fn end(self, what: &str) -> Result<()> {
        self.ends.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        ended.map_err(|_| anyhow::anyhow!("the reader of {what} panicked"))??;
        ensure!(self.events.load(Ordering::Relaxed) > 0, "{what} told nothing");
        Ok(())
    }
}

/// How long a reader waits before it looks whether it shall end.
const BEAT: u16 = 100;

fn is_ready(descriptor: &impl AsFd) -> Result<bool> {
    let mut waited = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut waited, PollTimeout::from(BEAT)).context("wait for events")? > 0)
}

/// A small program in the manner of popular monitors: for each unlink it resolves the path and sends it.
pub struct Monitor {
    _ebpf: Ebpf,
    reader: Reader,
}

impl Monitor {
    pub fn load() -> Result<Self> {
        let raw = std::fs::read("/sys/kernel/btf/vmlinux").context("read the kernel's BTF")?;
        let offsets = offsets::resolve(&btf::Btf::parse(&raw)?)?;
        let path = object("GUARD_MONITOR_OBJECT")?;
        let mut loader = EbpfLoader::new();
        loader.btf(None).override_global(global::OFFSETS, &offsets, true);
        let mut ebpf = loader.load_file(&path).with_context(|| format!("load {}", path.display()))?;
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

    pub fn end(self) -> Result<()> {
        self.reader.end("the monitor")
    }
}

/// fanotify on whole filesystems, with the names of what is deleted.
pub struct Fanotify(Reader);

impl Fanotify {
    pub fn watch(places: &[&Path]) -> Result<Self> {
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
            let directory = File::open(place).with_context(|| format!("open {}", place.display()))?;
            let (how, what) =
                (libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM, libc::FAN_DELETE | libc::FAN_ONDIR);
            // SAFETY: no path is given, so that the directory's descriptor itself is marked.
            let marked = unsafe {
                libc::fanotify_mark(group.as_raw_fd(), how, what, directory.as_raw_fd(), std::ptr::null())
            };
            ensure!(marked == 0, "fanotify_mark {}: {}", place.display(), io::Error::last_os_error());
        }
        let mut group = File::from(group);
        let mut buffer = vec![0; 64 * 1024];
        let reader = Reader::start(move || {
            let waiting = OwnedFd::from(group.try_clone()?);
            Ok(if is_ready(&waiting)? { group.read(&mut buffer).context("read events")? as u64 } else { 0 })
        })?;
        Ok(Self(reader))
    }

    pub fn end(self) -> Result<()> {
        self.0.end("fanotify")
    }
}

/// A rule of the kernel's audit, as `auditctl -a always,exit -S unlink,…` makes it, with this process as auditd.
pub struct AuditRule {
    reader: Reader,
    rule: Vec<u8>,
}

const AUDIT_SET: u16 = 1001;
const AUDIT_ADD_RULE: u16 = 1011;
const AUDIT_DEL_RULE: u16 = 1012;
const MASK_WORDS: usize = 64;

impl AuditRule {
    pub fn add() -> Result<Self> {
        let socket = audit_socket()?;
        // Enabled, this process as the daemon, and room for what it has not yet read.
        let (enabled, daemon, backlog) = (1, 4, 16);
        audit_status(&socket, enabled | daemon | backlog, 1, std::process::id())?;
        let rule = rule();
        request(&socket, AUDIT_ADD_RULE, &rule)?;
        let mut buffer = vec![0; 16 * 1024];
        let reader = Reader::start(move || {
            if !is_ready(&socket)? {
                return Ok(0);
            }
            let size = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).context("read the audit")?;
            Ok(u64::from(size > 0))
        })?;
        Ok(Self { reader, rule })
    }

    pub fn remove(self) -> Result<()> {
        self.reader.end("the audit rule")?;
        let socket = audit_socket()?;
        request(&socket, AUDIT_DEL_RULE, &self.rule)?;
        audit_status(&socket, 1, 0, 0)
    }
}

fn audit_socket() -> Result<OwnedFd> {
    let kind = (AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC);
    let socket =
        socket(kind.0, kind.1, kind.2, Some(SockProtocol::NetlinkAudit)).context("open an audit socket")?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).context("bind the audit socket")?;
    Ok(socket)
}

/// `struct audit_status`.
fn audit_status(socket: &OwnedFd, mask: u32, enabled: u32, pid: u32) -> Result<()> {
    let backlog_limit = 65_536;
    let words = [mask, enabled, 0, pid, 0, backlog_limit, 0, 0, 0, 0, 0];
    request(socket, AUDIT_SET, &bytes(&words))
}

/// `struct audit_rule_data`: always, at a call's exit, for the calls that remove a name.
fn rule() -> Vec<u8> {
    const AUDIT_FILTER_EXIT: u32 = 4;
    const AUDIT_ALWAYS: u32 = 2;
    const AUDIT_ARCH: u32 = 11;
    const ARCH_X86_64: u32 = 0xc000_003e;
    const EQUAL: u32 = 0x4000_0000;
    const FIELDS: usize = 64;
    let calls = [
        libc::SYS_unlink,
        libc::SYS_unlinkat,
        libc::SYS_rmdir,
        libc::SYS_rename,
        libc::SYS_renameat,
        libc::SYS_renameat2,
    ];
    let mut mask = [0_u32; MASK_WORDS];
    for call in calls {
        mask[call as usize / 32] |= 1 << (call % 32);
    }
    let one = |first: u32| {
        let mut all = [0; FIELDS];
        all[0] = first;
        all
    };
    let mut words = vec![AUDIT_FILTER_EXIT, AUDIT_ALWAYS, 1];
    words.extend(mask);
    for field in [AUDIT_ARCH, ARCH_X86_64, EQUAL] {
        words.extend(one(field));
    }
    // No text follows.
    words.push(0);
    bytes(&words)
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Sends a request, and reads messages until its answer.
fn request(socket: &OwnedFd, kind: u16, payload: &[u8]) -> Result<()> {
    const HEADER: usize = 16;
    let (request, acknowledge) = (1_u16, 4_u16);
    let mut message = Vec::new();
    message.extend(u32::try_from(HEADER + payload.len())?.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((request | acknowledge).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(payload);
    sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())
        .with_context(|| format!("send the audit request {kind}"))?;
    loop {
        let mut buffer = [0; 16 * 1024];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let size = recvmsg::<()>(socket.as_raw_fd(), &mut parts, None, MsgFlags::empty())
            .with_context(|| format!("read the answer to the audit request {kind}"))?
            .bytes;
        let answer = &buffer[..size];
        if answer.get(4..6) == Some(&u16::to_ne_bytes(libc::NLMSG_ERROR as u16)) {
            let code = answer.get(HEADER..HEADER + 4).and_then(|four| four.try_into().ok());
            let code = i32::from_ne_bytes(code.context("the audit's answer is cut short")?);
            ensure!(code == 0, "audit request {kind}: {}", io::Error::from_raw_os_error(-code));
            return Ok(());
        }
    }
}
