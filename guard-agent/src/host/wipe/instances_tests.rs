//! Hosts with instances of all kinds, as text below a directory that is no `/proc`.

use std::os::unix::fs::symlink;

use super::*;

const ROOT: &str = "/var/lib/incus";
const HOST: &str = "1 0 8:1 / / rw - ext4 a rw\n\
                    3 1 0:44 / /var/lib/incus/devices rw - tmpfs t rw\n";

struct Proc(tempfile::TempDir);

impl Proc {
    fn new() -> Self {
        let proc = Self(tempfile::tempdir().unwrap());
        proc.add(1, 10, HOST, "systemd", "/init.scope", &[]);
        proc
    }

    fn add(&self, pid: u32, namespace: u64, table: &str, comm: &str, cgroup: &str, open: &[&str]) {
        let directory = self.0.path().join(pid.to_string());
        fs::create_dir_all(directory.join("ns")).unwrap();
        fs::create_dir_all(directory.join("fd")).unwrap();
        symlink(format!("mnt:[{namespace}]"), directory.join("ns/mnt")).unwrap();
        symlink("/", directory.join("root")).unwrap();
        fs::write(directory.join("mountinfo"), table).unwrap();
        fs::write(directory.join("comm"), format!("{comm}\n")).unwrap();
        fs::write(directory.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
        for (number, target) in open.iter().enumerate() {
            symlink(target, directory.join(format!("fd/{number}"))).unwrap();
        }
    }

    fn sockets(&self, lines: &[&str]) {
        fs::create_dir_all(self.0.path().join("1/net")).unwrap();
        fs::write(self.0.path().join("1/net/unix"), lines.join("\n")).unwrap();
    }

    fn found(&self) -> Vec<String> {
        let question =
            Question { proc_root: self.0.path(), root: Path::new(ROOT), daemon: Some(50) };
        find(&question).unwrap().iter().map(ToString::to_string).collect()
    }
}

#[test]
fn a_virtual_machine_is_told_by_its_sockets_whatever_its_program_is_called() {
    let proc = Proc::new();
    // RHEL's program, on a block device: no file below the root, and none in its arguments.
    proc.sockets(&[
        "Num       RefCount Protocol Flags    Type St Inode Path",
        "0000000000000000: 00000002 00000000 00010000 0001 01 777 /run/incus/v1/qemu.monitor",
        "0000000000000000: 00000002 00000000 00010000 0001 01 778 /run/incus/unix.socket",
    ]);
    let open = ["/dev/kvm", "/dev/zd0", "socket:[777]"];
    proc.add(60, 10, HOST, "qemu-kvm", "/system.slice/incus.service", &open);
    // The daemon's own socket lies in the same directory on Fedora, and is no instance's.
    proc.add(61, 10, HOST, "socat", "/user.slice", &["socket:[778]"]);
    let expected = "virtual machine v1 (process 60, qemu-kvm) uses /run/incus/v1/qemu.monitor";
    assert_eq!(proc.found(), [expected]);
}

#[test]
fn a_virtual_machine_is_told_by_its_files() {
    let proc = Proc::new();
    let disk = "/var/lib/incus/storage-pools/default/virtual-machines/v2/root.img";
    proc.add(60, 10, HOST, ".qemu-system-x8", "/system.slice/incus.service", &["/dev/null", disk]);
    assert_eq!(
        proc.found(),
        [format!("virtual machine v2 (process 60, .qemu-system-x8) uses {disk}")]
    );
}

#[test]
fn a_container_is_told_by_namespace_and_cgroup_and_named_once() {
    let proc = Proc::new();
    let table = "50 0 8:1 /var/lib/incus/storage-pools/d/containers/c1/rootfs / rw - ext4 a rw\n";
    proc.add(70, 11, table, "init", "/lxc.payload.c1/init.scope", &[]);
    proc.add(71, 11, table, "cron", "/lxc.payload.c1/system.slice/cron.service", &[]);
    proc.sockets(&["0: 2 0 10000 1 1 900 @/var/lib/incus/containers/c1/command"]);
    proc.add(69, 10, HOST, "lxc-start", "/lxc.monitor.c1", &["socket:[900]"]);
    let expected = "container c1 (process 69, lxc-start) uses /var/lib/incus/containers/c1/command";
    assert_eq!(proc.found(), [expected]);
}

#[test]
fn helpers_in_a_namespace_of_their_own_count() {
    let proc = Proc::new();
    let virtiofsd = "50 0 0:44 /v1/disk.x / rw - tmpfs t rw\n";
    proc.add(80, 12, virtiofsd, "virtiofsd", "/system.slice/incus.service", &[]);
    assert_eq!(proc.found(), ["process 80 (virtiofsd) uses /var/lib/incus/devices/v1/disk.x"]);
}

#[test]
fn what_is_no_instance_of_this_root_is_not_found() {
    let proc = Proc::new();
    let lease = "/var/lib/incus/networks/incusbr0/dnsmasq.leases";
    proc.add(20, 10, HOST, "dnsmasq", "/system.slice/incus.service", &[lease]);
    proc.add(
        50,
        10,
        HOST,
        "incusd",
        "/system.slice/incus.service",
        &["/var/lib/incus/storage-pools/a/b"],
    );
    proc.add(
        21,
        13,
        "50 0 8:1 /var/lib/lxc/x/rootfs / rw - ext4 a \
         rw\n",
        "init",
        "/lxc.payload.x",
        &[],
    );
    // A service with a private /tmp sees the host's tree.
    proc.add(
        22,
        14,
        &HOST.replace("1 0 ", "90 0 "),
        "resolved",
        "/system.slice/resolved.service",
        &[],
    );
    // In a container of somebody else's the same path is another file.
    let other = "50 0 8:1 /var/lib/lxc/x/rootfs / rw - ext4 a rw\n";
    let nested = "/var/lib/incus/storage-pools/default/virtual-machines/v2/root.img";
    proc.add(23, 13, other, "qemu-kvm", "/lxc.payload.x", &[nested]);
    assert_eq!(proc.found(), Vec::<String>::new());
}

#[test]
fn lines_of_sockets() {
    let line = b"ffff: 00000002 00000000 00010000 0001 01 777 /run/incus/a b/qemu.monitor";
    assert_eq!(named_socket(line), Some((777, PathBuf::from("/run/incus/a b/qemu.monitor"))));
    assert_eq!(
        named_socket(b"ffff: 2 0 10000 1 1 9 @/x/command"),
        Some((9, PathBuf::from("/x/command")))
    );
    assert_eq!(named_socket(b"ffff: 2 0 10000 1 1 9"), None);
    assert_eq!(named_socket(b"Num RefCount Protocol Flags Type St Inode Path"), None);
}
