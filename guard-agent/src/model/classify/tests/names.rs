//! Names and lasting ids: tables in the shape that CSI drivers, container engines and mount helpers
//! make.

use super::*;

const KUBELET: &str = r#"
version = 1
[[root]]
path = "/var/lib/kubelet"
filesystems = ["ceph", "nfs", "cifs", "fuse.ceph-fuse"]
[[root]]
path = "/var/lib/docker"
filesystems = ["ceph", "nfs"]
"#;

fn pools(lines: &[&str]) -> Vec<Pool> {
    let policy = parse(KUBELET, Path::new("policy.toml")).unwrap();
    classify(&Snapshot::parse(lines.join("\n").as_bytes()), &policy, &Clusters::default()).pools
}

fn names(pools: &[Pool]) -> Vec<&str> {
    pools.iter().map(|pool| pool.name.as_str()).collect()
}

fn pod(id: u32, dev: u32, volume: &str, rest: &str) -> String {
    let place = format!("/var/lib/kubelet/pods/u{id}/volumes/kubernetes.io~csi/{volume}/mount");
    format!("{id} 22 0:{dev} / {place} rw,relatime shared:{id} - {rest}")
}

fn global(id: u32, dev: u32, rest: &str) -> String {
    let place = "/var/lib/kubelet/plugins/kubernetes.io/csi/cephfs.csi.ceph.com";
    format!("{id} 22 0:{dev} / {place}/{id:x}abc/globalmount rw,relatime shared:{id} - {rest}")
}

/// Shape: ceph-csi under Rook, whose options hold a cluster id of zeros.
#[test]
fn ceph_csi_with_an_id_of_zeros() {
    let source = |volume: u32| {
        format!(
            "ceph 10.3.0.1:6789,10.3.0.2:6789:/volumes/csi/csi-vol-{volume}/7f0a \
             rw,name=node,secret=<hidden>,fsid=00000000-0000-0000-0000-000000000000,acl,mds_namespace=k8sfs"
        )
    };
    let (one, other) = (source(1), source(2));
    let table = [
        global(40, 60, &one),
        pod(41, 60, "pvc-11aa", &one),
        global(42, 61, &other),
        pod(43, 61, "pvc-22bb", &other),
    ];
    let lines: Vec<&str> = table.iter().map(String::as_str).collect();
    let found = pools(&lines);
    assert_eq!(names(&found), ["pvc-11aa", "pvc-22bb"]);
    assert_ne!(found[0].pool_id, found[1].pool_id);
    let ceph = found[0].ceph.as_ref().unwrap();
    assert_eq!((ceph.fsid.as_ref(), ceph.filesystem.as_deref()), (None, Some("k8sfs")));
    // The pod is gone: the name is the subvolume's, and the id stays.
    let staged = pools(&lines[..1]);
    assert_eq!((names(&staged), staged[0].pool_id), (vec!["csi-vol-1"], found[0].pool_id));
    // Mounted again with other monitors.
    let again = one.replace("10.3.0.1:6789,10.3.0.2:6789", "10.3.0.2:6789,10.3.0.3:6789");
    assert_eq!(pools(&[&global(90, 77, &again)])[0].pool_id, found[0].pool_id);
}

/// Shape: the EFS driver's mounts, each through a tunnel of its own on the node.
#[test]
fn tunnels_on_the_node() {
    let source =
        |port: u16| format!("nfs4 127.0.0.1:/ rw,vers=4.1,proto=tcp,port={port},addr=127.0.0.1");
    let (a, b) = (source(20100), source(20101));
    let found = pools(&[&pod(50, 71, "efs-a", &a), &pod(51, 72, "efs-b", &b)]);
    assert_eq!(names(&found), ["efs-a", "efs-b"]);
    assert_ne!(found[0].pool_id, found[1].pool_id);
    let swapped = pools(&[&pod(50, 71, "efs-a", &b), &pod(51, 72, "efs-b", &a)]);
    assert_eq!(swapped[0].pool_id, found[0].pool_id, "the helper takes whatever port is free");
    // If no volume names them, the ports have to.
    let bare = |id: u32, port: u16| {
        format!("{id} 22 0:{id} / /var/lib/kubelet/p{id} rw - {}", source(port))
    };
    let found = pools(&[&bare(52, 20100), &bare(53, 20101)]);
    assert_ne!(found[0].pool_id, found[1].pool_id);
}

/// Shape: SMB CSI driver, and a host's own share whose name has a space.
#[test]
fn smb_shares() {
    let found = pools(&[
        r"70 22 0:55 / /mnt/Team\040Share rw shared:70 - cifs //nas.example/Team\040Share rw,username=a\040b",
        &pod(71, 56, "smb-a", "cifs //NAS.example/Export/smb-a rw,vers=3.1.1,addr=10.0.0.9"),
        &pod(72, 57, "smb-b", "cifs //nas.example/export/smb-b rw,vers=3.1.1,addr=10.0.0.9"),
        &pod(73, 58, "smb-c", "smb3 //box/export rw,vers=3.1.1"),
        r"74 22 0:59 / /var/lib/kubelet/s rw - cifs //nas.example/My\040Own\040Share rw",
    ]);
    assert_eq!(names(&found), ["smb-a", "smb-b", "smb-c", "my own share"]);
    let id = |source: &str| pools(&[&pod(1, 1, "v", source)])[0].pool_id;
    assert_eq!(id("cifs //nas.example/export/smb-a rw"), found[0].pool_id);
    assert_ne!(found[0].pool_id, found[1].pool_id);
}

/// Shape: an NFS server that is a service of the cluster: its address is another one after it was
/// made again.
#[test]
fn nfs_by_a_name() {
    let source =
        |address: &str| format!("nfs4 nfs.default.svc.cluster.local:/ rw,vers=4.1,addr={address}");
    let found = pools(&[&pod(80, 91, "pv-web", &source("10.152.183.7"))]);
    assert_eq!(names(&found), ["pv-web"]);
    let later = pools(&[&pod(99, 92, "pv-web", &source("10.152.183.200"))]);
    assert_eq!(later[0].pool_id, found[0].pool_id);
}

/// Shape: Docker's local driver with `type=nfs`, which gives the server as an option.
#[test]
fn docker_volumes() {
    let volume = |id: u32, name: &str, address: &str| {
        let place = format!("/var/lib/docker/volumes/{name}/_data");
        format!(
            "{id} 22 0:{id} / {place} rw,relatime - nfs4 :/srv/media rw,vers=4.2,addr={address}"
        )
    };
    let found = pools(&[&volume(1, "web_media", "10.0.0.8"), &volume(2, "old_media", "10.0.0.9")]);
    assert_eq!(names(&found), ["web_media", "old_media"]);
    assert_ne!(found[0].pool_id, found[1].pool_id);
}

#[test]
fn pools_of_one_name_are_told_apart() {
    let at = |dev: u32, place: &str, source: &str| {
        format!("{dev} 22 0:{dev} / /var/lib/kubelet/{place} rw - nfs4 {source} rw,addr=10.0.0.8")
    };
    let (one, other) = (at(1, "a", "nas:/srv/data"), at(2, "b", "box:/srv/data"));
    let found = pools(&[&one, &other, &at(3, "c", "nas:/srv/rest")]);
    let marked = |pool: &Pool| format!("data~{}", &format!("{:016x}", pool.pool_id)[..8]);
    assert_eq!(names(&found), [&marked(&found[0]), &marked(&found[1]), "rest"]);
    assert_eq!(names(&pools(&[&one])), ["data"]);
    // Two mounts of one export that do not share a superblock.
    let twice = pools(&[&one, &at(2, "b", "nas:/srv/data")]);
    assert_eq!(names(&twice), ["data~0:1", "data~0:2"]);
    assert_eq!(twice[0].pool_id, twice[1].pool_id);
}

#[test]
fn what_exports_a_whole_server_is_called_by_its_place_or_its_server() {
    let found = pools(&[
        "1 22 0:1 / /var/lib/kubelet/media rw - nfs4 nas:/ rw",
        "2 22 0:2 / /var/lib/kubelet/plugins/x/globalmount rw - nfs4 box:/ rw",
        "3 22 0:3 / /var/lib/kubelet/plugins/y/globalmount rw - ceph admin@f0.fs=/ rw",
        "4 22 0:4 / /var/lib/kubelet/plugins/z/globalmount rw - fuse.ceph-fuse ceph-fuse rw",
    ]);
    assert_eq!(names(&found), ["media", "box", "fs", "/var/lib/kubelet/plugins/z/globalmount"]);
}

#[test]
fn ids_of_sources_that_told_everything_are_what_they_were() {
    let id = |rest: &str| format!("{:016x}", pools(&[&pod(1, 1, "v", rest)])[0].pool_id);
    for (rest, wanted) in [
        ("ceph admin@f0.fs=/pool-a rw,mon_addr=10.0.0.1:3300", "d6e81e748a86374d"),
        ("nfs4 nas:/srv/a rw,addr=10.0.0.8", "091b494c1148f2c0"),
        ("cifs //nas/share rw,addr=10.0.0.8", "7426a4af402c9a35"),
    ] {
        assert_eq!(id(rest), wanted, "{rest}");
    }
}
