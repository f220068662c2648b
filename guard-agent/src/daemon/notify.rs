//! Tells systemd how the agent is. Never waits for it: the socket's queue is shared by all services
//! of the host, and a manager that reads none of it must not keep the owner of the state from its
//! work.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;
use std::{env, io};

/// Bytes of a status line that are sent; `systemctl status` shows a long one over several lines.
const LONGEST: usize = 500;
/// Longest time for a message that is sent only once. Losing `READY=1` would end the agent.
const SYSTEMD_TIMEOUT: Duration = Duration::from_secs(5);

/// The service manager's socket, if there is one.
#[derive(Debug)]
pub(super) struct Notify {
    manager: Option<SocketAddr>,
    /// systemd wants to hear from the agent regularly.
    watchdog: bool,
}

impl Notify {
    /// From `NOTIFY_SOCKET` and `WATCHDOG_USEC`.
    pub(super) fn from_environment() -> Self {
        let manager = env::var_os("NOTIFY_SOCKET").and_then(|path| {
            address(&path)
                .inspect_err(|error| tracing::warn!(?path, %error, "NOTIFY_SOCKET is no address"))
                .ok()
        });
        Self { manager, watchdog: env::var_os("WATCHDOG_USEC").is_some() }
    }

    pub(super) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\n{}", status_line(status)), Some(SYSTEMD_TIMEOUT));
    }

    pub(super) fn stopping(&self, status: &str) {
        self.tell(&format!("STOPPING=1\n{}", status_line(status)), Some(SYSTEMD_TIMEOUT));
    }

    /// The agent's status, for `systemctl status`.
    pub(super) fn status(&self, text: &str) {
        self.tell(&status_line(text), None);
    }

    /// A message that finds the queue full is left out: the next one will do.
    pub(super) fn alive(&self) {
        if self.watchdog {
            self.tell("WATCHDOG=1\n", None);
        }
    }

    fn tell(&self, message: &str, patience: Option<Duration>) {
        let Some(manager) = &self.manager else { return };
        match send(manager, message, patience) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tracing::warn!(message = message.trim(), "systemd does not read its notifications");
            }
            Err(error) => tracing::warn!(message = message.trim(), %error, "systemd was not \
                                                                            notified"),
            Ok(()) => {}
        }
    }
}

/// One line: a line feed would begin another variable.
fn status_line(text: &str) -> String {
    let text: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = text.join("; ").replace(":; ", ": ");
    let end = text.floor_char_boundary(LONGEST);
    format!("STATUS={}{}\n", &text[..end], if end < text.len() { "…" } else { "" })
}

/// A path, or an abstract name behind `@`.
fn address(path: &OsString) -> io::Result<SocketAddr> {
    match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(path),
    }
}

fn send(manager: &SocketAddr, message: &str, patience: Option<Duration>) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    match patience {
        Some(_) => socket.set_write_timeout(patience)?,
        None => socket.set_nonblocking(true)?,
    }
    socket.send_to_addr(message.as_bytes(), manager).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The agent once hung when nobody read its messages, one a second (seen on CephFS in the VM).
    #[test]
    fn a_manager_that_does_not_read_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notify =
            Notify { manager: Some(SocketAddr::from_pathname(&path).unwrap()), watchdog: true };
        let queue_is_full = |_: &u32| {
            let sent = send(notify.manager.as_ref().unwrap(), "WATCHDOG=1\n", None);
            sent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        assert!((0..100_000).find(queue_is_full).is_some(), "the queue never fills");
        notify.alive();
        let mut message = [0; 64];
        let size = manager.recv(&mut message).unwrap();
        assert_eq!(&message[..size], b"WATCHDOG=1\n");
    }

    #[test]
    fn a_status_is_one_line_of_bounded_length() {
        assert_eq!(status_line("a:\n  b\n\nREADY=1"), "STATUS=a: b; READY=1\n");
        let long = status_line(&"ä".repeat(LONGEST));
        assert!(long.len() <= LONGEST + 16 && long.ends_with("…\n"), "{long}");
    }

    #[test]
    fn without_a_manager_nothing_is_sent() {
        let notify = Notify { manager: None, watchdog: true };
        notify.ready("enforcing");
        notify.alive();
        assert!(address(&OsString::from("@/org/manager")).unwrap().as_abstract_name().is_some());
    }
}
