//! The kernel's NFS server and a client of it in this machine, without the programs around them:
//! the messages of exportfs and mountd to the kernel are written here, once.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::harness::command;
use crate::harness::mount::Mount;

const CONTROL: &str = "/proc/fs/nfsd";
const CACHES: &str = "/proc/net/rpc";
/// The kernel's own directory of clients, if it keeps one.
const CLIENTS: &str = "/var/lib/nfs/v4recovery";
/// The shortest that the kernel takes.
const SECONDS: &str = "10";
/// NFSEXP_INSECURE_PORT, ASYNC, NOSUBTREECHECK, FSID: root is root, anybody's port will do.
const FLAGS: u32 = 0x2 | 0x10 | 0x400 | 0x2000;
/// Never.
const EXPIRY: u32 = i32::MAX as u32;

/// The server, with one directory exported to this machine. It ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    _control: Mount,
}

impl Server {
    /// Exports the root of a mount.
    pub fn start(export: &Path) -> Result<Self> {
        for module in ["nfsd", "nfsv4"] {
            command::run("modprobe", &[module]).context("the kernel's NFS server and client")?;
        }
        let server = Self {
            _control: Mount::new("nfsd", "nfsd", CONTROL, "")
                .context("mount the server's controls")?,
        };
        // Version 3 would look for a portmapper.
        tell("versions", "-2 -3 +4 +4.1 +4.2")?;
        let export = export.display();
        cache("auth.unix.ip", &format!("nfsd 127.0.0.1 {EXPIRY} here"))?;
        cache("nfsd.export", &format!("here {export} {EXPIRY} {FLAGS} 65534 65534 0"))?;
        // By number, 0: the root of this server's tree.
        cache("nfsd.fh", &format!("here 1 \\x00000000 {EXPIRY} {export}"))?;
        tell("nfsv4leasetime", SECONDS)?;
        tell("nfsv4gracetime", SECONDS)?;
        fs::create_dir_all(CLIENTS).with_context(|| format!("create {CLIENTS}"))?;
        tell("portlist", "tcp 2049")?;
        tell("threads", "2")?;
        // Nobody has been here before who could claim anything back. Kernels that keep no directory
        // of clients cannot be told so: they deny nothing either, but make the first deletion wait.
        let _ = tell("v4_end_grace", "Y");
        Ok(server)
    }

    /// Mounts a directory of its export, by NFS 4.2. It must be unmounted while the server lives.
    pub fn mount(&self, directory: &str, place: &Path) -> Result<Mount> {
        let options = "vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1,sec=sys,lookupcache=none,noac";
        let client = Mount::new("nfs4", &format!("127.0.0.1:/{directory}"), place, options);
        client.map_err(|error| error.context(command::run("dmesg", &[]).unwrap_or_default()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        stop();
    }
}

/// The server, and all that it exports mounted. Both end when this is dropped.
#[derive(Debug)]
pub struct Exported {
    client: Mount,
    _server: Server,
}

impl Exported {
    /// Exports the root of a mount, and mounts it at `place`.
    pub fn new(export: &Path, place: &Path) -> Result<Self> {
        let server = Server::start(export)?;
        Ok(Self { client: server.mount("", place)?, _server: server })
    }

    /// Path of the client's mount.
    pub fn path(&self) -> &Path {
        self.client.path()
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        // While the server still answers.
        let _ = self.client.unmount();
    }
}

/// Best effort: the exported mount is let go of.
fn stop() {
    let _ = tell("threads", "0");
    for name in ["nfsd.fh", "nfsd.export", "auth.unix.ip"] {
        let _ = fs::write(format!("{CACHES}/{name}/flush"), format!("{EXPIRY}\n"));
    }
}

fn tell(file: &str, text: &str) -> Result<()> {
    let path = format!("{CONTROL}/{file}");
    fs::write(&path, format!("{text}\n")).with_context(|| format!("write {text:?} to {path}"))
}

fn cache(name: &str, line: &str) -> Result<()> {
    let path = format!("{CACHES}/{name}/channel");
    fs::write(&path, format!("{line}\n")).with_context(|| format!("write {line:?} to {path}"))
}
