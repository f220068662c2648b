//! The Ceph filesystem, and its part, behind a mount: from both spellings of the source.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::options::option;
use super::server::{Server, normal_path};
use crate::model::mounts::MountEntry;

/// The part of a Ceph cluster that a CephFS mount shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's id, if source or options tell it. Zeros are no id: they mean that it was not
    /// known.
    pub fsid: Option<String>,
    /// Name of the filesystem in the cluster; `None` is the cluster's default one.
    pub filesystem: Option<String>,
    /// The path in the filesystem that is mounted, without a slash at the end.
    pub path: String,
    /// Those that the mount was given.
    pub monitors: Vec<Server>,
}

impl Identity {
    /// Whether both are certainly of one Ceph filesystem: equal ids, or a monitor in common if one
    /// of them does not tell its id.
    pub fn same_filesystem(&self, other: &Self) -> bool {
        let cluster = match (&self.fsid, &other.fsid) {
            (Some(left), Some(right)) => left == right,
            // The ports differ between versions of the protocol.
            _ => {
                let of_other =
                    |host: &String| other.monitors.iter().any(|monitor| monitor.host == *host);
                self.monitors.iter().any(|monitor| of_other(&monitor.host))
            }
        };
        cluster && self.filesystem == other.filesystem
    }

    /// Whether neither shows anything of the other: certainly two filesystems, or paths beside each
    /// other. A fact that a mount does not tell (an id, the name of the default filesystem) proves
    /// nothing.
    pub fn certainly_apart(&self, other: &Self) -> bool {
        let differ = |left: &Option<String>, right: &Option<String>| {
            left.as_ref().zip(right.as_ref()).is_some_and(|(left, right)| left != right)
        };
        let (left, right) = (Path::new(&self.path), Path::new(&other.path));
        differ(&self.fsid, &other.fsid)
            || differ(&self.filesystem, &other.filesystem)
            || !(left.starts_with(right) || right.starts_with(left))
    }
}

/// The identity of a mount that Ceph's kernel client has made; `None` for every other mount.
pub fn identity(entry: &MountEntry) -> Option<Identity> {
    read(&entry.source, &entry.super_options).filter(|_| entry.fs_type == "ceph")
}

/// Reads `user@fsid.fs=/path` or `monitor,monitor:/path`. `None` if it is neither.
pub(super) fn read(source: &OsStr, super_options: &str) -> Option<Identity> {
    let source = String::from_utf8_lossy(source.as_bytes());
    let given = |name: &str| option(super_options, name).map(str::to_owned);
    let (named, fsid) = (given("fs").or_else(|| given("mds_namespace")), given("fsid"));
    // Only the new spelling has `=/`; a path may hold it too, so the part before it decides.
    let new = source
        .split_once("=/")
        .filter(|(before, _)| before.contains('@') && !before.contains(":/"));
    if let Some((device, path)) = new {
        let (_user, cluster) = device.split_once('@')?;
        let (shown, filesystem) = cluster.split_once('.')?;
        return Some(Identity {
            fsid: known_fsid(shown).or_else(|| known_fsid(&fsid?)),
            filesystem: Some(filesystem.to_owned()).filter(|name| !name.is_empty()).or(named),
            path: normal_path(path),
            monitors: monitors(&given("mon_addr").unwrap_or_default(), '/'),
        });
    }
    let (listed, path) = source.split_once(":/")?;
    if listed.is_empty() {
        return None;
    }
    let fsid = fsid.and_then(|fsid| known_fsid(&fsid));
    Some(Identity {
        fsid,
        filesystem: named,
        path: normal_path(path),
        monitors: monitors(listed, ','),
    })
}

/// A cluster's id in lower case, unless it is empty or all zeros.
pub(super) fn known_fsid(text: &str) -> Option<String> {
    let is_known = text.bytes().any(|byte| !matches!(byte, b'0' | b'-'));
    is_known.then(|| text.to_ascii_lowercase())
}

fn monitors(listed: &str, separator: char) -> Vec<Server> {
    listed.split(separator).filter_map(Server::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &str, options: &str) -> Identity {
        super::read(OsStr::new(source), options).unwrap()
    }

    fn hosts(identity: &Identity) -> Vec<&str> {
        identity.monitors.iter().map(|monitor| monitor.host.as_str()).collect()
    }

    #[test]
    fn both_spellings() {
        let new = read(
            "admin@f0e1-2.testfs=/pool-a/",
            "rw,name=admin,mon_addr=10.99.0.1:3300/10.99.0.2:3300",
        );
        assert_eq!(new.fsid.as_deref(), Some("f0e1-2"));
        assert_eq!(new.filesystem.as_deref(), Some("testfs"));
        assert_eq!((new.path.as_str(), new.monitors.len()), ("/pool-a", 2));
        let old = read("10.99.0.2:6789,10.99.0.1:6789:/pool-a", "rw,mds_namespace=testfs");
        assert_eq!((old.fsid.as_ref(), old.filesystem.as_deref()), (None, Some("testfs")));
        assert_eq!((old.path.as_str(), hosts(&old)), ("/pool-a", vec!["10.99.0.2", "10.99.0.1"]));
        assert!(old.same_filesystem(&new));
        let other = read("admin@f0e1-2.other=/", "mon_addr=10.99.0.1:3300");
        assert!(!other.same_filesystem(&new));
    }

    #[test]
    fn only_what_is_certain_sets_two_mounts_apart() {
        let pool = read("admin@f0.fs=/pool", "mon_addr=10.99.0.1:3300");
        let apart = |source: &str, options: &str| {
            let other = read(source, options);
            assert_eq!(other.certainly_apart(&pool), pool.certainly_apart(&other));
            other.certainly_apart(&pool)
        };
        for (source, options) in [
            ("admin@f0.fs=/", ""),
            ("admin@f0.fs=/pool", ""),
            ("admin@f0.fs=/pool/below", ""),
            // Neither id nor name; monitors may have several addresses.
            ("10.98.0.7:/", ""),
            ("10.98.0.7:/", "mds_namespace=fs"),
            ("admin@.fs=/", ""),
            ("admin@00000000-0000-0000-0000-000000000000.fs=/", ""),
            ("10.98.0.7:/", "mds_namespace=fs,fsid=00000000-0000-0000-0000-000000000000"),
        ] {
            assert!(!apart(source, options), "{source}");
        }
        for (source, options) in [
            ("admin@f0.fs=/poo", ""),
            ("admin@f0.fs=/pool-b", ""),
            ("admin@f1.fs=/", ""),
            ("admin@f0.other=/", ""),
            ("10.99.0.1:/", "mds_namespace=other"),
            ("10.99.0.1:/other", ""),
        ] {
            assert!(apart(source, options), "{source}");
        }
    }

    #[test]
    fn odd_sources() {
        assert_eq!(hosts(&read("[fd00::1]:3300,[fd00::2]:/", "")), ["fd00::1", "fd00::2"]);
        assert_eq!(read("mon:/a=/b", "fsid=x").fsid.as_deref(), Some("x"));
        assert_eq!(read("mon:/user@x=/b", "").path, "/user@x=/b");
        assert_eq!(read("admin@.fs=/", "").fsid, None);
        for source in ["", "none", ":/", "a@b=/c"] {
            assert_eq!(super::read(OsStr::new(source), ""), None, "{source}");
        }
    }

    #[test]
    fn zeros_are_no_id() {
        const ZEROS: &str = "fsid=00000000-0000-0000-0000-000000000000";
        let (one, other) = (read("10.0.0.1:/a", ZEROS), read("10.9.0.1:/a", ZEROS));
        assert_eq!((one.fsid.as_ref(), other.fsid.as_ref()), (None, None));
        assert!(!one.same_filesystem(&other) && !one.certainly_apart(&other));
        assert!(one.same_filesystem(&read("10.0.0.1:/b", ZEROS)), "a monitor in common");
        let new =
            read("admin@00000000-0000-0000-0000-000000000000.fs=/", "fsid=F0,mon_addr=10.0.0.1");
        assert_eq!(new.fsid.as_deref(), Some("f0"));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(source in "[a@.=/:,\\[\\]é]{0,30}", options in "[a=,fs]{0,20}") {
            let _ = super::read(OsStr::new(&source), &options);
        }
    }
}
