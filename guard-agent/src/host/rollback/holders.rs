//! Finds processes that use a superblock, from text below `/proc` alone: links are read, nothing is
//! followed.
//!
//! An open file tells its mount by id in `fdinfo`, which also names a mount that was detached. A
//! mapping tells its device. A working or root directory tells a path only, which means nothing
//! once the mount is detached.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use guard_common::policy::kernel_dev;

use super::namespaces::{self, NamespaceError};
use crate::model::rollback::holder::{Holder, Via, Wanted};
use crate::model::rollback::table::NamespaceTable;

/// Ways that are named for one process.
const WAYS: usize = 4;
/// Processes that are named.
const HOLDERS: usize = 64;

/// Looks at every process below `proc_root` (`/proc`), and at the kernel's users that show there
/// and below `sys_root` (`/sys`). Processes that end meanwhile hold nothing.
pub(super) fn find(
    proc_root: &Path,
    sys_root: &Path,
    wanted: &[Wanted],
) -> Result<Vec<Holder>, NamespaceError> {
    let tables: BTreeMap<u64, NamespaceTable> =
        namespaces::all(proc_root)?.into_iter().map(|table| (table.namespace, table)).collect();
    let mut holders = of_the_kernel(&tables, sys_root, wanted);
    for pid in namespaces::processes(proc_root)? {
        let process = Process { directory: proc_root.join(pid.to_string()), pid, tables: &tables };
        let mut ways = process.directories(proc_root, wanted);
        ways.extend(process.files(wanted));
        ways.extend(process.mappings(wanted));
        for each in wanted {
            let via: Vec<Via> = ways
                .iter()
                .filter(|way| way.0 == each.generation)
                .map(|way| way.1.clone())
                .take(WAYS)
                .collect();
            if !via.is_empty() && holders.len() < HOLDERS {
                holders.push(Holder {
                    generation: each.generation,
                    pid,
                    command: process.command(),
                    via,
                });
            }
        }
    }
    Ok(holders)
}

/// Loop devices and overlays.
fn of_the_kernel(
    tables: &BTreeMap<u64, NamespaceTable>,
    sys_root: &Path,
    wanted: &[Wanted],
) -> Vec<Holder> {
    let on = |table: &NamespaceTable, path: &Path| {
        let dev = table.mounts.mount_of(path)?.dev();
        wanted.iter().find(|each| each.dev == dev).map(|each| each.generation)
    };
    let mut found = Vec::new();
    let host = tables.values().find(|table| table.is_host);
    for entry in fs::read_dir(sys_root.join("block")).into_iter().flatten().flatten() {
        let Ok(backing) = fs::read(entry.path().join("loop/backing_file")) else { continue };
        let path = Path::new(std::ffi::OsStr::from_bytes(backing.trim_ascii_end()));
        if let Some(generation) = host.and_then(|table| on(table, path)) {
            let device = entry.file_name().to_string_lossy().into_owned();
            found.push((
                generation,
                Via::LoopDevice { device, path: path.to_string_lossy().into_owned() },
            ));
        }
    }
    for table in tables.values() {
        for entry in table.mounts.entries().iter().filter(|entry| entry.fs_type == "overlay") {
            for path in layers(&entry.super_options) {
                if let Some(generation) = on(table, Path::new(path)) {
                    let mountpoint = entry.mountpoint.to_string_lossy().into_owned();
                    found.push((generation, Via::Overlay { mountpoint, path: path.to_owned() }));
                }
            }
        }
    }
    let holder = |(generation, via)| Holder {
        generation,
        pid: 0,
        command: "kernel".to_owned(),
        via: vec![via],
    };
    found.into_iter().map(holder).collect()
}

/// The directories of an overlay, as its options have them.
fn layers(options: &str) -> impl Iterator<Item = &str> {
    let is_layer =
        |key: &str| matches!(key, "lowerdir" | "upperdir" | "workdir" | "lowerdir+" | "datadir+");
    let values = options.split(',').filter_map(|option| option.split_once('='));
    let values = values.filter(move |(key, _)| is_layer(key)).map(|(_, value)| value);
    values.flat_map(|value| value.split(':')).filter(|path| path.starts_with('/'))
}

struct Process<'a> {
    directory: PathBuf,
    pid: u32,
    tables: &'a BTreeMap<u64, NamespaceTable>,
}

impl Process<'_> {
    fn command(&self) -> String {
        let name = fs::read(self.directory.join("comm")).unwrap_or_default();
        String::from_utf8_lossy(&name).trim_end().to_owned()
    }

    fn directories(&self, proc_root: &Path, wanted: &[Wanted]) -> Vec<(u64, Via)> {
        let Ok(namespace) = namespaces::namespace_of(proc_root, self.pid) else {
            return Vec::new();
        };
        let Some(table) = self.tables.get(&namespace) else { return Vec::new() };
        let on = |name: &str| {
            let path = fs::read_link(self.directory.join(name)).ok()?;
            let mount = table.mounts.mount_of(&path)?;
            let target = wanted.iter().find(|each| each.dev == mount.dev())?;
            Some((target.generation, path.to_string_lossy().into_owned()))
        };
        let working = on("cwd").map(|(target, path)| (target, Via::WorkingDirectory { path }));
        let root = on("root").map(|(target, path)| (target, Via::RootDirectory { path }));
        working.into_iter().chain(root).collect()
    }

    fn files(&self, wanted: &[Wanted]) -> Vec<(u64, Via)> {
        let descriptors =
            fs::read_dir(self.directory.join("fdinfo")).into_iter().flatten().flatten();
        let found = descriptors.filter_map(|entry| {
            let descriptor: u32 = entry.file_name().to_str()?.parse().ok()?;
            let text = fs::read_to_string(entry.path()).ok()?;
            let mount_id: u32 =
                text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()?;
            let target = wanted.iter().find(|each| each.mount_ids.contains(&mount_id))?;
            let path =
                fs::read_link(self.directory.join(format!("fd/{descriptor}"))).unwrap_or_default();
            let path = path.to_string_lossy().into_owned();
            Some((target.generation, Via::OpenFile { descriptor, path }))
        });
        found.collect()
    }

    fn mappings(&self, wanted: &[Wanted]) -> Vec<(u64, Via)> {
        let maps = fs::read(self.directory.join("maps")).unwrap_or_default();
        let found = maps.split(|byte| *byte == b'\n').filter_map(|line| {
            let (dev, path) = mapping(line)?;
            let target = wanted.iter().find(|each| each.dev == dev)?;
            Some((target.generation, Via::Mapping { path }))
        });
        let mut found: Vec<_> = found.collect();
        found.dedup();
        found
    }
}

/// Device and path of a line such as `7f1c-7f1d r-xp 00001000 fe:01 1234 /usr/lib/x`. Nothing for
/// memory of no file.
fn mapping(line: &[u8]) -> Option<(u32, String)> {
    let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
    let device = std::str::from_utf8(fields.nth(3)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let dev = kernel_dev(number(major)?, number(minor)?);
    let path = fields.nth(1)?;
    (dev != 0)
        .then(|| (dev, Path::new(std::ffi::OsStr::from_bytes(path)).to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_way_to_hold_a_superblock_is_found() {
        let proc = tempfile::tempdir().unwrap();
        let add = |pid: u32, cwd: &str, mount_id: u32, maps: &str| {
            let directory = proc.path().join(pid.to_string());
            fs::create_dir_all(directory.join("ns")).unwrap();
            fs::create_dir_all(directory.join("fdinfo")).unwrap();
            fs::create_dir_all(directory.join("fd")).unwrap();
            symlink("mnt:[10]", directory.join("ns/mnt")).unwrap();
            symlink("/", directory.join("root")).unwrap();
            symlink(cwd, directory.join("cwd")).unwrap();
            symlink("/detached/file", directory.join("fd/3")).unwrap();
            fs::write(
                directory.join("fdinfo/3"),
                format!("pos:\t0\nflags:\t02\nmnt_id:\t{mount_id}\nino:\t5\n"),
            )
            .unwrap();
            fs::write(directory.join("comm"), format!("p{pid}\n")).unwrap();
            fs::write(directory.join("maps"), maps).unwrap();
            let table = "1 0 8:1 / / rw - ext4 a rw\n78 1 0:43 / /pool rw - ceph a rw\n79 1 0:44 / \
                         /pool2 rw - ceph a rw\n";
            fs::write(directory.join("mountinfo"), table).unwrap();
        };
        add(1, "/", 1, "7f1c-7f1d r-xp 00001000 08:01 1234   /usr/lib/x\n");
        add(20, "/pool/volume", 1, "");
        add(21, "/pool2", 99, "");
        add(
            22,
            "/poolx",
            1,
            "7f1c-7f1d rw-p 0 00:00 0 \n7f1c-7f1d r--s 00001000 00:2b 12   \
             /pool/a\n",
        );
        let wanted = [Wanted { generation: 5, dev: 43, mount_ids: BTreeSet::from([78, 99]) }];
        let found = find(proc.path(), &proc.path().join("sys"), &wanted).unwrap();
        let pids: Vec<_> = found.iter().map(|holder| (holder.pid, holder.via.len())).collect();
        assert_eq!(pids, [(20, 1), (21, 1), (22, 1)]);
        assert_eq!(found[0].via[0], Via::WorkingDirectory { path: "/pool/volume".to_owned() });
        assert_eq!(
            found[1].via[0],
            Via::OpenFile { descriptor: 3, path: "/detached/file".to_owned() }
        );
        assert_eq!(found[2].via[0], Via::Mapping { path: "/pool/a".to_owned() });
        assert_eq!(found[2].command, "p22");
    }

    #[test]
    fn loop_devices_and_overlays_hold_too() {
        let proc = tempfile::tempdir().unwrap();
        let (process, device) = (proc.path().join("1"), proc.path().join("sys/block/loop3/loop"));
        fs::create_dir_all(process.join("ns")).unwrap();
        fs::create_dir_all(&device).unwrap();
        symlink("mnt:[10]", process.join("ns/mnt")).unwrap();
        symlink("/", process.join("root")).unwrap();
        fs::write(device.join("backing_file"), "/pool/disk.img\n").unwrap();
        let table = "1 0 8:1 / / rw - ext4 a rw\n78 1 0:43 / /pool rw - ceph a rw\n\
                     80 1 0:50 / /o rw - overlay o rw,lowerdir=/a:/pool/l,upperdir=/u,workdir=/w\n";
        fs::write(process.join("mountinfo"), table).unwrap();
        let wanted = [Wanted { generation: 5, dev: 43, mount_ids: BTreeSet::new() }];
        let found = find(proc.path(), &proc.path().join("sys"), &wanted).unwrap();
        let ways: Vec<String> =
            found.iter().flat_map(|holder| &holder.via).map(ToString::to_string).collect();
        assert_eq!(
            ways,
            ["loop device loop3 on /pool/disk.img", "overlay at /o with a layer in /pool/l"]
        );
    }

    #[test]
    fn this_process_own_mappings_are_understood() {
        let maps = fs::read("/proc/self/maps").unwrap();
        assert!(maps.split(|byte| *byte == b'\n').filter_map(mapping).count() > 0);
    }
}
