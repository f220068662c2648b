//! The ways in which a guest comes by its volume, and how it deletes there: with mapped owners, as
//! a file server's only root. None of it is ever denied, in any state of the agent; the host is,
//! for the very same file.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::workload::on_a_pool;
use crate::harness::mount::Mount;
use crate::harness::registry::Test;
use crate::harness::{command, machine, tree};
use crate::peers::container::Owners;
use crate::peers::{calls, container};

pub(super) const TESTS: &[Test] = &[
    Test::new("workload_with_mapped_owners_is_never_denied", mapped_owners)
        .within_seconds(600)
        .only_in_full(),
    Test::new("workload_of_a_file_server_is_never_denied", file_server)
        .within_seconds(600)
        .only_in_full(),
    Test::new("workload_with_layers_on_a_volume_is_never_denied", layers)
        .within_seconds(600)
        .only_in_full(),
];

/// Root and a user of the container, in a mount namespace that is the user namespace's.
const BY_MAPPED_ROOT: &str = "set -e; cd /data
test \"$(id -u)\" = 0; test \"$(stat -c %u d0/e0/f0)\" = 0
rm d0/e0/f0; mv -f d0/e0/f1 d0/e0/f2; : >d0/e0/f3; find d1 -type f -delete
mkdir new; echo x >new/a; chown -R 1000:1000 new; test \"$(stat -c %u new/a)\" = 1000
setpriv --reuid 1000 --regid 1000 --clear-groups sh -c 'echo y >new/b; mv new/b new/a; rm new/a; mkdir new/c; rmdir new/c'
rsync -a --delete new/ d0/; rm -r /data/*; test -z \"$(ls -A /data)\"";

/// The view of an unprivileged container. Kernels before 6.7 map no owners on CephFS: there the
/// files themselves belong to the container's users, as Incus does it there.
fn mapped_owners() -> Result<()> {
    let owners = Owners::new()?;
    let old_kernel = machine::kernel()? == "6.1";
    on_a_pool(|host, beside, _| {
        let volume = host.scratch("guest")?;
        beside.keeps(&volume.join("d0/e0/f0"))?;
        let work = |_: &Path| {
            let enter = owners.enter();
            let mut words: Vec<&str> = enter.iter().map(String::as_str).collect();
            words.extend(["--mount", "sh", "-c", BY_MAPPED_ROOT]);
            command::run(words[0], &words[1..]).map(drop)
        };
        if old_kernel {
            let refused = container::with_mapped_owners(&volume, &owners, |_| Ok(()));
            let why = refused
                .err()
                .context("6.1 has mapped owners on CephFS: the test is out of date")?;
            let errno =
                why.root_cause().downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
            ensure!(errno == Some(libc::EINVAL), "mount_setattr failed otherwise: {why:#}");
            let first = format!("{0}:{0}", Owners::FIRST);
            command::run("chown", &["-R", &first, &volume.to_string_lossy()])?;
            container::with_the_hosts_programs(&volume, work)?;
        } else {
            // This Ceph's metadata server knows no mapped owners, without which the kernel creates
            // nothing by such a mount.
            fs::write("/sys/module/ceph/parameters/enable_unsafe_idmap", "Y")
                .context("let the kernel create files with mapped owners on an old Ceph")?;
            container::with_mapped_owners(&volume, &owners, work)?;
        }
        host.clear("guest")
    })
}

/// The work of virtiofsd for a virtual machine: everything by descriptors without access (O_PATH)
/// and by handles.
fn file_server() -> Result<()> {
    on_a_pool(|host, beside, _| {
        let volume = host.scratch("guest")?;
        beside.keeps(&volume.join("d0/e0/f0"))?;
        container::as_the_root(&volume, serve)?;
        let left = tree::count(&host.on_ceph().join("guest"))?;
        ensure!(left == 0, "{left} files are left");
        host.clear("guest")
    })
}

fn serve() -> Result<()> {
    let path = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = open("/", path, Mode::empty()).context("open the root")?;
    let lookup = |parent: &OwnedFd, name: &str| {
        openat(parent, name, path, Mode::empty()).with_context(|| format!("look up {name}"))
    };
    let remove = |parent: &OwnedFd, name: &str, what: UnlinkatFlags| {
        unlinkat(parent, name, what).with_context(|| format!("unlink {name}"))
    };
    let (file, directory) = (UnlinkatFlags::NoRemoveDir, UnlinkatFlags::RemoveDir);
    // By the descriptors of a lookup.
    let upper = lookup(&root, "d0")?;
    let lower = lookup(&upper, "e0")?;
    remove(&lower, "f0", file)?;
    renameat(&lower, "f1", &lower, "f2").context("rename over")?;
    let from = lookup(&root, "d1")?;
    renameat(&lower, "f3", &from, "moved").context("rename to another directory")?;
    // By handles, which the server keeps when it lets go of descriptors.
    let mount = File::open("/").context("open the mount")?;
    let by_handle = |path: &str, flags: i32| {
        calls::open_by_handle(Path::new(path), &mount, flags)
            .with_context(|| format!("open {path} by handle"))
    };
    by_handle("/d0/e0/f2", libc::O_RDWR | libc::O_TRUNC)?.write_all(b"new").context("write")?;
    let mut still_open = by_handle("/d0/e0/f2", libc::O_RDWR)?;
    still_open.set_len(2).context("ftruncate")?;
    let again = OwnedFd::from(by_handle("/d0/e0", libc::O_PATH | libc::O_DIRECTORY)?);
    remove(&again, "f2", file)?;
    let mut text = String::new();
    still_open.read_to_string(&mut text).context("read what has no name")?;
    ensure!(text == "ne", "it holds {text:?}");
    remove(&upper, "e0", directory)?;
    remove(&root, "d0", directory)?;
    // And all the rest.
    for name in ["d1", "d2"] {
        fs::remove_dir_all(Path::new("/").join(name)).with_context(|| format!("remove {name}"))?;
    }
    Ok(())
}

/// An overlay takes a volume on CephFS as a lower layer. As the upper one the kernel refuses it,
/// for it makes no whiteouts by renaming: that is on tmpfs, in `workload_standin`.
fn layers() -> Result<()> {
    command::run("modprobe", &["overlay"])?;
    on_a_pool(|host, beside, _| {
        let volume = host.scratch("guest")?;
        beside.keeps(&volume.join("d0/e0/f0"))?;
        container::with_the_hosts_programs(&volume, |data| {
            for directory in ["/tmp/upper", "/tmp/work", "/data/upper", "/data/work"] {
                fs::create_dir(directory).with_context(|| format!("create {directory}"))?;
            }
            let refused = Mount::new(
                "overlay",
                "overlay",
                "/tmp/a",
                "lowerdir=/data/d0,upperdir=/data/upper,workdir=/data/work",
            );
            ensure!(
                refused.is_err(),
                "the kernel takes CephFS as an upper layer: the test is out of date"
            );
            let merged = Mount::new(
                "overlay",
                "overlay",
                "/tmp/a",
                "lowerdir=/data,upperdir=/tmp/upper,workdir=/tmp/work",
            )?;
            fs::remove_dir_all(merged.path().join("d0"))
                .context("remove what is in the lower layer")?;
            fs::rename(merged.path().join("d1/e1/f4"), merged.path().join("d1/e1/f5"))
                .context("rename over")?;
            drop(merged);
            ensure!(tree::count(data)? == 12, "the lower layer has {} files", tree::count(data)?);
            let all = ["d0", "d1", "d2", "upper", "work"].map(|name| data.join(name));
            all.iter()
                .try_for_each(|path| fs::remove_dir_all(path).context("remove the lower layer"))
        })?;
        host.clear("guest")
    })
}
