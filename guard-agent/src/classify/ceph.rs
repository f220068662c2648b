//! Which Ceph filesystem, and what of it, is behind a mount: from both spellings of the source.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::Serialize;

/// What a CephFS mount shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// The cluster's id, if source or options tell it.
    pub fsid: Option<String>,
    /// Name of the filesystem in the cluster; `None` is the cluster's default one.
    pub filesystem: Option<String>,
    /// The path in the filesystem that is mounted, without a slash at the end.
    pub path: String,
    /// Addresses of monitors without ports, sorted: the ports differ between protocol versions.
    pub monitors: Vec<String>,
}

impl Identity {
    /// The same for every mount of the same path by the same spelling of the cluster.
    pub fn canonical(&self) -> String {
        let cluster = self.fsid.clone().unwrap_or_else(|| self.monitors.join(","));
        format!("{cluster}\0{}\0{}", self.filesystem.as_deref().unwrap_or_default(), self.path)
    }

    /// Whether both are certainly of one Ceph filesystem: equal ids, or a monitor in common where one
    /// of them does not tell its id.
    pub fn same_filesystem(&self, other: &Self) -> bool {
        let cluster = match (&self.fsid, &other.fsid) {
            (Some(left), Some(right)) => left == right,
            _ => self.monitors.iter().any(|monitor| other.monitors.contains(monitor)),
        };
        cluster && self.filesystem == other.filesystem
    }

    /// Whether neither shows anything of the other: certainly two filesystems, or paths beside each other.
    /// What a mount does not tell (an id, the name of the default filesystem) proves nothing.
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

/// Reads `user@fsid.fs=/path` or `monitor,monitor:/path`. `None` if it is neither.
pub fn identity(source: &OsStr, super_options: &str) -> Option<Identity> {
    let source = String::from_utf8_lossy(source.as_bytes());
    let option = |name: &str| {
        let value = |option: &str| option.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
        super_options.split(',').find_map(value).filter(|value| !value.is_empty())
    };
    let named = option("fs").or_else(|| option("mds_namespace"));
    // Only the new spelling has `=/`; a path may hold it too, so the part before it decides.
    let new = source.split_once("=/").filter(|(before, _)| before.contains('@') && !before.contains(":/"));
    if let Some((device, path)) = new {
        let (_user, cluster) = device.split_once('@')?;
        let (fsid, filesystem) = cluster.split_once('.')?;
        let listed = option("mon_addr").unwrap_or_default();
        return Some(Identity {
            fsid: Some(fsid.to_owned()).filter(|fsid| !fsid.is_empty()).or_else(|| option("fsid")),
            filesystem: Some(filesystem.to_owned()).filter(|name| !name.is_empty()).or(named),
            path: normal(path),
            monitors: monitors(listed.split('/')),
        });
    }
    let (listed, path) = source.split_once(":/")?;
    if listed.is_empty() {
        return None;
    }
    let monitors = monitors(listed.split(','));
    Some(Identity { fsid: option("fsid"), filesystem: named, path: normal(path), monitors })
}

fn normal(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    format!("/{}", parts.join("/"))
}

fn monitors<'m>(listed: impl Iterator<Item = &'m str>) -> Vec<String> {
    let mut hosts: Vec<String> = listed.filter(|address| !address.is_empty()).map(host).collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

/// An address without its port: `10.0.0.1:3300`, `[fd00::1]:3300`, `mon.example`.
fn host(address: &str) -> String {
    let bracketed = address.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let host = match bracketed {
        Some((host, _)) => host,
        None if address.matches(':').count() == 1 => address.split(':').next().unwrap_or(address),
        None => address,
    };
    host.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &str, options: &str) -> Identity {
        identity(OsStr::new(source), options).unwrap()
    }

    #[test]
    fn both_spellings() {
        let new =
            read("admin@f0e1-2.testfs=/pool-a/", "rw,name=admin,mon_addr=10.99.0.1:3300/10.99.0.2:3300");
        assert_eq!(new.fsid.as_deref(), Some("f0e1-2"));
        assert_eq!(new.filesystem.as_deref(), Some("testfs"));
        assert_eq!((new.path.as_str(), new.monitors.len()), ("/pool-a", 2));
        let old = read("10.99.0.2:6789,10.99.0.1:6789:/pool-a", "rw,mds_namespace=testfs");
        assert_eq!((old.fsid.as_ref(), old.filesystem.as_deref()), (None, Some("testfs")));
        assert_eq!((&old.path, &old.monitors), (&new.path, &new.monitors));
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
        assert_eq!(read("[fd00::1]:3300,[fd00::2]:/", "").monitors, ["fd00::1", "fd00::2"]);
        assert_eq!(read("mon:/a=/b", "fsid=x").fsid.as_deref(), Some("x"));
        assert_eq!(read("mon:/user@x=/b", "").path, "/user@x=/b");
        assert_eq!(read("admin@.fs=/", "").fsid, None);
        for source in ["", "none", ":/", "a@b=/c"] {
            assert_eq!(identity(OsStr::new(source), ""), None, "{source}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(source in "[a@.=/:,\\[\\]é]{0,30}", options in "[a=,fs]{0,20}") {
            let _ = identity(OsStr::new(&source), &options);
        }
    }
}
