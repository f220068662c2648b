//! The audit's daemon in small, with a rule as `auditctl -a always,exit -S unlink,…` makes it. A
//! process of its own: the kernel audits nothing that its daemon does.

use std::io::{self, IoSliceMut, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, recvmsg,
    sendto, socket,
};

const AUDIT_SET: u16 = 1001;
const AUDIT_ADD_RULE: u16 = 1011;
const AUDIT_DEL_RULE: u16 = 1012;
const MASK_WORDS: usize = 64;

/// Adds the rule, says `ready`, reads until standard input ends, removes the rule, and says how
/// much it has read.
pub fn serve() -> Result<()> {
    let socket = audit_socket()?;
    // Enabled, this process as the daemon, and room for messages that it has not yet read.
    let (enabled, daemon, backlog) = (1, 4, 16);
    audit_status(&socket, enabled | daemon | backlog, 1, std::process::id())?;
    let rule = rule();
    request(&socket, AUDIT_ADD_RULE, &rule)?;
    let mut output = io::stdout();
    writeln!(output, "ready")?;
    let input = io::stdin();
    let (mut buffer, mut count) = (vec![0; 16 * 1024], 0_u64);
    loop {
        let mut waited =
            [&socket.as_fd(), &input.as_fd()].map(|one| PollFd::new(*one, PollFlags::POLLIN));
        poll(&mut waited, PollTimeout::NONE).context("wait for events")?;
        if waited[0].any() == Some(true) {
            recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).context("read the audit")?;
            count += 1;
        } else if waited[1].any() == Some(true) {
            break;
        }
    }
    request(&socket, AUDIT_DEL_RULE, &rule)?;
    audit_status(&socket, enabled | daemon, 0, 0)?;
    writeln!(output, "{count}")?;
    Ok(())
}

fn audit_socket() -> Result<OwnedFd> {
    let kind = (AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC);
    let socket = socket(kind.0, kind.1, kind.2, Some(SockProtocol::NetlinkAudit))
        .context("open an audit socket")?;
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
