//! Reads the host's data on Ceph's clusters: configurations, and the kernel client's monitor maps
//! in debugfs. Local files only; no server is asked, and nothing is mounted.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::model::classify::clusters::Clusters;
use crate::model::mounts::Snapshot;

/// Longest beginning of a file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Adds facts from the mount table; and, if a mount's cluster is still unknown, from files below
/// `root`. Nothing that was learnt is forgotten: a pool's id must not change because the mount that
/// told its cluster is gone.
pub(super) fn learn(clusters: &mut Clusters, snapshot: &Snapshot, root: &Path) {
    clusters.learn_mounts(snapshot);
    if !clusters.lacks(snapshot) {
        return;
    }
    for configuration in entries(&root.join("etc/ceph")) {
        if configuration.extension().is_some_and(|extension| extension == "conf")
            && let Some(text) = text(&configuration)
        {
            clusters.learn_configuration(&text);
        }
    }
    for client in entries(&root.join("sys/kernel/debug/ceph")) {
        let name = client.file_name().unwrap_or_default().to_string_lossy();
        if let Some(monmap) = text(&client.join("monmap")) {
            clusters.learn_client(&name, &monmap);
        }
    }
}

/// None where there is no such directory: most hosts have no Ceph.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(directory).into_iter().flatten();
    listed.flatten().map(|entry| entry.path()).collect()
}

fn text(path: &Path) -> Option<String> {
    // A FIFO would block.
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::classify::classify;
    use crate::model::policy::parse;

    const FSID: &str = "f0f0f0f0-0000-4000-8000-000000000001";

    fn id(line: &str, clusters: &Clusters) -> u64 {
        let policy = parse(
            "version = 1\n[[root]]\npath = \
             \"/p\"\n",
            Path::new("policy.toml"),
        )
        .unwrap();
        classify(&Snapshot::parse(line.as_bytes()), &policy, clusters).pools[0].pool_id
    }

    #[test]
    fn a_mount_that_tells_no_cluster_gets_the_id_of_one_that_does() {
        let old = "1 0 0:1 / /p/a rw - ceph 10.0.0.1:6789,10.0.0.2:6789:/a rw,mds_namespace=fs";
        let new = format!("1 0 0:1 / /p/a rw - ceph admin@{FSID}.fs=/a rw,mon_addr=10.0.0.1:3300");
        let wanted = id(&new, &Clusters::default());
        let configuration = format!("[global]\nfsid = {FSID}\nmon host = 10.0.0.2\n");
        for (file, text) in [
            ("etc/ceph/ceph.conf", configuration.as_str()),
            (
                &format!("sys/kernel/debug/ceph/{FSID}.client4711/monmap"),
                "epoch 1\n\tmon0\t(1)10.0.0.1:6789\n",
            ),
        ] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::write(path.with_extension("sample"), "fsid = other\nmon_host = 10.0.0.1").unwrap();
            let mut clusters = Clusters::default();
            let snapshot = Snapshot::parse(old.as_bytes());
            assert_ne!(id(old, &clusters), wanted);
            learn(&mut clusters, &snapshot, root.path());
            assert_eq!(id(old, &clusters), wanted, "{file}");
            learn(&mut clusters, &snapshot, Path::new("/nonexistent"));
            assert_eq!(id(old, &clusters), wanted, "what was learnt stays");
        }
    }
}
