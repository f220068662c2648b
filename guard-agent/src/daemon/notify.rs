//! Tells systemd how the agent is doing, as sd_notify(3) describes.
//!
//! It never waits: a manager that does not read its socket must not stop the one task that owns
//! everything. What could not be sent is left out, except for `READY=1`, which is said again later.

use std::env;
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The socket that the environment names; without one, nobody listens and nothing is sent.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    owes_ready: bool,
}

impl Notifier {
    /// The one in `NOTIFY_SOCKET`.
    pub fn from_environment() -> io::Result<Self> {
        match env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) {
            Some(name) => Self::new(&name),
            None => Ok(Self::default()),
        }
    }

    fn new(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: Some((socket, address)), owes_ready: false })
    }

    /// The start is over.
    pub fn ready(&mut self) {
        self.owes_ready = !self.send("READY=1");
    }

    /// There is progress.
    pub fn watchdog(&mut self) {
        if self.owes_ready {
            self.ready();
        }
        self.send("WATCHDOG=1");
    }

    /// The end begins.
    pub fn stopping(&mut self) {
        self.send("STOPPING=1");
    }

    /// Whether nothing is left to say.
    fn send(&self, message: &str) -> bool {
        let Some((socket, address)) = &self.socket else { return true };
        match socket.send_to_addr(message.as_bytes(), address) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => {
                tracing::warn!(%error, message, "systemd was not notified");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(manager: &UnixDatagram) -> String {
        let mut message = [0; 64];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    }

    #[test]
    fn a_manager_that_does_not_read_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut notifier = Notifier::new(path.as_os_str()).unwrap();
        // More than any host's net.unix.max_dgram_qlen: a blocking send would never return.
        let sent = (0..100_000).take_while(|_| notifier.send("WATCHDOG=1")).count();
        notifier.ready();
        assert!(notifier.owes_ready);
        for _ in 0..sent {
            assert_eq!(next(&manager), "WATCHDOG=1");
        }
        notifier.watchdog();
        assert_eq!((next(&manager), next(&manager)), ("READY=1".to_owned(), "WATCHDOG=1".to_owned()));
        assert!(!notifier.owes_ready);
    }

    #[test]
    fn nobody_listens_without_systemd() {
        let mut notifier = Notifier::default();
        notifier.ready();
        assert!(!notifier.owes_ready);
    }
}
