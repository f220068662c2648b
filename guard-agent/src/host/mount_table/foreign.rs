//! Mount tables of namespaces other than PID 1's: storage daemons' own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::model::mounts::Snapshot;

/// The tables of the given namespaces (by the inodes of their files), each as a process in it sees
/// it. A namespace without a process has none: nothing is mounted or deleted in it meanwhile.
///
/// `proc` is where procfs is mounted.
pub fn tables(namespaces: &BTreeSet<u32>, proc: &Path) -> BTreeMap<u32, Snapshot> {
    let mut tables = BTreeMap::new();
    if namespaces.is_empty() {
        return tables;
    }
    for process in fs::read_dir(proc).into_iter().flatten().flatten() {
        if tables.len() == namespaces.len() {
            break;
        }
        // A process may end at any moment: then another one of its namespace is found, or none is
        // left.
        let link = fs::read_link(process.path().join("ns/mnt")).unwrap_or_default();
        let Some(namespace) =
            number(&link.to_string_lossy()).filter(|number| namespaces.contains(number))
        else {
            continue;
        };
        if !tables.contains_key(&namespace)
            && let Ok(text) = fs::read(process.path().join("mountinfo"))
        {
            tables.insert(namespace, Snapshot::parse(&text));
        }
    }
    tables
}

/// Of `mnt:[4026532512]`.
fn number(link: &str) -> Option<u32> {
    link.strip_prefix("mnt:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn one_process_of_each_namespace_is_asked() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: &str, namespace: &str, table: &str| {
            let directory = proc.path().join(pid);
            fs::create_dir_all(directory.join("ns")).unwrap();
            symlink(format!("mnt:[{namespace}]"), directory.join("ns/mnt")).unwrap();
            fs::write(directory.join("mountinfo"), table).unwrap();
        };
        process("1", "4026531832", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
        process("7", "4026532512", "361 360 0:60 / /var/snap/pool rw - ceph m:/ rw\n");
        process("8", "4026532512", "361 360 0:60 / /var/snap/pool rw - ceph m:/ rw\n");
        fs::create_dir_all(proc.path().join("sys")).unwrap();
        let found = tables(&BTreeSet::from([4_026_532_512, 5]), proc.path());
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [4_026_532_512]);
        assert_eq!(found[&4_026_532_512].entries().len(), 1);
        assert!(tables(&BTreeSet::new(), proc.path()).is_empty());
        assert_eq!(number("net:[5]"), None);
    }
}
