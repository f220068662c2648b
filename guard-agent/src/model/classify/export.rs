//! Which export of which server is behind an NFS or CIFS mount.
//!
//! The kernel prints (fs/nfs/super.c, fs/nfs/namespace.c, fs/smb/client/cifsfs.c) the source as it
//! was given, `port=` for NFS 4 if it is not 2049 and for NFS 3 if one was given, `addr=` the
//! address in use. A name goes before that address, which may be another one after the next lookup.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::options::option;
use super::server::{Server, normal_path};

const NFS_PORT: u16 = 2049;
/// Of NFS over RDMA.
const NFS_RDMA_PORT: u16 = 20049;
const CIFS_PORT: u16 = 445;

/// A directory of a file server that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Export {
    /// With a port only if it is not the protocol's own.
    pub server: Server,
    /// Without a slash at the end. For CIFS share and prefix path.
    pub path: String,
    /// Names server and path as mountinfo does.
    source: String,
}

impl Export {
    /// Of an NFS mount: `server:/path`, or `:/path` with the server in `addr=`.
    pub(super) fn nfs(source: &OsStr, super_options: &str) -> Option<Self> {
        let source = String::from_utf8_lossy(source.as_bytes());
        let (named, path) = match source.strip_prefix('[').and_then(|rest| rest.split_once("]:/")) {
            Some((host, path)) => (host, path),
            None => source.split_once(":/")?,
        };
        let host = if named.is_empty() { option(super_options, "addr")? } else { named };
        let usual = if option(super_options, "proto").is_some_and(|proto| proto.starts_with("rdma"))
        {
            NFS_RDMA_PORT
        } else {
            NFS_PORT
        };
        let server = Server { port: port(super_options, usual), ..Server::parse(host)? };
        let path = normal_path(path);
        let source = format!("{}:{path}", Server { port: None, ..server.clone() });
        Some(Self { server, path, source })
    }

    /// Of a CIFS mount: `//server/share/prefix`. Servers take no account of case in names of
    /// shares.
    pub(super) fn cifs(source: &OsStr, super_options: &str) -> Option<Self> {
        let source = String::from_utf8_lossy(source.as_bytes()).replace('\\', "/");
        let (host, rest) = source.strip_prefix("//")?.split_once('/')?;
        let server = Server { port: port(super_options, CIFS_PORT), ..Server::parse(host)? };
        let rest = normal_path(rest);
        let (share, prefix) = rest[1..].split_once('/').unwrap_or((&rest[1..], ""));
        if share.is_empty() {
            return None;
        }
        let path = normal_path(&format!("{}/{prefix}", share.to_lowercase()));
        let source = format!("//{}{path}", server.host);
        Some(Self { server, path, source })
    }

    /// The same for every mount of the same export. `place` is the mount's purpose, if it is known:
    /// it identifies the end of a tunnel, since a tunnel's maker takes any free port.
    pub(super) fn canonical(&self, place: Option<&str>) -> String {
        match (place.filter(|_| self.server.is_loopback()), self.server.port) {
            (Some(place), Some(_)) => format!("{}\0volume={place}", self.source),
            (None, Some(port)) => format!("{}\0port={port}", self.source),
            (_, None) => self.source.clone(),
        }
    }
}

/// The port in the options, if it is not the usual one.
fn port(super_options: &str, usual: u16) -> Option<u16> {
    option(super_options, "port")?.parse().ok().filter(|port| ![0, usual].contains(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nfs(source: &str, options: &str) -> String {
        Export::nfs(OsStr::new(source), options).unwrap().canonical(None)
    }

    fn cifs(source: &str, options: &str) -> String {
        Export::cifs(OsStr::new(source), options).unwrap().canonical(None)
    }

    #[test]
    fn one_export_in_several_spellings() {
        for (one, other) in [
            (("nas:/srv/a", "rw"), ("NAS.:/srv/a/", "rw,port=2049,addr=10.0.0.9")),
            (("nas:/srv/a", "rw"), ("nas:/srv//a", "rw,vers=3,mountport=20048,port=0")),
            // The name means another address after a restart of the server.
            (("nas:/a", "addr=10.0.0.9"), ("nas:/a", "addr=10.0.0.10")),
            (("[FD00:0::1]:/a", ""), ("fd00::1:/a", "addr=fd00::1")),
            (("10.0.0.1:/a", ""), (":/a", "addr=10.0.0.1")),
            (("nas:/a", "proto=tcp"), ("nas:/a", "proto=rdma,port=20049")),
        ] {
            assert_eq!(nfs(one.0, one.1), nfs(other.0, other.1), "{one:?} {other:?}");
        }
        for (one, other) in [
            ("//nas/Share/Sub", "//NAS/share/Sub/"),
            ("//nas/my share", "\\\\nas\\My Share"),
            ("//10.0.0.9/s", "//10.0.0.9/s//"),
        ] {
            assert_eq!(cifs(one, ""), cifs(other, "port=445"), "{one} {other}");
        }
    }

    #[test]
    fn exports_apart() {
        for (one, other) in [
            (("127.0.0.1:/", "port=20315"), ("127.0.0.1:/", "port=20316")),
            (("127.0.0.1:/", "port=20315"), ("127.0.0.1:/", "")),
            ((":/data", "addr=10.0.0.1"), (":/data", "addr=10.0.0.2")),
            (("nas:/a", ""), ("nas:/b", "")),
            (("nas:/a", ""), ("nas:/A", "")),
            (("nas:/a", "proto=tcp,port=20049"), ("nas:/a", "")),
        ] {
            assert_ne!(nfs(one.0, one.1), nfs(other.0, other.1), "{one:?} {other:?}");
        }
        assert_ne!(cifs("//nas/s/a", ""), cifs("//nas/s/b", ""));
        assert_ne!(cifs("//nas/s", ""), cifs("//nas/s", "port=4450"));
        assert_ne!(cifs("//nas/s", ""), cifs("//nas/s2", ""));
    }

    #[test]
    fn a_tunnel_is_told_by_its_volume() {
        let canonical = |source: &str, options: &str, place| {
            Export::nfs(OsStr::new(source), options).unwrap().canonical(place)
        };
        let first = canonical("127.0.0.1:/", "port=20315", Some("pvc-a"));
        assert_eq!(first, canonical("127.0.0.1:/", "port=20900", Some("pvc-a")), "mounted again");
        assert_ne!(first, canonical("127.0.0.1:/", "port=20315", Some("pvc-b")));
        assert_eq!(
            canonical("nas:/", "port=20315", Some("pvc-a")),
            nfs("nas:/", "port=20315"),
            "no tunnel"
        );
    }

    #[test]
    fn ids_of_plain_sources_are_what_they_were() {
        for source in ["10.0.0.1:/srv/a", "nas:/", "[fd00::1]:/a"] {
            assert_eq!(nfs(source, "vers=4.2,addr=10.0.0.1"), source);
        }
        assert_eq!(cifs("//nas/share/sub", "vers=3.1.1"), "//nas/share/sub");
    }

    #[test]
    fn odd_sources() {
        for source in ["", "none", ":/a", "nas", "nas:a", "[]:/a"] {
            assert_eq!(Export::nfs(OsStr::new(source), ""), None, "{source}");
        }
        for source in ["", "none", "//nas", "//nas/", "///share"] {
            assert_eq!(Export::cifs(OsStr::new(source), ""), None, "{source}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(source in "[a:/\\\\\\[\\]é]{0,20}", options in "[a=,porteé0-9]{0,20}") {
            let _ = Export::nfs(OsStr::new(&source), &options);
            let _ = Export::cifs(OsStr::new(&source), &options);
        }
    }
}
