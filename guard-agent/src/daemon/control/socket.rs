//! Puts the control socket in its place: never visible with a wrong mode, never over a living
//! agent.
//!
//! It is bound in a private directory, gets mode and group there, and is renamed to its name. That
//! replaces a dead agent's socket in one step and does not touch the process's umask.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, geteuid};

use crate::host::paths::SOCKET_NAME;

/// Why the socket is not in its place.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another agent answers on {path}")]
    InUse { path: PathBuf },
    #[error("{path} exists and is not a socket")]
    NotASocket { path: PathBuf },
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

/// The listening socket; its name goes away with it, if it is still its own.
#[derive(Debug)]
pub struct Bound {
    pub listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
}

impl Bound {
    /// Path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let is_own =
            fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity);
        if is_own && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "control socket: not removed");
        }
    }
}

/// Binds the control socket in `run_dir` (mode 0660, group `group`), which is created if need be
/// (0750).
pub fn bind(run_dir: &Path, group: Option<Gid>) -> Result<Bound, SocketError> {
    prepare_directory(run_dir, group)?;
    let path = run_dir.join(SOCKET_NAME);
    refuse_if_taken(&path)?;
    let private = run_dir.join(format!(".{SOCKET_NAME}.{}", std::process::id()));
    let bound = bind_privately(&private, &path, group);
    // Empty after the rename. Left behind after a failure, it is reused by nobody and reachable by
    // nobody.
    let _ = fs::remove_dir_all(&private);
    bound
}

fn bind_privately(private: &Path, path: &Path, group: Option<Gid>) -> Result<Bound, SocketError> {
    match fs::remove_dir_all(private) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", private)(error));
        }
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(private).map_err(failed("create", private))?;
    let name = private.join("s");
    let listener = UnixListener::bind(&name).map_err(failed("bind", &name))?;
    if let Some(group) = group.filter(|_| geteuid().is_root()) {
        chown(&name, None, Some(group.as_raw())).map_err(failed("change the group of", &name))?;
    }
    fs::set_permissions(&name, Permissions::from_mode(0o660))
        .map_err(failed("change the mode of", &name))?;
    listener.set_nonblocking(true).map_err(failed("make non-blocking", &name))?;
    let identity = identity(&fs::symlink_metadata(&name).map_err(failed("look at", &name))?);
    fs::rename(&name, path).map_err(failed("rename the new socket to", path))?;
    Ok(Bound { listener, path: path.to_owned(), identity })
}

/// Creates the directory. One that is there already (of an earlier agent, say) is only opened to
/// the group, and only if it is private to us.
fn prepare_directory(run_dir: &Path, group: Option<Gid>) -> Result<(), SocketError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o750).create(run_dir).map_err(failed("create", run_dir))?;
    let Some(group) = group.filter(|_| geteuid().is_root()) else { return Ok(()) };
    let found = fs::metadata(run_dir).map_err(failed("look at", run_dir))?;
    if found.uid() == 0 && found.gid() == 0 && found.mode() & 0o7777 == 0o750 {
        chown(run_dir, None, Some(group.as_raw()))
            .map_err(failed("change the group of", run_dir))?;
    }
    Ok(())
}

/// Only a socket that nobody listens on may be replaced.
fn refuse_if_taken(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", path)(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ) =>
        {
            Ok(())
        }
        // A full backlog (EAGAIN) is an agent too.
        Ok(_) => Err(SocketError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(SocketError::InUse { path: path.to_owned() })
        }
        Err(error) => Err(failed("connect to", path)(error)),
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_has_its_mode_and_goes_away() {
        let root = tempfile::tempdir().unwrap();
        let run_dir = root.path().join("guard-agent");
        let bound = bind(&run_dir, None).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(bound.path()), 0o660);
        assert_eq!(mode(&run_dir) & !0o750, 0);
        assert_eq!(fs::read_dir(&run_dir).unwrap().count(), 1, "nothing private is left");
        UnixStream::connect(bound.path()).unwrap();
        drop(bound);
        assert_eq!(fs::read_dir(&run_dir).unwrap().count(), 0);
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(SOCKET_NAME);
        drop(UnixListener::bind(&path).unwrap());
        let bound = bind(root.path(), None).unwrap();
        assert!(matches!(bind(root.path(), None), Err(SocketError::InUse { .. })));
        UnixStream::connect(bound.path()).unwrap();
    }

    #[test]
    fn what_is_no_socket_stays() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(SOCKET_NAME), "precious").unwrap();
        assert!(matches!(bind(root.path(), None), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(root.path().join(SOCKET_NAME)).unwrap(), "precious");
    }
}
