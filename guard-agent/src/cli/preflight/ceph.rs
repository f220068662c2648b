//! Whether this host can reach the cluster's pools on Ceph: the files that Incus reads to mount
//! them are there. Asks no monitor, and nothing below a mount.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::model::classify::clusters::settings;

/// A pool of the cluster to be joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CephPool {
    pub name: String,
    /// Name of the Ceph cluster, and of its configuration.
    pub cluster: String,
    /// Ceph user, without `client.`.
    pub user: String,
}

/// A problem with the files of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub pool: String,
    pub what: String,
    /// Whether the pool certainly cannot be mounted so. Ceph can be told to look elsewhere.
    pub is_certain: bool,
}

/// Looks below a directory, which is `/etc/ceph`.
pub(super) fn look(pools: &[CephPool], directory: &Path) -> Vec<Missing> {
    let mut missing = Vec::new();
    for pool in pools {
        let mut miss = |what: String, is_certain: bool| {
            missing.push(Missing { pool: pool.name.clone(), what, is_certain });
        };
        let path = directory.join(format!("{}.conf", pool.cluster));
        let configuration = match text(&path) {
            Ok(text) => text,
            Err(why) => {
                miss(why, true);
                String::new()
            }
        };
        let settings = settings(&configuration);
        let has = |key: &str| settings.iter().any(|(name, value)| name == key && !value.is_empty());
        if !configuration.is_empty() && !has("mon_host") && !has("mon_addr") {
            miss(format!("{} names no monitors (mon_host)", path.display()), false);
        }
        let needs_none =
            settings.iter().any(|(name, value)| name == "auth_client_required" && value == "none");
        if let Some(why) = no_keyring(pool, directory).filter(|_| !needs_none) {
            miss(why, !has("keyring"));
        }
    }
    missing
}

/// Why no keyring of the pool's user is at a place in which Ceph looks by default.
fn no_keyring(pool: &CephPool, directory: &Path) -> Option<String> {
    let keyrings = [
        format!("{}.client.{}.keyring", pool.cluster, pool.user),
        format!("{}.keyring", pool.cluster),
        "keyring".to_owned(),
        "keyring.bin".to_owned(),
    ];
    let section = format!("[client.{}]", pool.user);
    let texts = keyrings.map(|name| text(&directory.join(name)));
    if texts.iter().flatten().any(|text| text.contains(&section)) {
        return None;
    }
    let [first, ..] = texts;
    let why = first.map_or_else(|why| why, |_| format!("a keyring without {section}"));
    Some(format!("no keyring of client.{}: {why}", pool.user))
}

/// Its beginning; such files are small.
fn text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(1 << 20).read_to_end(&mut bytes))
        .map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn configuration_and_keyring_of_each_pool() {
        let certain = |missing: &[Missing]| {
            missing.iter().map(|missing| missing.is_certain).collect::<Vec<_>>()
        };
        let directory = tempfile::tempdir().unwrap();
        let pool = CephPool {
            name: "shared".to_owned(),
            cluster: "ceph".to_owned(),
            user: "incus".to_owned(),
        };
        let pools = [pool];
        let found = || {
            let missing = look(&pools, directory.path());
            let texts: Vec<String> = missing.iter().map(|missing| missing.what.clone()).collect();
            (texts, certain(&missing))
        };
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        let (nothing, is_certain) = found();
        assert!(nothing[0].contains("ceph.conf: No such file"), "{nothing:?}");
        assert!(nothing[1].starts_with("no keyring of client.incus: "), "{nothing:?}");
        assert_eq!(is_certain, [true, true]);

        write("ceph.conf", "[global]\n# mon host = 10.0.0.1\nfsid = a\n");
        write("ceph.client.incus.keyring", "[client.admin]\n\tkey = x\n");
        let (wrong, is_certain) = found();
        assert!(wrong[0].contains("names no monitors"), "{wrong:?}");
        assert!(wrong[1].contains("without [client.incus]"), "{wrong:?}");
        assert_eq!(is_certain, [false, true], "monitors may be found by DNS");

        write(
            "ceph.conf",
            "[global]\nmon host = 10.0.0.1\n[client]\nkeyring = \
             /srv/$name.keyring\n",
        );
        assert_eq!(found().1, [false], "the keyring may be elsewhere");
        write("ceph.conf", "[global]\nmon_host = 10.0.0.1\nauth client required = none\n");
        assert!(found().1.is_empty());
        write("ceph.conf", "[global]\nmon host = 10.0.0.1,10.0.0.2\n");
        write("keyring", "[client.incus]\n\tkey = x\n");
        assert_eq!(found().0, Vec::<String>::new());
    }
}
