//! A process that makes one system call at a time, as it is told over a socket: who it is (its
//! executable, its cgroup) and what it does are apart. It can also hand out a descriptor that it
//! has opened.

use std::ffi::{CString, c_char};
use std::fs::File;
use std::io::{BufRead as _, BufReader, IoSlice, IoSliceMut, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::{calls, uring};

/// The process. It is killed when dropped.
#[derive(Debug)]
pub struct Obedient {
    child: Child,
    socket: UnixStream,
}

impl Obedient {
    /// Starts it from this file, which has to be a copy of the running program.
    pub fn start(program: &Path) -> Result<Self> {
        let (socket, other) = UnixStream::pair().context("make a pair of sockets")?;
        let mut command = Command::new(program);
        command.args(["peer", "obey"]).stdin(Stdio::from(OwnedFd::from(other)));
        let child = command.spawn().with_context(|| format!("start {}", program.display()))?;
        Ok(Self { child, socket })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it unlink a name, by its path.
    pub fn unlink(&mut self, path: &Path) -> Result<std::io::Result<()>> {
        self.begin("unlink", path)?;
        self.outcome()
    }

    /// Has it truncate a file, by its path.
    pub fn truncate(&mut self, path: &Path) -> Result<std::io::Result<()>> {
        self.begin("truncate", path)?;
        self.outcome()
    }

    /// Has it open a file for writing, or a directory, and send the descriptor.
    pub fn open(&mut self, path: &Path) -> Result<File> {
        self.begin("open", path)?;
        let mut byte = [0];
        let mut buffer = nix::cmsg_space!(RawFd);
        let mut parts = [IoSliceMut::new(&mut byte)];
        let message = recvmsg::<()>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut buffer),
            MsgFlags::empty(),
        )
        .context("receive a descriptor")?;
        for part in message.cmsgs().context("read the control message")? {
            if let ControlMessageOwned::ScmRights(descriptors) = part
                && let [descriptor] = descriptors[..]
            {
                // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
                return Ok(File::from(unsafe { OwnedFd::from_raw_fd(descriptor) }));
            }
        }
        bail!("it sent no descriptor of {}", path.display())
    }

    /// Has it make an io_uring, `polled` or not, and put this path into its memory. Returns the
    /// ring, which is taken out of it (the kernel sends no rings over sockets), and where the path
    /// is there.
    pub fn ring(&mut self, polled: bool, path: &Path) -> Result<(OwnedFd, *const c_char)> {
        self.begin(if polled { "polled-ring" } else { "ring" }, path)?;
        let mut line = String::new();
        BufReader::new(&self.socket).read_line(&mut line).context("wait for a ring")?;
        let (ring, address) =
            line.trim().split_once(' ').with_context(|| format!("it said {line:?}"))?;
        let ring = calls::descriptor_of(self.pid(), ring.parse().context("the ring's number")?);
        let address: usize = address.parse().context("the path's address")?;
        Ok((ring.context("take a ring out of its process")?, address as *const c_char))
    }

    /// Gives an order whose outcome is asked for later.
    pub fn begin(&mut self, verb: &str, path: &Path) -> Result<()> {
        writeln!(self.socket, "{verb} {}", path.display()).context("give an order")
    }

    /// Outcome of the last order.
    pub fn outcome(&mut self) -> Result<std::io::Result<()>> {
        let mut line = String::new();
        BufReader::new(&self.socket).read_line(&mut line).context("wait for it to obey")?;
        let number: i32 = line.trim().parse().with_context(|| format!("it said {line:?}"))?;
        Ok(if number == 0 { Ok(()) } else { Err(Errno::from_raw(number).into()) })
    }
}

impl Drop for Obedient {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other side: takes orders on standard input, which is a socket, until that is closed.
pub fn obey() -> Result<()> {
    // SAFETY: standard input is open, and nothing else here uses it.
    let mut socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(0) });
    // They live as long as this process.
    let mut rings = Vec::new();
    for line in BufReader::new(socket.try_clone().context("copy the socket")?).lines() {
        let line = line.context("read an order")?;
        let (verb, path) = line.split_once(' ').context("an order without a path")?;
        let outcome = match verb {
            "unlink" => nix::unistd::unlink(path),
            "truncate" => nix::unistd::truncate(path, 0),
            "open" => {
                send(&socket, path)?;
                continue;
            }
            "ring" | "polled-ring" => {
                let ring =
                    uring::for_another(verb == "polled-ring").context("set up an io_uring")?;
                let name = CString::new(path)?;
                writeln!(socket, "{} {}", ring.as_raw_fd(), name.as_ptr() as usize)
                    .context("answer")?;
                rings.push((ring, name));
                continue;
            }
            _ => bail!("unknown order {verb}"),
        };
        writeln!(socket, "{}", outcome.map_or_else(|errno| errno as i32, |()| 0))
            .context("answer")?;
    }
    Ok(())
}

fn send(socket: &UnixStream, path: &str) -> Result<()> {
    let is_directory = Path::new(path).is_dir();
    let file = File::options().read(true).write(!is_directory).open(path);
    let file = file.with_context(|| format!("open {path}"))?;
    let descriptors = [file.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let sent =
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None);
    ensure!(sent.context("send a descriptor")? == 1, "nothing was sent");
    Ok(())
}
